//! A reference model of the data path, and random packet sequences through both.
//!
//! The model (`model/`) says what a router does with a packet as plainly as it can be said: connections are a list, checksums are summed anew over the whole packet, a TCP
//! state is looked up in a table as it is printed in books. It was written from the RFCs, the semantics of LVS and docs/, and
//! shares nothing with the data path but the names that services are configured by; what no document has, the numbers of its hashes, it asks for (`hashes.rs`). [`sequence`] makes random sequences of packets, time and changes, in which
//! few clients meet few services; [`compare()`] has the model and the data path take one, and compares each verdict, each byte that leaves, and at the end what has been counted and which
//! connections are listed.
//!
//! | covered | by |
//! |---|---|
//! | NAT, full NAT, direct routing, tunnels (IP in IP, GRE, GUE; within and across families), of IPv4 and IPv6, TCP, UDP and SCTP | all sequences |
//! | services of all ports and of some, with and without another at the very port of the same address and the same servers | a service is one of them |
//! | firewall marks: services over two addresses, several ports, TCP, UDP and SCTP, beside others at the same addresses; rules for what comes in by one port of the router, and connections that go on by the other | a service is one of them |
//! | FTP: control connections, what servers say about where they listen, and data connections from either side | a service has the helper or not |
//! | IPsec: ESP and AH, whole and in fragments, with the connection of IKE | a service has the helper or not |
//! | local ports of full NAT: one of the pool, nobody else's, taken for as long as the connection and a sweep or two; pools that are used up | which one it is the model is told |
//! | headers of the PROXY protocol: where they stand, numbers and selective acknowledgements, segment sizes, MTUs of ICMP errors | a service by full NAT has them or not |
//! | source NAT: what leaves, what comes back, hairpins, pings, fragments of all that, ICMP errors both ways; the port is one of the pool's and its host's, and of its parity; pools that are used up | a sequence has it or not; which port it is the model is told |
//! | the states of TCP and SCTP, in both directions and in one; timeouts, expiry before and after the sweep; reused ports | all sequences |
//! | schedulers but `lblc` and `lblcr`: those without chance exactly; of the others that the server is one that may be chosen, and of those that hash that it stays | a service has one of them |
//! | `sloppy_tcp`, `one_packet`, persistence with prefixes and quiescent servers, thresholds, lists of sources, rates of all and of each source, how many connections a source has, the gate against floods of SYNs | a service has some of them |
//! | connections without an entry (`track = "at-risk"`): with whom they are, who has an entry all the same, rosters that change and how long that takes, `all` and back again; errors about them | a service is one of them |
//! | datagrams of QUIC that name their servers: short and long headers, plain and encrypted ids, those of nobody, servers that are down, an address and port with several servers | a service is one of them |
//! | servers that go down, are drained or reset, weights, weight 0, MACs that are not known, addresses that move away | steps between packets |
//! | servers that are the router itself, by an address of a port or the virtual one, in all modes: what is Linux' as it came, and has arrived without a hop left | a server is one or not |
//! | tagged networks: clients and servers on one wire or two, with a tag or without; tags of other networks, of a priority only, two of them, providers' | a sequence has them or not |
//! | routing of what concerns no service | a sequence has it or not |
//! | fragments in any order, overlapping, without a first; options, extension headers, no checksum, MSS, selective acknowledgements, class and ECN, hops that run out, MTU, damage, martians, VLAN tags | [`sequence::Odd`] |
//! | ICMP errors about requests and replies, from hosts and routers, with 8 bytes quoted, fewer or all, damaged, to somebody else | [`sequence::Error`] |
//!
//! Not covered: whose a datagram is that names nobody when its address and port has several servers, who is told by ICMP of what was dropped, the resets themselves, ICMP errors about a tunnel's outer packets, a full table, several workers, and bursts of more than one
//! packet (dataplane/tests/lanes.rs has those).
//!
//! Twenty thousand sequences, which is what CI has time for, take some twenty seconds of a core in the debug build.
//!
//! `PROPTEST_CASES=n` tries so many sequences, `RVS_SEED=n` others; a failure names its seed, and is shrunk to the least sequence that shows it.
//!
//! ```text
//! PROPTEST_CASES=1000000 cargo test --release -p rvs-model --test random
//! ```

mod compare;
mod hashes;
mod model;
mod packet;
pub mod quic;
pub mod roster;
mod scheduler;
mod sctp;
pub mod sequence;
mod subject;
mod tcp;
mod tunnel;
pub mod wires;
pub mod world;

pub use self::compare::{Tally, compare};
