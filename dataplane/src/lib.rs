//! The packet path of RVS: connection table, schedulers, forwarding modes, and the worker loop.
pub mod service;
