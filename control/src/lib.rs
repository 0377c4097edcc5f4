//! RVS, a Linux Virtual Server in user space: everything that is not the packet path.

pub mod admin;
pub mod capabilities;
pub mod cli;
pub mod compile;
pub mod config;
pub mod cpu;
pub mod devices;
pub mod director;
pub mod doctor;
pub mod effects;
pub mod events;
pub mod health;
pub mod ids;
pub mod list;
pub mod log;
pub mod metrics;
pub mod net;
pub mod rates;
pub mod run;
pub mod services;
pub mod slowpath;
pub mod systemd;
pub mod top;
