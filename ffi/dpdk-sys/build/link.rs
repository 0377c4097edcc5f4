//! Names the libraries to link, for a shared and for a static DPDK.

use std::path::Path;

use crate::probe::Problem;

/// Shared: the drivers are found at run time, in DPDK's plug-in directory and by `-d`.
///
/// The driver of bonds is one that we ask ourselves, which of its members it sends by.
const SHARED: [&str; 5] = ["rte_net_bond", "rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal"];

/// Static: what is not in here is not in the program. A driver announces itself in a constructor that
/// nothing refers to, so that only a whole archive brings it in.
///
/// Left out: drivers of processors other than x86 (cnxk, dpaa, hns3, octeontx, thunderx, ...), of cards
/// that are hardly met any more (ark, avp, bnx2x, cxgbe, fm10k, liquidio, nfp, qede, ...), of other cores'
/// work (ipn3ke, softnic), and those that steer by a second device (failsafe, vdev_netvsc, netvsc). All of
/// them still work with a shared DPDK.
const DRIVERS: [Driver; 26] = [
    driver("rte_bus_vdev", &[]),
    driver("rte_bus_pci", &[]),
    driver("rte_mempool_ring", &[]),
    // Software
    driver("rte_net_null", &[]),
    driver("rte_net_ring", &[]),
    driver("rte_net_bond", &[]),
    driver("rte_net_memif", &[]),
    driver("rte_net_vhost", &[]),
    driver("rte_net_virtio", &[]),
    driver("rte_net_tap", &[]),
    driver("rte_net_af_packet", &[]),
    driver("rte_net_af_xdp", &["xdp", "bpf"]),
    driver("rte_net_pcap", &["pcap"]),
    // Hardware, and what clouds show as hardware
    driver("rte_net_e1000", &[]),
    driver("rte_net_igc", &[]),
    driver("rte_net_ixgbe", &[]),
    driver("rte_net_i40e", &[]),
    driver("rte_net_ice", &[]),
    driver("rte_net_iavf", &[]),
    driver("rte_net_bnxt", &[]),
    driver("rte_net_ena", &[]),
    driver("rte_net_gve", &[]),
    driver("rte_net_vmxnet3", &[]),
    driver("rte_common_mlx5", &["mlx5", "ibverbs"]),
    driver("rte_bus_auxiliary", &[]),
    driver("rte_net_mlx5", &["mlx5", "ibverbs"]),
];

/// What the drivers and we call; a release that does not have one of them does not need it either.
const LIBRARIES: [&str; 27] = [
    "rte_common_iavf",
    "rte_vhost",
    "rte_cryptodev",
    "rte_dmadev",
    "rte_sched",
    "rte_security",
    "rte_gso",
    "rte_ip_frag",
    "rte_timer",
    "rte_hash",
    "rte_bpf",
    "rte_pci",
    "rte_ethdev",
    "rte_meter",
    "rte_net",
    "rte_mbuf",
    "rte_mempool",
    "rte_rcu",
    "rte_ring",
    "rte_metrics",
    "rte_ptr_compress",
    "rte_eal",
    "rte_telemetry",
    "rte_argparse",
    "rte_pmu",
    "rte_kvargs",
    "rte_log",
];

/// The system's own, shared in any case.
const SYSTEM: [&str; 6] = ["numa", "bsd", "elf", "m", "dl", "pthread"];

struct Driver {
    archive: &'static str,
    /// Shared libraries of the system that it calls.
    system: &'static [&'static str],
}

const fn driver(archive: &'static str, system: &'static [&'static str]) -> Driver {
    Driver { archive, system }
}

pub fn libraries(libdir: &Path, linked_statically: bool) -> Result<(), Problem> {
    println!("cargo::rustc-link-search=native={}", libdir.display());
    if !linked_statically {
        SHARED.iter().for_each(|library| println!("cargo::rustc-link-lib={library}"));
        return Ok(());
    }
    let has = |name: &str| libdir.join(format!("lib{name}.a")).exists();
    if let Some(missing) =
        ["rte_eal", "rte_ethdev", "rte_bus_vdev", "rte_mempool_ring"].iter().find(|name| !has(name))
    {
        return Err(Problem::NoArchive { name: missing.to_string(), libdir: libdir.to_owned() });
    }
    // -bundle: the archives stay where they are until the program is linked. Always "static=": beside
    // static drivers a plain name may find the shared EAL, and then there are two of them.
    for driver in DRIVERS.iter().filter(|driver| has(driver.archive)) {
        println!("cargo::rustc-link-lib=static:+whole-archive,-bundle={}", driver.archive);
        driver.system.iter().for_each(|library| println!("cargo::rustc-link-lib=dylib={library}"));
    }
    for library in LIBRARIES.iter().filter(|library| has(library)) {
        println!("cargo::rustc-link-lib=static:-bundle={library}");
    }
    SYSTEM.iter().for_each(|library| println!("cargo::rustc-link-lib=dylib={library}"));
    Ok(())
}
