//! Programs of the operator's that run as another user.
//!
//! The standard library can start a program as another user, but then it forks instead of sharing its memory with the
//! child until that has become the program (posix_spawn), and a fork makes every private page of this process copy on
//! write: the workers would fault on each they touch, with every check. A thread of ours that became the user for a
//! moment would cost nothing, but whoever has that user's rights could kill it meanwhile (tgkill), and RVS with it.
//!
//! So what is started is this program once more, which becomes the user and then the program. It is lent what that takes
//! ([`lending`](crate::capabilities::lending)), and has given it up by then.
//!
//! ```text
//!   rvs --(posix_spawn, CAP_SETUID, CAP_SETGID)--> rvs as-user UID GID PROGRAM ARGUMENT... --(exec)--> PROGRAM
//! ```

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use caps::CapSet;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use tokio::process::Command;

use crate::config::User;

/// The first argument. No command of the command line, since nobody types it.
const NAME: &str = "as-user";

/// The command that runs this one as a user. It is to be started by [`lending`](crate::capabilities::lending).
pub(crate) fn wrapped(command: &Command, user: &User) -> Command {
    let inner = command.as_std();
    // This very file, also if another one has been installed under its name meanwhile.
    let mut outer = Command::new("/proc/self/exe");
    outer.args([NAME, &user.uid.to_string(), &user.gid.to_string()]);
    outer.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer
}

/// Does what [`wrapped`] asks for, if these are its arguments, and then never comes back unless it fails.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != *NAME {
        return None;
    }
    let failed = match become_and_run(arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Its first line becomes the reason. Of the statuses that a check can give a meaning to, this is the one that is
    // always a failure.
    eprintln!("{failed:#}");
    Some(ExitCode::FAILURE)
}

fn become_and_run(mut arguments: impl Iterator<Item = OsString>) -> Result<std::convert::Infallible> {
    let mut number = || {
        let argument = arguments.next()?;
        argument.to_str()?.parse::<u32>().ok()
    };
    let (uid, gid) = number().zip(number()).context("expected UID GID PROGRAM ARGUMENT...")?;
    let program = arguments.next().context("expected a program")?;
    become_user(Uid::from_raw(uid), Gid::from_raw(gid))
        .with_context(|| format!("cannot become user {uid} with group {gid}"))?;
    let error = std::process::Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// For good: with no other groups, and no capability.
fn become_user(uid: Uid, gid: Gid) -> Result<()> {
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // Linux takes them from a process that was root and is no longer, but not from one that never was or still is.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn arguments_and_environment_are_handed_on() {
        let mut command = Command::new("/bin/check");
        command.args(["a b", "--c"]).env("RVS_EVENT", "up").env_remove("LANG");
        let wrapped = wrapped(&command, &User { name: "x".to_owned(), uid: 7, gid: 8 });
        let wrapped = wrapped.as_std();
        assert_eq!(wrapped.get_args().collect::<Vec<_>>(), ["as-user", "7", "8", "/bin/check", "a b", "--c"]);
        let environment: Vec<_> = wrapped.get_envs().collect();
        let expected = [("LANG", None), ("RVS_EVENT", Some("up"))];
        assert_eq!(environment, expected.map(|(key, value)| (OsStr::new(key), value.map(OsStr::new))));
    }

    #[test]
    fn who_is_not_meant() {
        for arguments in [&[][..], &["run"], &["--version"]] {
            assert!(main(arguments.iter().map(OsString::from)).is_none(), "{arguments:?}");
        }
    }
}
