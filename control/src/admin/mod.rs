//! The admin API: HTTP and JSON over a Unix socket.

pub mod api;
