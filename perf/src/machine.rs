//! Where a figure was taken: without it, it says nothing.

use std::fs;

use serde::Serialize;

/// Machine, versions and commit.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors online.
    pub cores: usize,
    /// Linux' release.
    pub linux: String,
    /// DPDK's version.
    pub dpdk: String,
    /// The compiler of this program.
    pub rustc: &'static str,
    /// The commit that this program was built from.
    pub commit: &'static str,
    /// How DPDK is linked: `static` or `shared`.
    pub linked: &'static str,
}

impl Machine {
    /// Reads what Linux tells.
    pub fn read() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let numbers = ["cpu family", "model\t", "stepping"].map(|name| field(name).unwrap_or("?".into()));
        Machine {
            cpu: format!("{} ({})", field("model name").unwrap_or("unknown".into()), numbers.join("/")),
            // Not those that this thread may run on: it may have been pinned.
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            linux: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            dpdk: dpdk::Eal::version(),
            rustc: env!("RVS_RUSTC"),
            commit: env!("RVS_COMMIT"),
            linked: if cfg!(feature = "static") { "static" } else { "shared" },
        }
    }
}
