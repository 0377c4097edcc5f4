//! `rvs-metal`: RVS on PCI hardware, which is emulated, by way of `docs/bare-metal.md`.
//!
//! A machine of QEMU's stands where the program stands in the other tests: between a client and real servers in network
//! namespaces. It boots Debian's kernel and systemd, its NICs are behind an IOMMU, and what the page tells an operator to type
//! is typed on it. Then come the things that happen to a router: a cable is pulled, the program is killed, other
//! NICs and drivers are used.
//!
//! ```text
//! rvs-metal [PACKAGE]    the .deb that is installed; without one, the built program is packed
//! ```
//!
//! All of it is emulated, also the CPU, so nothing here says how fast anything is.

mod guest;
mod image;
mod nics;
mod page;
mod rig;

use std::{path::PathBuf, process::ExitCode};

use harness::cluster::Layout;

/// The page that is walked.
const PAGE: &str = include_str!("../../docs/bare-metal.md");

fn main() -> ExitCode {
    let package = std::env::args().nth(1).map(PathBuf::from);
    let directory = PathBuf::from("target/metal");
    match harness::with_cluster(Layout::TwoArmed, |cluster| rig::run(cluster, &directory, package)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
