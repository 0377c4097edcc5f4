//! `rvs doctor`: what on this machine keeps RVS from starting, or from being as fast as it could be, and
//! what to do about it.
//!
//! Each subject is a file. It collects facts from `/proc` and `/sys` below a root, which tests replace, and judges them apart
//! from that, by the configuration. What cannot be read is not judged: a container, a virtual machine or an
//! old kernel lacks one thing or the other, and silence is no fault.

mod admin;
pub mod arp;
mod clock;
mod cores;
mod devices;
mod keep;
mod memory;
mod network;
pub mod spread;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Config;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// RVS does not start with it, or does not do what the file says.
    Error,
    /// It costs speed, or it will surprise somebody.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, e.g. `memory` or `port wan`.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        subject: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Finding {
        let (subject, problem, remedy) = (subject.to_string(), problem.to_string(), remedy.to_string());
        Finding { severity, subject, problem, remedy }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7}  {}: {}\n         -> {}", self.severity, self.subject, self.problem, self.remedy)
    }
}

/// Examines the machine whose `/proc` and `/sys` are below `root`; the worst comes first. Without a configuration only what
/// every one needs is looked at.
pub fn examine(root: &Path, config: Option<&Config>) -> Vec<Finding> {
    let root = Root(root.to_owned());
    let mut findings = clock::judge(&clock::Facts::collect(&root), config);
    if let Some(config) = config {
        findings.extend(memory::judge(&memory::Facts::collect(&root, config), config));
        findings.extend(keep::judge(&keep::Facts::collect(&root, config), config));
        findings.extend(devices::judge(&devices::Facts::collect(&root, config), config));
        findings.extend(cores::judge(&cores::Facts::collect(&root, config), config));
        findings.extend(network::judge(&network::Facts::collect(&root, config), config));
        findings.extend(admin::judge(config, admin::AHEAD));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// A file system to read facts from.
struct Root(PathBuf);

impl Root {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A small file, without the newline at its end.
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    /// A file with a number in it.
    fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.read(path)?.trim().parse().ok()
    }

    /// The names in a directory; none if there is no such directory.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The last part of what a symbolic link points to, e.g. the driver of a device.
    fn target(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether an RVS runs with this configuration, or has left its socket when it was killed.
    fn runs(&self, config: &Config) -> bool {
        self.exists(&config.admin.socket.to_string_lossy())
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// A machine that nobody owns: files with their contents; `-> target` is a symbolic link.
    pub fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = directory.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match contents.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                None => fs::write(path, format!("{contents}\n")).unwrap(),
            }
        }
        let root = Root(directory.path().to_owned());
        (directory, root)
    }

    /// A configuration with this in it besides what it must have.
    pub fn config(device: &str, rest: &str) -> Config {
        let text = format!(
            "{rest}\n[workers]\ncores = [2, 3]\n[[port]]\nname = \"wan\"\ndevice = \"{device}\"\n\
             [[service]]\naddress = \"192.0.2.10:80\"\nmode = \"dr\"\n"
        );
        crate::config::parse(Path::new("f"), text.into()).unwrap()
    }

    /// The findings in short: severity and problem.
    pub fn short(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|finding| format!("{} {}", finding.severity, finding.problem)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_nothing_is_said_without_a_remedy() {
        let (_directory, root) = testing::machine(&[("/proc/sys/kernel/osrelease", "4.19.0")]);
        let findings = examine(&root.0, Some(&testing::config("0000:01:00.0", "")));
        assert!(findings.is_sorted_by_key(|finding| finding.severity), "{findings:#?}");
        assert_eq!(findings[0].severity, Severity::Error);
        assert!(findings.iter().all(|finding| !finding.remedy.is_empty()));
        let shown = findings[0].to_string();
        assert!(shown.starts_with("error    ") && shown.contains("\n         -> "), "{shown}");
    }

    #[test]
    fn this_machine_can_be_examined() {
        examine(Path::new("/"), Some(&testing::config("net_null", "")));
        examine(Path::new("/"), None);
    }
}
