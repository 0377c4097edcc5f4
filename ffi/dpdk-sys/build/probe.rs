//! Finds DPDK and libclang, and says in one line what is wrong with them.
//!
//! Apart from build.rs so that a test can include it: none of these answers needs a broken machine
//! to be tried, only another `PATH`.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

/// The releases that RVS is built against: DPDK's long-term ones. Between them the layout of what we
/// bind differs, so a release outside this list is refused rather than tried.
pub const ACCEPTED: [&str; 4] = ["22.11", "23.11", "24.11", "25.11"];

/// What pkg-config knows about DPDK.
#[derive(Debug, PartialEq, Eq)]
pub struct Dpdk {
    pub version: String,
    /// Taken verbatim: `-include rte_config.h` and `-march` decide how the headers read.
    pub cflags: Vec<String>,
    pub libdir: PathBuf,
}

/// Why the build cannot go on. Each is one line that names the remedy.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    NoPkgConfig { tool: String, error: String },
    NoDpdk { said: String },
    WrongVersion { found: String },
    NoLibclang { said: String },
    ClangMismatch { libclang: u32, clang: u32 },
    NoArchive { name: String, libdir: PathBuf },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoPkgConfig { tool, error } => {
                write!(
                    f,
                    "cannot run {tool} ({error}), which finds DPDK: install it (Debian: apt install pkg-config)"
                )
            }
            Problem::NoDpdk { said } => write!(
                f,
                "pkg-config does not find libdpdk: install DPDK's development files (Debian: apt install libdpdk-dev), \
                 or set PKG_CONFIG_PATH to the directory of libdpdk.pc ({said})"
            ),
            Problem::WrongVersion { found } => {
                write!(f, "libdpdk {found} is not supported: RVS builds against DPDK {}", ACCEPTED.join(", "))
            }
            Problem::NoLibclang { said } => write!(
                f,
                "libclang, which reads DPDK's headers, is not found: install it (Debian: apt install libclang-dev), \
                 or set LIBCLANG_PATH to its directory ({said})"
            ),
            Problem::ClangMismatch { libclang, clang } => write!(
                f,
                "libclang is version {libclang} but would use the headers of clang {clang}: set CLANG_PATH to clang-{libclang}, \
                 or LIBCLANG_PATH to the directory of libclang {clang} (Debian: /usr/lib/llvm-{clang}/lib)"
            ),
            Problem::NoArchive { name, libdir } => write!(
                f,
                "no lib{name}.a in {}: this DPDK cannot be linked statically; build without the feature \"static\"",
                libdir.display()
            ),
        }
    }
}

/// Asks pkg-config (the tool, as `$PKG_CONFIG` names it) about DPDK; `path` replaces `PATH`.
///
/// The crate of the same name is of no use here: it drops `-include rte_config.h` and `-march`, and
/// reorders the whole-archive list of a static DPDK around nothing.
pub fn dpdk(tool: &str, path: Option<&OsStr>) -> Result<Dpdk, Problem> {
    let version = ask(tool, path, "--modversion")?;
    if !accepted(&version) {
        return Err(Problem::WrongVersion { found: version });
    }
    let cflags = ask(tool, path, "--cflags")?.split_whitespace().map(str::to_owned).collect();
    let libdir = PathBuf::from(ask(tool, path, "--variable=libdir")?);
    Ok(Dpdk { version, cflags, libdir })
}

fn ask(tool: &str, path: Option<&OsStr>, question: &str) -> Result<String, Problem> {
    let mut command = Command::new(tool);
    command.args([question, "libdpdk"]);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = command
        .output()
        .map_err(|error| Problem::NoPkgConfig { tool: tool.to_owned(), error: error.to_string() })?;
    if !output.status.success() {
        return Err(Problem::NoDpdk { said: one_line(&output.stderr) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `22.11.11` is of the release `22.11`; so is `24.11.0-rc1` of `24.11`.
pub fn accepted(version: &str) -> bool {
    let mut parts = version.split('.');
    let (Some(year), Some(month)) = (parts.next(), parts.next()) else { return false };
    ACCEPTED.iter().any(|release| release.split_once('.') == Some((year, month)))
}

/// Judges a libclang that was (or was not) loaded against the clang whose headers it would read.
/// `libclang`: what it calls itself, or why it could not be loaded. `clang`: what `clang --version`
/// printed, if there is one: without one libclang finds its own headers.
///
/// Two versions that differ end in "invalid conversion between vector type '__m128i'" deep in
/// emmintrin.h, which nobody connects with its cause.
pub fn libclang(libclang: Result<String, String>, clang: Option<&str>) -> Result<(), Problem> {
    let libclang = libclang.map_err(|said| Problem::NoLibclang { said: one_line(said.as_bytes()) })?;
    match (major(&libclang), clang.and_then(major)) {
        (Some(libclang), Some(clang)) if libclang != clang => Err(Problem::ClangMismatch { libclang, clang }),
        _ => Ok(()),
    }
}

/// The 14 of "Debian clang version 14.0.6".
fn major(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("version ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What a program said, fit to stand in one line of ours.
fn one_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("it says no more").to_owned()
}
