//! `rvs-metal`: RVS on PCI hardware, which is emulated, by way of `docs/bare-metal.md`.
//!
//! A machine of QEMU's stands where the program stands in the other tests: between a client and real servers in network
//! namespaces. It boots Debian's kernel and systemd, its NICs are behind an IOMMU, and what the page tells an operator to type
//! is typed on it. Then come the things that happen to a router: a cable is pulled, the program is killed, other
//! NICs and drivers are used.
//!
//! ```text
//! rvs-metal PACKAGE    PACKAGE: the .deb that is installed
//! ```
//!
//! All of it is emulated, also the CPU, so nothing here says how fast anything is.

mod guest;
mod image;
mod nics;
mod page;
mod rig;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use harness::cluster::Layout;

/// The page that is walked.
const PAGE: &str = include_str!("../../docs/bare-metal.md");

fn main() -> ExitCode {
    let Some(package) = std::env::args().nth(1) else {
        eprintln!("usage: rvs-metal PACKAGE");
        return ExitCode::from(2);
    };
    match run(PathBuf::from(package)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(package: PathBuf) -> Result<()> {
    let package = package.canonicalize().with_context(|| package.display().to_string())?;
    let directory = std::env::current_dir()?.join("target/metal");
    harness::with_cluster(Layout::TwoArmed, |cluster| rig::run(cluster, &directory, &package))
}
