//! `rvs-metal`: RVS on PCI hardware, which is emulated, by way of `docs/bare-metal.md`.
//!
//! A machine of QEMU's stands where the program stands in the other tests: between a client and real servers in network
//! namespaces. It boots Debian's kernel and systemd, its NICs are behind an IOMMU, and what the page tells an operator to type
//! is typed on it. Then come the things that happen to a router: a cable is pulled, the program is killed, other
//! NICs and drivers are used.
//!
//! ```text
//! rvs-metal [--only STEP,...] [PACKAGE]
//!
//!   PACKAGE   the .deb that is installed; without one, the built program is packed
//!   --only    goes the shortest way to a router that balances, and then shows these steps only: for who works on one of them
//! ```
//!
//! All of it is emulated, also the CPU, so nothing here says how fast anything is.

mod guest;
mod image;
mod nics;
mod page;
mod rig;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use harness::cluster::Layout;

use crate::rig::Step;

/// The page that is walked.
const PAGE: &str = include_str!("../../docs/bare-metal.md");

/// What is asked for.
#[derive(Default)]
struct Arguments {
    package: Option<PathBuf>,
    only: Option<Vec<&'static Step>>,
}

fn main() -> ExitCode {
    let directory = PathBuf::from("target/metal");
    let result = arguments(std::env::args().skip(1)).and_then(|Arguments { package, only }| {
        harness::with_cluster(Layout::TwoArmed, |cluster| {
            rig::run(cluster, &directory, package, only.as_deref())
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        if word == "--only" {
            let names = words.next().context("--only: expected names of steps")?;
            arguments.only = Some(rig::steps(&names)?);
        } else {
            ensure!(!word.starts_with('-'), "{word}: expected --only STEP,... or a package");
            arguments.package = Some(word.into());
        }
    }
    Ok(arguments)
}
