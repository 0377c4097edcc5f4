//! A change of the machine: the steps that it takes, and how it is taken back.

use std::fmt;
use std::io;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::root::Root;

/// Who carries out steps: Linux, or a tree of files that behaves like it.
pub(crate) trait Kernel {
    /// What it shows.
    fn root(&self) -> &Root;

    /// Writes a line into a file of sysfs.
    fn write(&mut self, path: &str, line: &str) -> io::Result<()>;

    /// Loads a module with those that it needs.
    fn load(&mut self, module: &str) -> Result<()>;
}

/// This machine.
pub(crate) struct Linux(pub Root);

impl Kernel for Linux {
    fn root(&self) -> &Root {
        &self.0
    }

    fn write(&mut self, path: &str, line: &str) -> io::Result<()> {
        // Without O_CREAT: sysfs has the file, or it is the wrong one.
        let mut file = std::fs::OpenOptions::new().write(true).open(self.0.path(path))?;
        io::Write::write_all(&mut file, format!("{line}\n").as_bytes())
    }

    fn load(&mut self, module: &str) -> Result<()> {
        let output = Command::new("modprobe").arg(module).output().context("cannot run modprobe")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim());
        Ok(())
    }
}

/// Something that is done as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Loads a driver.
    Load(&'static str),
    /// Gives a NIC to a driver.
    Bind {
        /// Its address.
        address: String,
        /// The driver that has it.
        from: Option<String>,
        /// The driver that is to have it.
        to: &'static str,
    },
    /// Reserves hugepages.
    Reserve {
        /// By this file.
        file: String,
        /// So many there are.
        from: u64,
        /// So many there are to be.
        to: u64,
    },
}

/// What can be typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `modprobe MODULE`
    Load(String),
    /// `echo LINE > PATH`
    Write(String, String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Load(module) => write!(f, "modprobe {module}"),
            Step::Write(path, line) if line.is_empty() => write!(f, "echo > {path}"),
            Step::Write(path, line) => write!(f, "echo {line} > {path}"),
        }
    }
}

impl Step {
    /// Carries it out.
    pub fn run(&self, kernel: &mut impl Kernel) -> Result<()> {
        match self {
            Step::Load(module) => kernel.load(module).with_context(|| format!("cannot load {module}")),
            Step::Write(path, line) => kernel.write(path, line).map_err(|error| {
                let remedy =
                    if error.kind() == io::ErrorKind::PermissionDenied { "; it takes root" } else { "" };
                anyhow::anyhow!("cannot write {line:?} to {path}: {error}{remedy}")
            }),
        }
    }
}

impl Change {
    /// What is to be typed for it.
    pub fn steps(&self) -> Vec<Step> {
        match self {
            Change::Load(module) => vec![Step::Load((*module).to_owned())],
            Change::Bind { address, from, to } => hand_over(address, from.as_deref(), to),
            Change::Reserve { file, to, .. } => vec![Step::Write(file.clone(), to.to_string())],
        }
    }

    /// Whether it has had its effect: a driver may refuse a NIC, and Linux may not find the memory, without an error.
    pub fn check(&self, root: &Root) -> Result<()> {
        match self {
            Change::Load(_) => {}
            Change::Bind { address, to, .. } => {
                let driver = driver_of(root, address);
                ensure!(driver.as_deref() == Some(*to), "{to} does not take {address}; `dmesg` may tell why");
            }
            Change::Reserve { file, from, to } => {
                let there: u64 = root.number(file).unwrap_or(*from);
                if there < *to {
                    bail!(
                        "Linux has found memory for {there} of {to} hugepages ({file}): it is scattered or in use; \
                         reserve them at boot (hugepages={to} on the kernel's command line), or lower eal.memory"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Gives a NIC to a driver that does not know it by itself; it stays its own until that is taken back.
fn hand_over(address: &str, from: Option<&str>, to: &str) -> Vec<Step> {
    let of_device = |file: &str| format!("/sys/bus/pci/devices/{address}/{file}");
    let mut steps = vec![Step::Write(of_device("driver_override"), to.to_owned())];
    steps.extend(from.map(|_| Step::Write(of_device("driver/unbind"), address.to_owned())));
    steps.push(Step::Write("/sys/bus/pci/drivers_probe".to_owned(), address.to_owned()));
    steps
}

/// Gives a NIC back to the driver that had it, or to none.
pub(super) fn give_back(root: &Root, address: &str, to: Option<&str>, forced: Option<&str>) -> Vec<Step> {
    let of_device = |file: &str| format!("/sys/bus/pci/devices/{address}/{file}");
    let mut steps = Vec::new();
    if forced_driver(root, address).as_deref() != forced {
        steps.push(Step::Write(of_device("driver_override"), forced.unwrap_or_default().to_owned()));
    }
    let has = driver_of(root, address);
    if has.as_deref() == to {
        return steps;
    }
    steps.extend(has.map(|_| Step::Write(of_device("driver/unbind"), address.to_owned())));
    steps.extend(
        to.map(|driver| Step::Write(format!("/sys/bus/pci/drivers/{driver}/bind"), address.to_owned())),
    );
    steps
}

pub(super) fn driver_of(root: &Root, address: &str) -> Option<String> {
    root.target(&format!("/sys/bus/pci/devices/{address}/driver"))
}

/// The driver that somebody has said it is to have.
pub(super) fn forced_driver(root: &Root, address: &str) -> Option<String> {
    let driver = root.read(&format!("/sys/bus/pci/devices/{address}/driver_override"))?;
    (!driver.is_empty() && driver != "(null)").then_some(driver)
}
