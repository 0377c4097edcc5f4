//! What directors of Linux tell of, in our terms, and back.
//!
//! Two things are not the same. Linux takes a connection's forwarding method from its own server, whatever the message
//! says; here a server with another mode is another server, since a connection by NAT that went on by direct routing would
//! be lost. And Linux says how long a connection may be silent, where we know when it was last seen; see [`age`].

use std::net::{SocketAddr, SocketAddrV4};

use dataplane::changes::is_told;
use dataplane::clock::Timeout;
use dataplane::service::{Mode, Protocol, State};

use super::wire::{Entry, INACTIVE, METHOD, NO_CLIENT_PORT, NO_OUTPUT, ONE_PACKET, TEMPLATE, Told};
use crate::ids::{ServerKey, ServiceKey};
use crate::sync::wire::Identity;

/// Forwarding methods of IPVS. The others are the director itself and a cache.
const NAT: u32 = 0;
const TUNNEL: u32 = 2;
const DIRECT_ROUTING: u32 = 3;

/// A connection that a director tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The real server.
    pub identity: Identity,
    /// The client.
    pub client: SocketAddrV4,
    /// Its state.
    pub state: State,
    /// Seconds that it may be silent from now; 0 if that is not said.
    pub timeout: u32,
}

/// Why something that a director tells of is of no use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is of a service that is a mark of the firewall.
    Fwmark,
    /// It is of IPv6.
    V6,
    /// A protocol, a forwarding method or a state that RVS does not have; a stream whose bytes are counted otherwise on
    /// both sides; what is not established.
    Unsupported,
}

/// What it is in our terms.
pub fn read(told: &Told) -> Result<Connection, Refusal> {
    match told {
        Told::V4(entry) if entry.fwmark != 0 => Err(Refusal::Fwmark),
        Told::V4(entry) => connection(entry).ok_or(Refusal::Unsupported),
        Told::V6 => Err(Refusal::V6),
        Told::UnknownOption => Err(Refusal::Unsupported),
    }
}

fn connection(entry: &Entry) -> Option<Connection> {
    let Entry { flags, client, service, server, timeout, .. } = *entry;
    let protocol = Protocol::from_number(entry.protocol)?;
    let mode = match flags & METHOD {
        NAT => Mode::Nat,
        TUNNEL => Mode::Tunnel,
        DIRECT_ROUTING => Mode::Dr,
        _ => return None,
    };
    let is_template = flags & TEMPLATE != 0;
    let state = match (protocol, u8::try_from(entry.state).ok()?) {
        _ if is_template => State::Template,
        (Protocol::Udp, 0) => State::Udp,
        (Protocol::Tcp | Protocol::Sctp, number) => State::of_protocol(protocol).nth(usize::from(number))?,
        _ => return None,
    };
    let is_of_use = is_told(state, true)
        && flags & ONE_PACKET == 0
        && (is_template || flags & NO_CLIENT_PORT == 0)
        && (client.port() == 0) == is_template
        && !entry.is_adjusted;
    let server = match mode {
        Mode::Nat => server,
        // These change no port, whatever the server's is said to be.
        Mode::Dr | Mode::Tunnel | Mode::Fullnat => SocketAddrV4::new(*server.ip(), service.port()),
    };
    is_of_use.then_some(Connection {
        identity: Identity {
            service: ServiceKey { address: service.into(), protocol },
            server: ServerKey { address: server.into(), mode },
            face: None,
        },
        client,
        state,
        timeout,
    })
}

/// A connection of ours as IPVS has it; none for one of IPv6, of which is not told yet, or with full NAT, which it has not.
pub fn write(connection: &Connection) -> Option<Entry> {
    let Connection { identity: Identity { service, server, .. }, client, state, timeout } = *connection;
    // Linux knows what is of a mark by other addresses.
    if service.mark().is_some() {
        return None;
    }
    let method = match server.mode {
        Mode::Nat => NAT,
        Mode::Dr => DIRECT_ROUTING | NO_OUTPUT,
        Mode::Tunnel => TUNNEL | NO_OUTPUT,
        // Linux knows no such thing.
        Mode::Fullnat => return None,
    };
    let flags = match state {
        State::Established => 0,
        State::Template => TEMPLATE,
        // Also of UDP, which does not come to be established.
        _ => INACTIVE,
    };
    let (SocketAddr::V4(service_address), SocketAddr::V4(server_address)) = (service.address, server.address)
    else {
        return None;
    };
    Some(Entry {
        protocol: service.protocol.number(),
        flags: method | flags,
        // Templates, which no protocol has among its states, are in the first one.
        state: State::of_protocol(service.protocol).position(|its| its == state).unwrap_or(0) as u16,
        client,
        service: service_address,
        server: server_address,
        fwmark: 0,
        timeout,
        is_adjusted: false,
    })
}

/// How long a connection has been silent, in ticks, that may be silent for so many seconds more: so that it ends here when
/// it would have ended there, at the latest when our own timeout has passed.
pub fn age(ours: Timeout, seconds: u32) -> u32 {
    if seconds == 0 { 0 } else { ours.age_with(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Face;
    use crate::sync::ipvs::wire::tests::connection as entry;
    use crate::sync::ipvs::wire::{decode, encode};

    fn connection(protocol: Protocol, mode: Mode, state: State) -> Connection {
        let server = if mode == Mode::Nat { "10.0.0.11:8080" } else { "10.0.0.11:80" };
        Connection {
            identity: Identity {
                service: ServiceKey { address: entry().service.into(), protocol },
                server: ServerKey { address: server.parse().unwrap(), mode },
                face: None,
            },
            client: entry().client,
            state,
            timeout: 900,
        }
    }

    #[test]
    fn states_and_methods_have_the_numbers_of_linux() {
        let tcp = |state, number, flags| {
            let told = connection(Protocol::Tcp, Mode::Nat, state);
            let entry = Entry { state: number, flags, ..entry() };
            assert_eq!(write(&told), Some(entry));
            assert_eq!(read(&Told::V4(entry)), Ok(told));
        };
        tcp(State::Established, 1, 0);
        tcp(State::FinWait, 4, INACTIVE);
        tcp(State::TimeWait, 5, INACTIVE);
        tcp(State::Close, 6, INACTIVE);
        tcp(State::CloseWait, 7, INACTIVE);
        tcp(State::LastAck, 8, INACTIVE);

        let sctp = connection(Protocol::Sctp, Mode::Nat, State::Established);
        let written = Entry { protocol: 132, state: 8, ..entry() };
        assert_eq!((write(&sctp), read(&Told::V4(written))), (Some(written), Ok(sctp)));

        let udp = connection(Protocol::Udp, Mode::Dr, State::Udp);
        let server = "10.0.0.11:80".parse().unwrap();
        let written = Entry { protocol: 17, state: 0, flags: 0x183, server, ..entry() };
        assert_eq!(write(&udp), Some(written));
        assert_eq!(read(&Told::V4(written)), Ok(udp));
        let by_another_port = Entry { server: entry().server, ..written };
        assert_eq!(read(&Told::V4(by_another_port)), Ok(udp), "direct routing changes no port");
        // All that Linux says beside: synchronised, hashed, no output.
        let flags = 0x20 | 0x40 | 0x80;
        assert_eq!(
            read(&Told::V4(Entry { flags, ..entry() })),
            Ok(connection(Protocol::Tcp, Mode::Nat, State::Established))
        );
    }

    #[test]
    fn a_template_is_a_client_without_a_port() {
        let client = "198.51.100.0:0".parse().unwrap();
        let told = Connection { client, ..connection(Protocol::Tcp, Mode::Dr, State::Template) };
        let server = "10.0.0.11:80".parse().unwrap();
        let written = Entry { client, state: 0, flags: 0x1083, server, ..entry() };
        assert_eq!(write(&told), Some(written));
        assert_eq!(read(&Told::V4(written)), Ok(told));
        let by_any_port = Entry { flags: written.flags | NO_CLIENT_PORT, ..written };
        assert_eq!(read(&Told::V4(by_any_port)), Ok(told));
    }

    #[test]
    fn nothing_is_told_of_a_mark() {
        let told = connection(Protocol::Tcp, Mode::Dr, State::Established);
        let service = ServiceKey::of_mark(10, false);
        let face = Some(Face { address: [192, 0, 2, 10].into(), protocol: Protocol::Tcp });
        for face in [None, face] {
            let identity = Identity { service, face, ..told.identity };
            assert_eq!(write(&Connection { identity, ..told }), None);
        }
    }

    #[test]
    fn what_is_written_is_read_by_whoever_reads_messages() {
        for mode in [Mode::Nat, Mode::Dr, Mode::Tunnel] {
            let told = connection(Protocol::Tcp, mode, State::CloseWait);
            let message = decode(&encode(1, &[write(&told).unwrap()])).unwrap();
            assert_eq!(message.told.iter().map(read).collect::<Vec<_>>(), [Ok(told)]);
        }
        assert_eq!(write(&connection(Protocol::Tcp, Mode::Fullnat, State::CloseWait)), None);
    }

    #[test]
    fn what_is_of_no_use_has_a_name() {
        let refused = |entry: Entry| read(&Told::V4(entry)).unwrap_err();
        assert_eq!(refused(Entry { flags: TEMPLATE, fwmark: 1, protocol: 0, ..entry() }), Refusal::Fwmark);
        assert_eq!(refused(Entry { fwmark: 1, protocol: 0, ..entry() }), Refusal::Fwmark);
        assert_eq!(read(&Told::V6), Err(Refusal::V6));
        assert_eq!(read(&Told::UnknownOption), Err(Refusal::Unsupported));
        let unsupported = [
            Entry { protocol: 132, ..entry() },
            Entry { flags: 1, ..entry() },
            Entry { flags: 4, ..entry() },
            Entry { flags: NO_CLIENT_PORT, ..entry() },
            Entry { flags: ONE_PACKET, ..entry() },
            Entry { flags: TEMPLATE, ..entry() },
            Entry { is_adjusted: true, ..entry() },
            Entry { client: "198.51.100.7:0".parse().unwrap(), ..entry() },
            Entry { protocol: 17, state: 1, ..entry() },
        ];
        let not_established = [0, 2, 3, 9, 10, 11, 256, 257].map(|state| Entry { state, ..entry() });
        for entry in unsupported.into_iter().chain(not_established) {
            assert_eq!(refused(entry), Refusal::Unsupported, "{entry:?}");
        }
    }

    #[test]
    fn a_connection_ends_when_it_would_have_ended_there() {
        let ours = Timeout::from_seconds(900);
        assert_eq!(age(ours, 900), 0);
        assert_eq!(ours.remaining(age(ours, 60)), 60);
        assert_eq!(age(ours, 901), 0, "not later than by our own timeout");
        assert_eq!(age(ours, u32::MAX), 0);
        assert_eq!(age(ours, 0), 0, "not said");
    }
}
