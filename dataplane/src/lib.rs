//! The packet path of RVS: connection table, schedulers, forwarding modes, and the worker loop.
//!
//! Everything but [`worker`] and [`exchange`] is pure logic: time and seeds are arguments, packets are byte slices, and
//! nothing needs DPDK. A [`snapshot::Snapshot`] is all that this crate ever sees of configuration.
//!
//! | module | holds |
//! |---|---|
//! | [`service`] | the vocabulary: protocol, mode, scheduler, state, timeouts |
//! | [`wire`] | views of Ethernet, IP, ICMP, TCP and UDP, and checksum arithmetic |
//! | [`table`] | connections, one 128-bit word each |
//! | [`tcp`] | the TCP state machine of IPVS |
//! | [`admission`] | who may begin a connection |
//! | [`scheduler`] | which real server gets a new connection |
//! | [`quic`] | which real server a datagram of QUIC names itself |
//! | [`snapshot`] | the compiled configuration, and its publication |
//! | [`fragments`] | which connection's a fragment is that has no ports |
//! | [`snat`] | which port of a pool is whose, for what hosts inside begin |
//! | [`fib`] | routes and neighbours: from an address to an adjacency |
//! | [`counters`] | what is counted, and by whom |
//! | [`engine`] | a burst's way through parse, classify, resolve, rewrite |
//! | [`changes`] | connections that peer routers should hear of |
//! | [`told`] | what peer routers tell: whose word counts |
//! | [`capture`] | samples of packets for operators |
//! | [`exchange`] | another device for a port, while the workers run |
//! | [`vlan`] | tagged networks: ports of their own on one wire |
//! | [`worker`] | the polling loop on a core: ports, punts, idling |

pub mod admission;
pub mod capture;
pub mod changes;
pub mod clock;
pub mod counters;
pub mod engine;
pub mod exchange;
pub mod fib;
pub mod fragments;
mod key;
pub mod quic;
mod ranges;
pub mod scheduler;
pub mod sctp;
pub mod service;
pub mod snapshot;
pub mod snat;
mod sync;
pub mod table;
pub mod tcp;
pub mod told;
pub mod vlan;
pub mod wire;
pub mod worker;
