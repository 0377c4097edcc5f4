//! Carries changes out, all or none, and takes them back.

use std::fmt::Display;
use std::io::Write;

use anyhow::{Context, Result, bail};

use super::change::{Change, Kernel, Step, driver_of, give_back};
use super::permit::Permit;
use super::record::{Nic, Pages, Record};
use crate::hardware::{Nic as Device, Obstacle, Standing};

/// Whether something is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Steps are printed and done.
    Do,
    /// Steps are printed.
    DryRun,
}

/// Carries changes out. If one fails, those before it are taken back, and the error says why. That nobody reads what is
/// printed any more stops neither.
pub(crate) fn apply(
    kernel: &mut impl Kernel,
    changes: &[Change],
    mode: Mode,
    out: &mut impl Write,
) -> Result<()> {
    if mode == Mode::DryRun {
        return Ok(changes.iter().flat_map(Change::steps).try_for_each(|step| writeln!(out, "{step}"))?);
    }
    let before = Record::of(kernel.root(), changes);
    let noted = Record::read(kernel.root())?;
    noted.clone().unwrap_or_default().and(before.clone()).write(kernel.root())?;
    let Err(error) = changes.iter().try_for_each(|change| carry_out(kernel, change, out)) else {
        return Ok(());
    };
    // Linux forgets what it had set there when a NIC loses its driver.
    let unset = before.nics.iter().filter(|nic| nic.driver.is_some());
    let unset = unset.filter(|nic| driver_of(kernel.root(), &nic.address) != nic.driver);
    let unset: Vec<&str> = unset.map(|nic| nic.address.as_str()).collect();
    say(out, format_args!("# {error:#}: all of it is taken back"));
    let taken_back = restore(kernel, &before, Mode::Do, out);
    taken_back.with_context(|| {
        format!("{error:#}; and it could not be taken back (`rvs setup --undo` tries again)")
    })?;
    noted.unwrap_or_default().write(kernel.root())?;
    Err(error.context(match unset.is_empty() {
        true => "nothing is changed".to_owned(),
        false => format!(
            "all of it is taken back, but what was set in Linux on {} (up, addresses, bonds): set it again",
            unset.join(", ")
        ),
    }))
}

/// Takes back what has been done since this machine was booted, and that a boot may do it again; false if nothing was done.
pub(crate) fn undo(kernel: &mut impl Kernel, mode: Mode, out: &mut impl Write) -> Result<bool> {
    if mode == Mode::Do {
        Permit::forget(kernel.root())?;
    }
    let Some(record) = Record::read(kernel.root())? else { return Ok(false) };
    // Linux would wait for whoever has it open, and this command with it.
    for Nic { address, .. } in &record.nics {
        let nic = Device::read(kernel.root(), address);
        if let Standing::Hindered(obstacle @ Obstacle::InUse { .. }) =
            Standing::of(kernel.root(), address, nic.as_ref())
        {
            bail!("{obstacle}; end it first (`systemctl stop rvs`)");
        }
    }
    restore(kernel, &record, mode, out)?;
    if mode == Mode::Do {
        Record::default().write(kernel.root())?;
    }
    Ok(true)
}

fn carry_out(kernel: &mut impl Kernel, change: &Change, out: &mut impl Write) -> Result<()> {
    for step in change.steps() {
        say(out, &step);
        step.run(kernel)?;
    }
    change.check(kernel.root())
}

/// Prints a line, if somebody reads it.
fn say(out: &mut impl Write, line: impl Display) {
    let _ = writeln!(out, "{line}");
}

/// Brings back what was, the last first. What cannot be is said at the end, so that the rest is.
fn restore(kernel: &mut impl Kernel, record: &Record, mode: Mode, out: &mut impl Write) -> Result<()> {
    let mut failed = Vec::new();
    for Nic { address, driver, driver_override } in record.nics.iter().rev() {
        // One that was pulled out has taken all of it along.
        if !kernel.root().exists(&format!("/sys/bus/pci/devices/{address}")) {
            continue;
        }
        let steps = give_back(kernel.root(), address, driver.as_deref(), driver_override.as_deref());
        run(kernel, &steps, mode, out, &mut failed);
        if mode == Mode::Do && driver_of(kernel.root(), address) != *driver {
            let driver = driver.as_deref().unwrap_or("no driver");
            failed.push(format!("{address} is not with {driver} again"));
        }
    }
    for Pages { file, count, added } in record.pages.iter().rev() {
        let Some(there) = kernel.root().number::<u64>(file) else { continue };
        // Those that somebody has added since are his; and if Linux did not find all, there were never less than before.
        let left = there.saturating_sub(*added).max(*count);
        if left < there {
            run(kernel, &[Step::Write(file.clone(), left.to_string())], mode, out, &mut failed);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

/// Takes steps as far as they go.
fn run(kernel: &mut impl Kernel, steps: &[Step], mode: Mode, out: &mut impl Write, failed: &mut Vec<String>) {
    for step in steps {
        say(out, step);
        if mode == Mode::Do
            && let Err(error) = step.run(kernel)
        {
            failed.push(format!("{error:#}"));
        }
    }
}
