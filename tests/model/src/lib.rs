//! A reference model of the data path, and random packet sequences through both.
//!
//! The model (`model.rs`) says what a router does with a packet as plainly as it can be said: connections are a list, checksums are summed anew over the whole packet, a TCP
//! state is looked up in a table as it is printed in books. It was written from the RFCs, the semantics of LVS and docs/, without looking at the
//! data path, with which it shares nothing but the names that services are configured by. [`sequence`] makes random sequences of packets, time and changes, in which
//! few clients meet few services; [`compare()`] has the model and the data path take one, and compares each verdict, each byte that leaves, and at the end what has been counted and which
//! connections are listed.
//!
//! | covered | by |
//! |---|---|
//! | NAT and direct routing, of IPv4 and IPv6, TCP and UDP | all sequences |
//! | the TCP states, in both directions and in one; timeouts, expiry before and after the sweep | all sequences |
//! | schedulers but `maglev`: those without chance and secret exactly; of the others, that the server is one that may be chosen | a service has one of them |
//! | servers that go down, weights, weight 0, thresholds, unknown MACs, addresses that move away | steps between packets |
//! | hops that run out, MTU, options and extension headers, no checksum, damage, fragments, martians, VLAN tags | [`sequence::Odd`] |
//!
//! `PROPTEST_CASES=n` tries so many sequences, `RVS_SEED=n` others; a failure names its seed, and is shrunk to the least sequence that shows it.
//!
//! ```text
//! PROPTEST_CASES=1000000 cargo test --release -p rvs-model --test random
//! ```

mod compare;
mod model;
mod packet;
mod scheduler;
pub mod sequence;
mod subject;
mod tcp;
mod tunnel;
pub mod world;

pub use self::compare::{Tally, compare};
