//! Bindings to the part of DPDK that RVS uses, and nothing else of it.
//!
//! `build.rs` finds DPDK by pkg-config, has bindgen read `c/wrapper.h` with an allowlist by name, and
//! compiles `c/shim.c` for what C offers only inline. Nobody but the safe crate `dpdk` uses this one.
//!
//! By default DPDK is linked shared: quick to build, and any driver that is installed works. The
//! feature `static` links the drivers listed in `build/link.rs` into the program, which is what a
//! release does: thread-local variables become one instruction, about 15 % of a small packet's cost.

#![no_std]
#![allow(non_camel_case_types)]

pub use bindings::*;

/// A packet buffer. Its fields are those of [`rvs_mbuf`], which has them under one name in every DPDK.
#[repr(C)]
pub struct rte_mbuf {
    _private: [u8; 0],
}

/// A pool of packet buffers.
#[repr(C)]
pub struct rte_mempool {
    _private: [u8; 0],
}

/// What a bus knows of a device.
#[repr(C)]
pub struct rte_device {
    _private: [u8; 0],
}

/// As bindgen wrote it: C names, C comments, and a layout assertion for each structure.
#[allow(missing_docs, non_upper_case_globals, non_snake_case, unused_imports)]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks, rustdoc::all)]
mod bindings {
    use super::{rte_device, rte_mbuf, rte_mempool};

    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}
