//! RVS, a Linux Virtual Server in user space: everything that is not the packet path.

pub mod admin;
pub mod capture;
pub mod cli;
pub mod compile;
pub mod config;
pub mod cpu;
pub mod devices;
pub mod director;
pub mod effects;
pub mod events;
pub mod explain;
pub mod health;
mod hooks;
pub mod ids;
pub mod list;
pub mod log;
pub mod metrics;
pub mod net;
mod process;
pub mod rates;
pub mod run;
pub mod services;
pub mod slowpath;
mod text;
pub mod top;
