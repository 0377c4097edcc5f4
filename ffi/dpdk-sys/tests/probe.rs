//! What build.rs says on machines that lack something, tried on this one: with another `PATH`, and with a
//! pkg-config that lies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[path = "../build/link.rs"]
mod link;
#[path = "../build/probe.rs"]
mod probe;

use probe::{ACCEPTED, Dpdk, Problem};

/// A directory with nothing in it but a `pkg-config` that does this.
fn with_pkg_config(name: &str, script: &str) -> PathBuf {
    let directory = empty(name);
    let tool = directory.join("pkg-config");
    fs::write(&tool, format!("#!/bin/sh\n{script}\n")).expect("the directory is ours");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    directory
}

fn empty(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("cargo made the directory above");
    directory
}

/// The problem's message, which must be one line.
fn message<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
    let message = result.expect_err("a problem").to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn this_machine_will_do() {
    let dpdk = probe::dpdk("pkg-config", None).expect("these tests were built with it");
    assert!(probe::accepted(&dpdk.version));
    assert!(dpdk.cflags.windows(2).any(|flags| flags == ["-include", "rte_config.h"]), "{dpdk:?}");
    assert!(dpdk.libdir.is_dir());
}

#[test]
fn without_pkg_config() {
    let path = empty("without_pkg_config");
    assert_eq!(
        message(probe::dpdk("pkg-config", Some(path.as_os_str()))),
        "cannot run pkg-config (No such file or directory (os error 2)), which finds DPDK: install it \
         (Debian: apt install pkg-config)"
    );
}

#[test]
fn without_dpdk() {
    let path = with_pkg_config(
        "without_dpdk",
        "echo 'Package libdpdk was not found in the pkg-config search path.' >&2; echo more >&2; exit 1",
    );
    assert_eq!(
        message(probe::dpdk("pkg-config", Some(path.as_os_str()))),
        "pkg-config does not find libdpdk: install DPDK's development files (Debian: apt install libdpdk-dev), \
         or set PKG_CONFIG_PATH to the directory of libdpdk.pc \
         (Package libdpdk was not found in the pkg-config search path.)"
    );
    let path = with_pkg_config("without_dpdk_and_words", "exit 1");
    assert!(message(probe::dpdk("pkg-config", Some(path.as_os_str()))).ends_with(" (it says no more)"));
}

#[test]
fn with_a_dpdk_of_another_release() {
    let path = with_pkg_config("with_another_release", "echo 21.11.3");
    assert_eq!(
        message(probe::dpdk("pkg-config", Some(path.as_os_str()))),
        "libdpdk 21.11.3 is not supported: RVS builds against DPDK 22.11, 23.11, 24.11, 25.11"
    );
}

#[test]
fn with_a_dpdk_elsewhere() {
    let path = with_pkg_config(
        "with_a_dpdk_elsewhere",
        "case $1 in
            --modversion) echo 24.11.2 ;;
            --cflags) echo '-I/opt/dpdk/include  -include rte_config.h -march=corei7 ' ;;
            --variable=libdir) echo /opt/dpdk/lib ;;
         esac",
    );
    let expected = Dpdk {
        version: "24.11.2".to_owned(),
        cflags: ["-I/opt/dpdk/include", "-include", "rte_config.h", "-march=corei7"]
            .map(str::to_owned)
            .to_vec(),
        libdir: PathBuf::from("/opt/dpdk/lib"),
    };
    assert_eq!(probe::dpdk("pkg-config", Some(path.as_os_str())), Ok(expected));
    // $PKG_CONFIG may name another tool, by path.
    let tool = path.join("pkg-config");
    assert!(probe::dpdk(tool.to_str().expect("a plain path"), None).is_ok());
}

#[test]
fn releases_are_accepted_by_year_and_month() {
    assert!(ACCEPTED.iter().all(|release| probe::accepted(release)));
    assert!(["22.11.11", "23.11.0-rc1", "25.11.1"].iter().all(|version| probe::accepted(version)));
    assert!(
        ["", "22", "22.1", "22.110", "122.11", "23.03.0", "24.07", "eggs"]
            .iter()
            .all(|v| !probe::accepted(v))
    );
}

#[test]
fn without_libclang() {
    let said = "Unable to find libclang: \"couldn't find any valid shared libraries\"\nand a page of advice";
    assert_eq!(
        message(probe::libclang(Err(said.to_owned()), Some("clang version 14.0.6"))),
        "libclang, which reads DPDK's headers, is not found: install it (Debian: apt install libclang-dev), \
         or set LIBCLANG_PATH to its directory \
         (Unable to find libclang: \"couldn't find any valid shared libraries\")"
    );
}

#[test]
fn libclang_and_clang_are_of_one_version() {
    let judge = |libclang: &str, clang| probe::libclang(Ok(libclang.to_owned()), clang);
    assert_eq!(
        judge("Debian clang version 14.0.6", Some("Debian clang version 14.0.0\nTarget: x86_64")),
        Ok(())
    );
    assert_eq!(judge("Debian clang version 14.0.6", None), Ok(()), "libclang has headers of its own");
    assert_eq!(judge("no version at all", Some("nor here")), Ok(()), "who knows");
    assert_eq!(
        message(judge("Debian clang version 16.0.6 (15~deb12u1)", Some("Debian clang version 14.0.6"))),
        "libclang is version 16 but would use the headers of clang 14: set CLANG_PATH to clang-16, \
         or LIBCLANG_PATH to the directory of libclang 14 (Debian: /usr/lib/llvm-14/lib)"
    );
}

#[test]
fn a_dpdk_without_archives_links_shared_only() {
    let libdir = empty("without_archives");
    assert_eq!(link::libraries(&libdir, false), Ok(()));
    assert_eq!(
        message(link::libraries(&libdir, true)),
        format!(
            "no librte_eal.a in {}: this DPDK cannot be linked statically; build without the feature \"static\"",
            libdir.display()
        )
    );
}
