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
use std::path::Path;

use serde::Serialize;

use crate::config::Config;
use crate::root::Root;

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
    /// What kind of finding it is, as the manual's table of them has it: `nic-linux`.
    pub key: &'static str,
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
        key: &'static str,
        severity: Severity,
        subject: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Finding {
        let (subject, problem, remedy) = (subject.to_string(), problem.to_string(), remedy.to_string());
        Finding { key, severity, subject, problem, remedy }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { key, severity, subject, problem, remedy } = self;
        write!(f, "{severity:<7}  {subject}: {problem} [{key}]\n         -> {remedy}")
    }
}

/// Examines the machine whose `/proc` and `/sys` are below `root`; the worst comes first. Without a configuration only what
/// every one needs is looked at.
pub fn examine(root: &Path, config: Option<&Config>) -> Vec<Finding> {
    let root = Root::new(root);
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

/// What is worth a word in the log when RVS starts: packets that go from one NUMA node to another, NICs that nothing keeps from
/// the memory of others, and too few hugepages for what is configured, of which EAL only says that it has not got them.
pub fn at_start(root: &Path, config: &Config) -> Vec<Finding> {
    let mut findings = examine(root, Some(config));
    findings.retain(|finding| match finding.key {
        "numa-workers" | "hugepages-node" | "nic-unprotected" => true,
        "hugepages-few" => finding.severity == Severity::Error,
        _ => false,
    });
    findings
}

#[cfg(test)]
mod testing {
    pub use crate::root::testing::machine;

    use super::*;

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
        let (directory, _) = testing::machine(&[("/proc/sys/kernel/osrelease", "4.19.0")]);
        let findings = examine(directory.path(), Some(&testing::config("0000:01:00.0", "")));
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
