//! RVS, a Linux Virtual Server in user space: everything that is not the packet path.

pub mod admin;
pub mod config;
pub mod health;
pub mod net;
