//! Generates the bindings, compiles the shim and names the libraries to link.

use std::env;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, exit};

#[path = "build/link.rs"]
mod link;
#[path = "build/probe.rs"]
mod probe;

use probe::{Dpdk, Problem};

/// Everything that RVS calls. Never `per_lcore_.*`: bindgen takes thread-locals for plain statics.
const FUNCTIONS: &str = "rvs_.*|rte_eal_init|rte_eal_cleanup|rte_strerror|rte_version|rte_dev_probe|rte_dev_remove|rte_dev_event_callback_(register|unregister)|rte_eal_alarm_set\
    |rte_thread_register|rte_thread_unregister|rte_get_main_lcore|rte_get_tsc_hz|rte_socket_id\
    |rte_pktmbuf_pool_create|rte_pktmbuf_free_bulk|rte_mempool_avail_count|rte_mempool_in_use_count\
    |rte_eth_dev_(get_port_by_name|get_name_by_port|info_get|configure|adjust_nb_rx_tx_desc|start|stop|close\
    |default_mac_addr_set|socket_id|rss_hash_conf_get|rss_reta_query|rss_reta_update|get_mtu|get_vlan_offload\
    |rx_offload_name|tx_offload_name|callback_register|callback_unregister)\
    |rte_eth_(rx_queue_setup|tx_queue_setup|promiscuous_enable|promiscuous_get|macaddr_get|stats_get\
    |find_next_of|find_next_owned_by)";
const TYPES: &str = "rvs_mbuf|rte_eth_(conf|dev_info|stats|fp_ops|rss_conf|rss_reta_entry64|rx_mq_mode|event_type)|rte_dev_event_type|rte_ether_addr";
const VARS: &str = "RVS_.*|rte_eth_fp_ops|RTE_ETH_NAME_MAX_LEN";
/// Rust sees these only through pointers: src/lib.rs has them without contents.
const OPAQUE: &str = "rte_mbuf.*|rte_mempool.*|rte_device";

fn main() {
    if let Err(problem) = build() {
        println!("cargo::error={problem}");
        exit(1);
    }
}

fn build() -> Result<(), Problem> {
    for file in ["c", "build"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // PATH decides nothing that these do not say better; bindgen and cc announce what they read.
    for variable in ["PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR", "LIBCLANG_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let dpdk = probe::dpdk(&read("PKG_CONFIG").unwrap_or("pkg-config".into()), None)?;
    let clang = Command::new(read("CLANG_PATH").unwrap_or("clang".into())).arg("--version").output();
    let clang = clang.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    probe::libclang(load_libclang(), clang.as_deref())?;

    println!("cargo::metadata=version={}", dpdk.version);
    bind(&dpdk);
    compile_shim(&dpdk);
    // After the shim: a linker that reads archives in order must meet the one that calls first.
    link::libraries(&dpdk.libdir, env::var_os("CARGO_FEATURE_STATIC").is_some())
}

fn read(variable: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={variable}");
    env::var(variable).ok()
}

/// bindgen panics, with a page of advice, when there is no libclang; we have one line for that.
fn load_libclang() -> Result<String, String> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let version = panic::catch_unwind(|| bindgen::clang_version().full);
    panic::set_hook(hook);
    version.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

fn bind(dpdk: &Dpdk) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    bindgen::builder()
        .header("c/wrapper.h")
        .clang_args(&dpdk.cflags)
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        .allowlist_var(VARS)
        .blocklist_type(OPAQUE)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_default(true)
        .use_core()
        .generate_comments(false)
        .wrap_unsafe_ops(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .expect("bindgen reads the headers of every accepted DPDK")
        .write_to_file(out)
        .expect("OUT_DIR is writable");
}

fn compile_shim(dpdk: &Dpdk) {
    let mut shim = cc::Build::new();
    dpdk.cflags.iter().fold(&mut shim, |shim, flag| shim.flag(flag));
    shim.file("c/shim.c").compile("rvs_shim");
}
