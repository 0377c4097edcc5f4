//! Listings for people and for the scripts that they have: the layouts of `ipvsadm -Ln`, `--stats`,
//! `--rate` and `-c`, byte for byte, trailing blanks included.
//!
//! Only the first line differs, since it names the program. A real server that its health check has taken
//! out is shown with weight 0, as keepalived does it with `inhibit_on_failure`.

mod connections;
mod counters;
mod explain;
mod ports;
mod services;
mod snat;

pub use connections::{connection, connections_header};
pub use counters::counters;
pub use explain::explanation;
pub(crate) use ports::{Ports, ports};
pub use services::{Columns, Numbers, services};
pub use snat::snat;

use crate::admin::api;

/// The first line: who speaks, and how large the connection table is.
fn title(table: &api::Table) -> String {
    format!("RVS version {} (size={})", env!("CARGO_PKG_VERSION"), table.slots)
}
