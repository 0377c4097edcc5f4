//! The same programs in every mode: NAT, full NAT, direct routing, each kind of tunnel, and the router's own server, of both families
//! and across them. All that a layout of machines is for is in one router, beside each other.

mod narrow;
mod pieces;
mod programs;
mod sctp;
mod way;
