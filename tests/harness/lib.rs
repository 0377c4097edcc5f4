//! Whole clusters in network namespaces, for tests that know RVS only by its command line.
//!
//! A test builds a [`cluster::Cluster`], starts real servers and a [`router::Router`] in it, does what users
//! and operators do, and compares what clients, servers and wires saw with what `rvs list` says.
//!
//! | module | holds |
//! |---|---|
//! | [`cluster`] | the machines and their wires |
//! | [`ipv6`] | their addresses of IPv6, if a test wants them |
//! | [`netns`] | one machine: commands, threads and sockets inside it |
//! | [`process`], [`state`] | programs with deadlines; what a dead run leaves is removed by the next |
//! | [`config`] | a router's configuration under construction |
//! | [`router`], [`listing`], `verdicts` | the program under test, and what it says about itself |
//! | [`nginx`], [`names`], [`python`], [`servers`], [`tunnel`] | real servers |
//! | [`trunk`], [`lag`] | switches: one that tags, one with a link aggregation group |
//! | [`peers`], [`pair`] | routers that know each other's connections, and two of them under keepalived |
//! | [`crowd`] (in a [`background`] thread), [`flood`] | ten thousand connections of sockets, a million of frames |
//! | [`authority`], [`flags`] | certificates, and files that say how a server is to behave |
//! | [`image`] | a copy of this machine, to install packages in |
//! | [`ipvs`] | directors of Linux |
//! | [`client`] | users |
//! | [`fleet`], [`peers`] | several routers that know of each other |
//! | [`capture`], [`packet`], [`pieces`], [`raw`] | the wire: what passed, what it means, and sending what nobody should |
//! | [`tally`] | an independent count at both ends |
//! | [`wait`] | waiting for a condition, with a deadline |

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;

pub mod authority;
pub mod background;
pub mod capture;
pub mod client;
pub mod cluster;
pub mod config;
pub mod crowd;
pub mod flags;
pub mod fleet;
pub mod flood;
pub mod image;
pub mod ipv6;
pub mod ipvs;
pub mod lag;
pub mod listing;
pub mod names;
pub mod netns;
pub mod nginx;
pub mod packet;
pub mod pair;
pub mod peers;
pub mod pieces;
pub mod process;
pub mod python;
pub mod raw;
pub mod router;
pub mod servers;
pub mod shm;
pub mod state;
pub mod tally;
pub mod trunk;
pub mod tunnel;
mod verdicts;
pub mod wait;

static FAILING: AtomicBool = AtomicBool::new(false);

/// Whether a test has failed in this process, so that logs are worth showing.
pub(crate) fn failing() -> bool {
    FAILING.load(Ordering::Relaxed)
}

/// Runs the body of a test on a cluster: a failure is told before the cluster is taken down, with its logs.
pub fn with_cluster(
    layout: cluster::Layout,
    body: impl FnOnce(&cluster::Cluster) -> Result<()>,
) -> Result<()> {
    let Some(cluster) = cluster::Cluster::build(layout)? else { return Ok(()) };
    let result = body(&cluster);
    if let Err(error) = &result {
        eprintln!("FAILED in cluster {}: {error:#}", cluster.state().id());
        FAILING.store(true, Ordering::Relaxed);
    }
    drop(cluster);
    FAILING.store(false, Ordering::Relaxed);
    result
}

/// Whether this process may make network namespaces.
///
/// Says so loudly if not; under `CI=true` it is an error, since nobody reads what a green job printed.
pub fn privileged() -> Result<bool> {
    if nix::unistd::geteuid().is_root() {
        return Ok(true);
    }
    anyhow::ensure!(
        std::env::var("CI").as_deref() != Ok("true"),
        "these tests need root, and CI=true skips none"
    );
    eprintln!("\n*** SKIPPED: needs root ***\n");
    Ok(false)
}

/// The cores that are online.
pub fn cores() -> Vec<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    });
    let cores: Vec<usize> = ranges.flatten().collect();
    if cores.is_empty() { vec![0] } else { cores }
}
