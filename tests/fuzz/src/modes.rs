//! Every mode and kind of service that is neither plain NAT nor direct routing.

use std::net::SocketAddr;

use dataplane::fib::PortIndex;
use dataplane::service::Protocol;
use dataplane::wire::made::Made;

use crate::{Bench, FLAGS, MACS, frame};

const CONFIG: &str = include_str!("../modes.toml");

/// From whom, to whom.
type Flow = (&'static str, &'static str, Protocol);

/// By family and by the port on which they come in.
const FLOWS: [[&[Flow]; 2]; 2] = [[CLIENTS, SERVERS], [WIDE_CLIENTS, WIDE_SERVERS]];

const CLIENTS: &[Flow] = &[
    ("198.51.100.7:40112", "192.0.2.10:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.10:53", Protocol::Udp),
    ("198.51.100.7:40113", "192.0.2.10:81", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.11:80", Protocol::Tcp),
    ("192.0.2.77:1", "192.0.2.11:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.11:53", Protocol::Udp),
    ("198.51.100.7:40112", "192.0.2.12:22", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.12:23", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.12:24", Protocol::Udp),
    ("198.51.100.7:40112", "192.0.2.13:80", Protocol::Tcp),
    ("192.0.2.77:1", "192.0.2.13:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.13:443", Protocol::Udp),
    ("198.51.100.7:40112", "192.0.2.14:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.14:81", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.14:90", Protocol::Sctp),
    ("198.51.100.7:40112", "192.0.2.14:91", Protocol::Sctp),
    ("198.51.100.7:40112", "192.0.2.15:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.15:443", Protocol::Udp),
    ("198.51.100.7:40112", "192.0.2.16:21", Protocol::Tcp),
    ("198.51.100.7:500", "192.0.2.17:500", Protocol::Udp),
    ("198.51.100.7:40112", "192.0.2.18:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.19:80", Protocol::Tcp),
    ("198.51.100.7:40112", "192.0.2.19:53", Protocol::Udp),
    ("198.51.100.7:40112", "10.0.0.99:7", Protocol::Udp),
    ("198.51.100.7:7", "192.0.2.50:1024", Protocol::Udp),
];

const SERVERS: &[Flow] = &[
    ("10.0.0.11:8080", "10.0.0.100:1024", Protocol::Tcp),
    ("10.0.0.12:53", "10.0.0.101:1025", Protocol::Udp),
    ("10.0.0.13:22", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.14:22", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.15:80", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.15:443", "198.51.100.7:40112", Protocol::Udp),
    ("10.0.0.21:90", "198.51.100.7:40112", Protocol::Sctp),
    ("10.0.0.22:80", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.23:21", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.23:20", "198.51.100.7:40113", Protocol::Tcp),
    ("10.0.0.24:500", "198.51.100.7:500", Protocol::Udp),
    ("10.0.0.25:80", "198.51.100.7:40112", Protocol::Tcp),
    ("10.0.0.40:5000", "198.51.100.7:7", Protocol::Udp),
    ("10.0.0.40:5001", "198.51.100.7:7", Protocol::Tcp),
    ("10.0.0.41:5000", "192.0.2.50:1024", Protocol::Udp),
    ("10.0.0.99:7", "198.51.100.7:40112", Protocol::Udp),
];

const WIDE_CLIENTS: &[Flow] = &[
    ("[2001:db8:c::7]:40112", "[2001:db8::11]:80", Protocol::Tcp),
    ("[2001:db8::77]:1", "[2001:db8::11]:80", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8::12]:22", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8::13]:53", Protocol::Udp),
    ("[2001:db8:c::7]:40112", "[2001:db8::14]:80", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8::14]:81", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8::14]:53", Protocol::Udp),
    ("[2001:db8:c::7]:40112", "[2001:db8::15]:80", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8::16]:21", Protocol::Tcp),
    ("[2001:db8:c::7]:40112", "[2001:db8:a::99]:7", Protocol::Udp),
];

const WIDE_SERVERS: &[Flow] = &[
    ("[2001:db8:a::11]:8080", "[2001:db8:a::100]:1024", Protocol::Tcp),
    ("[2001:db8:a::13]:22", "[2001:db8:c::7]:40112", Protocol::Tcp),
    ("[2001:db8:a::15]:53", "[2001:db8:c::7]:40112", Protocol::Udp),
    ("[2001:db8:a::22]:80", "[2001:db8:c::7]:40112", Protocol::Tcp),
    ("[2001:db8:a::23]:21", "[2001:db8:c::7]:40112", Protocol::Tcp),
    ("[2001:db8:a::99]:7", "[2001:db8:c::7]:40112", Protocol::Udp),
];

/// Packets come in one after the other, for services of every mode.
pub fn modes(data: &[u8]) {
    Bench::of_modes().take_all(data, made);
}

/// What begins the first connections: by which port it comes in, and the frame.
pub(crate) fn first() -> impl Iterator<Item = (PortIndex, Vec<u8>)> {
    FLOWS.iter().flat_map(|ports| ports[0].iter().map(|flow| (0, frame(*flow, 0, 0))))
}

/// A packet of each flow, and some of the servers of tunnels, who say nothing.
fn met() -> impl Iterator<Item = Vec<u8>> {
    let silent = ["10.0.0.16:1", "10.0.0.31:1", "10.0.0.32:1", "10.0.0.33:1", "10.0.0.34:1", "10.0.0.35:1"];
    let wide = ["[2001:db8:a::31]:1", "[2001:db8:a::32]:1"];
    let silent = silent.into_iter().map(|server| frame((server, "198.51.100.7:7", Protocol::Udp), 1, 0));
    let wide = wide.into_iter().map(|server| frame((server, "[2001:db8:c::7]:7", Protocol::Udp), 1, 0));
    let silent = silent.chain(wide);
    let ports = FLOWS.iter().flat_map(|ports| ports.iter().enumerate());
    silent.chain(ports.flat_map(|(port, flows)| flows.iter().map(move |flow| frame(*flow, port, 0))))
}

/// A good packet of a flow, which comes in on a port.
fn made(family: usize, port: usize, flow: u8, flags: u8) -> Vec<u8> {
    let flows = FLOWS[family][port];
    frame(flows[usize::from(flow) % flows.len()], port, flags)
}

fn frame((source, destination, protocol): Flow, port: usize, flags: u8) -> Vec<u8> {
    let address = |text: &str| text.parse().expect("it is one");
    let ends = (address(source), address(destination));
    packet(ends, protocol, flags).frame(&[2, 0, 0, 0, 9, 9], &MACS[port])
}

/// A good packet between two ends; the flags are also its hops and its length.
fn packet((source, destination): (SocketAddr, SocketAddr), protocol: Protocol, flags: u8) -> Made {
    Made {
        protocol,
        source,
        destination,
        flags: FLAGS[usize::from(flags) % FLAGS.len()],
        ttl: if flags & 0x40 != 0 { flags & 3 } else { 64 },
        length: if flags & 0x80 != 0 { 1500 } else { 0 },
    }
}

impl Bench {
    /// With services of every mode.
    pub(crate) fn of_modes() -> Bench {
        Bench::of(CONFIG, met())
    }

    /// Whoever got the last packet answers it, with TCP or UDP.
    pub(crate) fn answer(&mut self, flags: u8) {
        let Some((port, frame)) = self.last.take() else { return };
        let Some((source, destination, protocol)) = frame::ends(&frame) else { return };
        let mac = &MACS[usize::from(port)];
        self.take(port, packet((destination, source), protocol, flags).frame(&[2, 0, 0, 0, 9, 9], mac));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind of service goes out by the other port, and what has an answer by this way gets it.
    #[test]
    fn every_service_is_served() {
        let silent = [
            "192.0.2.10",
            "192.0.2.12:24",
            "192.0.2.14:80",
            "192.0.2.14:81",
            "192.0.2.14:91",
            "192.0.2.50",
            "[2001:db8::14]",
        ];
        for (family, flows) in FLOWS.iter().map(|ports| ports[0]).enumerate() {
            for (index, (_, to, _)) in flows.iter().enumerate() {
                let mut bench = Bench::of_modes();
                let went = |bench: &Bench| bench.last.as_ref().map(|(port, _)| *port);
                bench.take(0, made(family, 0, index as u8, 0));
                let denied = *to == "192.0.2.13:80" && flows[index].0 == "192.0.2.77:1";
                let is_served = !denied && !to.starts_with("192.0.2.50") && !to.starts_with("192.0.2.19");
                assert_eq!(went(&bench), is_served.then_some(1), "{to}");
                bench.answer(1);
                let is_answered = is_served && !silent.iter().any(|silent| to.starts_with(silent));
                assert_eq!(went(&bench), is_answered.then_some(0), "{to}");
                bench.end();
            }
        }
    }
}
