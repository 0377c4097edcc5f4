//! What fuzzers enter by, and what has to hold whatever comes in.
//!
//! | target | input | what has to hold |
//! |---|---|---|
//! | [`packet`] | a port and which services, then a frame | see [`Bench::take`] |
//! | [`sequence`] | steps: packets of a few flows, garbled ones, ICMP errors about them, time | the same, for each |
//! | [`modes()`] | the same steps, and answers, through every other mode and kind of service | the same, but for what a mode has to change |
//! | [`config()`] | a file | it is refused with a message, or makes a router |
//!
//! All of it is the packet path by `rvs replay`, without EAL. What is checked here is computed anew, not by the packet path's own code.

mod frame;
mod modes;

use std::net::IpAddr;
use std::path::Path;

use dataplane::counters::{Counter, Punt};
use dataplane::engine::Verdict;
use dataplane::fib::PortIndex;
use dataplane::service::Protocol;
use dataplane::wire::icmp;
use dataplane::wire::made::Made;
use dataplane::wire::version::Version;
use rvs::config;
use rvs::replay::network::{Given, Network};
use rvs::replay::router::Router;

pub use self::modes::modes;

/// NAT services, and one of each family by direct routing.
const NAT: &str = include_str!("../../vectors/nat.toml");
const DR: &str = "
[[service]]
address = \"192.0.2.10:85\"
mode = \"dr\"
scheduler = \"rr\"
[[service.server]]
address = \"10.0.0.21\"
[[service]]
address = \"[2001:db8::10]:85\"
mode = \"dr\"
scheduler = \"rr\"
[[service.server]]
address = \"2001:db8:a::21\"
";

/// Virtual and real address of a service, and its protocol.
type Known = (&'static str, &'static str, Protocol);

/// Of IPv4, then of IPv6.
const SERVICES: [[Known; 4]; 2] = [FOUR, SIX];

const FOUR: [Known; 4] = [
    ("192.0.2.10:80", "10.0.0.11:8080", Protocol::Tcp),
    ("192.0.2.10:53", "10.0.0.11:5353", Protocol::Udp),
    ("192.0.2.10:81", "10.0.0.12:8081", Protocol::Tcp),
    ("192.0.2.10:85", "10.0.0.21:85", Protocol::Tcp),
];

const SIX: [Known; 4] = [
    ("[2001:db8::10]:80", "[2001:db8:a::11]:8080", Protocol::Tcp),
    ("[2001:db8::10]:53", "[2001:db8:a::11]:5353", Protocol::Udp),
    ("[2001:db8::10]:83", "[2001:db8:a::12]:8083", Protocol::Tcp),
    ("[2001:db8::10]:85", "[2001:db8:a::21]:85", Protocol::Tcp),
];

const CLIENTS: [[&str; 3]; 2] = [
    ["198.51.100.7:40112", "192.0.2.77:1", "192.0.2.10:80"],
    ["[2001:db8:c::7]:40112", "[2001:db8::77]:1", "[2001:db8::10]:80"],
];

/// What a client and a server send in turn.
const FLAGS: [u8; 8] = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x00];

/// Milliseconds between packets.
const PAUSES: [u64; 8] = [0, 1, 250, 1_000, 4_000, 60_000, 900_000, 8_000_000];

/// The MACs of the ports (`rvs replay`'s rule).
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// A frame comes in on the port that the first byte says, after a connection of each family has begun: by NAT, or of each service of [`modes()`].
pub fn packet(data: &[u8]) {
    let Some((&first, frame)) = data.split_first() else { return };
    let mut bench = if first & 2 == 0 { Bench::new() } else { Bench::of_modes() };
    bench.begin();
    bench.take(PortIndex::from(first & 1), frame.to_vec());
    bench.end();
}

/// Packets come in one after the other.
pub fn sequence(data: &[u8]) {
    let made = |family, port, flow: u8, flags| made(family, port, flow % 4, flow >> 2, flags);
    Bench::new().take_all(data, made);
}

/// A file is read as a configuration, and a router made of it.
pub fn config(data: &[u8]) {
    match config::parse(Path::new("x.toml"), data.to_vec()) {
        Err(errors) => assert!(errors.to_string().starts_with("x.toml:"), "{errors}"),
        // Pools of the size that it asks for would be all that is tested.
        Ok(mut config) if config.routing.snats.iter().map(|snat| snat.outside.len()).sum::<usize>() < 8 => {
            config.table.connections = config.table.connections.min(1 << 12);
            config.routing.snats.iter_mut().for_each(|snat| snat.mappings = snat.mappings.min(1 << 10));
            let network = Network::new(&config, &Given::default()).expect("nothing was given");
            let router = Router::<Vec<u8>>::new(&config, &network, &[], 0);
            router.expect("no server is down").take(0, 0, &mut vec![0; 60]);
        }
        Ok(_) => {}
    }
}

/// Two routers, which are given the same: one says what it does, and one does it.
pub struct Bench {
    telling: Router<Vec<u8>>,
    silent: Router<Vec<u8>>,
    now: u64,
    /// Packets that came in.
    count: u64,
    /// What was forwarded last, and out of which port.
    last: Option<(PortIndex, Vec<u8>)>,
    /// Whether nothing but NAT and direct routing is there, which change so little that it can be said.
    is_plain: bool,
}

impl Bench {
    fn new() -> Bench {
        let ports = 0..MACS.len();
        let packets = ports.flat_map(|port| (0..SERVICES.len() * 12).map(move |flow| (port, flow)));
        let met =
            packets.map(|(port, flow)| made(flow / 12, port, (flow % 4) as u8, ((flow % 12) >> 2) as u8, 0));
        Bench { is_plain: true, ..Bench::of(&[NAT, DR].concat(), met) }
    }

    /// Two routers with this configuration, which have met these packets' senders and receivers.
    fn of(config: &str, met: impl Iterator<Item = Vec<u8>>) -> Bench {
        let config =
            config::parse(Path::new("x.toml"), config.as_bytes().to_vec()).expect("it is a good one");
        let mut network = Network::new(&config, &Given::default()).expect("nothing was given");
        met.for_each(|frame| network.meet_all(&frame));
        let router = || Router::<Vec<u8>>::new(&config, &network, &[], 7).expect("no server is down");
        Bench { telling: router(), silent: router(), now: 0, count: 0, last: None, is_plain: false }
    }

    /// A packet comes in. Whatever it is: both routers do the same; what is left to Linux is as it came; what is forwarded has right
    /// checksums unless they were wrong. Of NAT and direct routing also: it has lived a hop longer, its checksums are wrong where they
    /// were, and all that no NAT has to change is the same.
    pub fn take(&mut self, port: PortIndex, before: Vec<u8>) {
        self.count += 1;
        let mut after = before.clone();
        let verdict = self.telling.explain(self.now, port, &mut after).verdict;
        let mut other = before.clone();
        let shown = format!("{verdict:?}\n{before:02x?}\n{after:02x?}");
        let about = || &shown;
        assert_eq!(self.silent.take(self.now, port, &mut other), verdict, "{}", about());
        assert_eq!(after, other, "{}", about());
        match verdict {
            Verdict::Forward(output) | Verdict::Route(output) => {
                let (old, new) = (frame::Facts::of(&before), frame::Facts::of(&after));
                let (old, new) = (old.expect("it was IP"), new.expect("it is IP"));
                assert_eq!(after[6..12], MACS[usize::from(output)], "{}", about());
                assert!(old.header_is_right && new.header_is_right, "{}", about());
                if self.is_plain {
                    assert_eq!(before.len(), after.len(), "{}", about());
                    assert_eq!(old.ttl, new.ttl + 1, "{}", about());
                    assert_eq!(old.payload_is_right, new.payload_is_right, "{}", about());
                    assert_eq!(old.rest, new.rest, "{}", about());
                } else if old.payload_is_right == Some(true) {
                    assert_ne!(new.payload_is_right, Some(false), "{}", about());
                }
                self.last = Some((output, after));
            }
            Verdict::Punt(Punt::Unresolved | Punt::ToFragment) => {}
            Verdict::Hold => {
                assert_eq!(before, after, "{}", about());
                let held = self.telling.hold(self.now, port, after);
                assert_eq!(self.silent.hold(self.now, port, other), held);
            }
            Verdict::Punt(_) => assert_eq!(before, after, "{}", about()),
            Verdict::Drop(_) => {}
        }
        self.settle();
    }

    /// The first connection of each flow, as a client or a server begins it.
    fn begin(&mut self) {
        if self.is_plain {
            (0..SERVICES.len()).for_each(|family| self.take(0, made(family, 0, 0, 0, 0)));
        } else {
            modes::first().for_each(|(port, frame)| self.take(port, frame));
        }
    }

    /// Takes the steps that these bytes are, with packets made of a family, a port, a flow and flags.
    fn take_all(mut self, data: &[u8], made: impl Fn(usize, usize, u8, u8) -> Vec<u8>) {
        let mut steps = Steps(data);
        while let Some(kind) = steps.next() {
            let port = PortIndex::from(kind & 1);
            let mut packet =
                || made(usize::from(kind >> 4 & 1), usize::from(port), steps.byte(), steps.byte());
            match kind >> 1 & 3 {
                0 if kind & 0x20 != 0 && !self.is_plain => self.answer(steps.byte()),
                0 if kind & 0x40 != 0 => {
                    let mut pieces = frame::pieces(&packet(), kind);
                    if kind & 0x80 != 0 {
                        pieces.reverse();
                    }
                    pieces.into_iter().for_each(|piece| self.take(port, piece));
                }
                0 => self.take(port, packet()),
                1 if kind & 0x40 != 0 => {
                    let mut frame = packet();
                    let length = usize::from(steps.byte() & 0x3F);
                    frame::say(&mut frame, steps.bytes(length));
                    self.take(port, frame);
                }
                1 => {
                    let mut frame = packet();
                    let (at, bits) = (usize::from(steps.byte()), steps.byte());
                    let length = frame.len();
                    frame[at % length] ^= bits;
                    if kind & 8 != 0 {
                        frame.truncate(at);
                    }
                    self.take(port, frame);
                }
                2 => self.pause(steps.byte()),
                _ => self.complain(steps.byte()),
            }
        }
        self.end();
    }

    /// Fragments that wait no more, which both routers agree on as well.
    fn settle(&mut self) {
        assert_eq!(self.telling.settle(self.now), self.silent.settle(self.now));
    }

    fn pause(&mut self, which: u8) {
        self.now += PAUSES[usize::from(which) % PAUSES.len()] * 1_000_000;
    }

    /// Whoever got the last packet says that it cannot be delivered.
    fn complain(&mut self, how: u8) {
        let Some((port, frame)) = self.last.take() else { return };
        let Some(facts) = frame::Facts::of(&frame) else { return };
        let error = match (facts.destination, facts.source) {
            (IpAddr::V4(from), IpAddr::V4(to)) => complaint::<u32>(from.into(), to.into(), how, &frame[14..]),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                complaint::<u128>(from.into(), to.into(), how, &frame[14..])
            }
            _ => return,
        };
        self.take(port, [&MACS[usize::from(port)][..], &[2, 0, 0, 0, 9, 9], &error].concat());
    }

    /// Every packet was counted, under one name.
    fn end(mut self) {
        // Nobody waits for longer than a second.
        self.now += 2_000_000_000;
        self.settle();
        for router in [&self.telling, &self.silent] {
            let counters = router.counters();
            let sum = |counters: &[Counter]| counters.iter().map(Counter::get).sum::<u64>();
            let went = counters.forwarded.get() + sum(&counters.punted) + sum(&counters.dropped);
            assert_eq!((counters.received.get(), went), (self.count, self.count));
        }
    }
}

/// An error about a packet, of one kind or another, which quotes all of it or little more than its header; with its EtherType.
fn complaint<A: Version>(from: A, to: A, how: u8, packet: &[u8]) -> Vec<u8> {
    let kinds = [A::PORT_UNREACHABLE, A::TOO_BIG, A::TTL_EXCEEDED];
    let kind = kinds[usize::from(how) % kinds.len()];
    let quoted = if how & 4 != 0 { packet.len().min(A::HEADER + 8) } else { packet.len() };
    [&A::ETHERTYPE.to_be_bytes()[..], &icmp::error(from, to, kind, 1280, &packet[..quoted])].concat()
}

/// A good packet of a flow, which comes in on a port: on the first one a client's, on the second one a server's.
fn made(family: usize, port: usize, service: u8, client: u8, flags: u8) -> Vec<u8> {
    let (service, real, protocol) = SERVICES[family][usize::from(service)];
    let clients = CLIENTS[family];
    let client = clients[usize::from(client) % clients.len()];
    let (source, destination) = if port == 0 { (client, service) } else { (real, client) };
    let address = |text: &str| text.parse().expect("it is one");
    let made = Made {
        protocol,
        source: address(source),
        destination: address(destination),
        flags: FLAGS[usize::from(flags) % FLAGS.len()],
        ttl: if flags & 0x40 != 0 { flags & 3 } else { 64 },
        length: if flags & 0x80 != 0 { 1500 } else { 0 },
    };
    made.frame(&[2, 0, 0, 0, 9, 9], &MACS[port])
}

/// The bytes of a sequence; when there are no more, zeros to finish a step with.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    /// So many bytes, or what is left.
    fn bytes(&mut self, length: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has to hold of packets that are forwarded, and of errors about them, is seen of both families and of each service.
    #[test]
    fn every_service_of_the_model_is_served() {
        for family in 0..SERVICES.len() {
            for service in 0..4 {
                let is_nat = service != 3;
                let mut bench = Bench::new();
                let went = |bench: &Bench| bench.last.as_ref().map(|(port, _)| *port);
                bench.take(0, made(family, 0, service, 0, 0));
                assert_eq!(went(&bench), Some(1), "{family}, {service}");
                // The server complains, or answers: only by NAT both come this way.
                bench.complain(0);
                assert_eq!(went(&bench), is_nat.then_some(0), "{family}, {service}");
                bench.last = None;
                bench.take(1, made(family, 1, service, 0, 1));
                assert_eq!(went(&bench), is_nat.then_some(0), "{family}, {service}");
                bench.end();
            }
        }
    }
}
