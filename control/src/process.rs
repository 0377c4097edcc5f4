//! A program of the operator's: started in a process group of its own, read, and ended with all that it has started.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::config::User;
use crate::text::first_line;
use crate::{as_user, capabilities};

/// What is kept of a program's output, to find its first line.
const MAX_KEPT: usize = 1024;

/// How a program has ended and the first line that it printed: "exit status 3: disk full", "killed by SIGSEGV".
pub(crate) fn describe(status: ExitStatus, output: &[u8]) -> String {
    let ended = match status.code() {
        Some(code) => format!("exit status {code}"),
        None => {
            let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
            format!("killed by {}", signal.map_or("a signal", Signal::as_str))
        }
    };
    let line = first_line(output);
    if line.is_empty() { ended } else { format!("{ended}: {line}") }
}

/// A program that has been started. Dropped, it is killed with all of its group.
pub(crate) struct Running {
    // Dropped in this order: while the child has not been waited for, its number, which is that of the group, cannot
    // have gone to another.
    group: Group,
    child: Child,
    output: pipe::Receiver,
}

impl Running {
    /// Starts it, in a process group of its own, as a user or else as whom RVS runs as. Blocks while Linux reads the
    /// program from its disk.
    pub(crate) fn start(command: Command, user: Option<&User>) -> io::Result<Running> {
        match user {
            None => Self::start_as_it_is(command),
            Some(user) => {
                let command = as_user::wrapped(&command, user);
                let lent = capabilities::lending(|| Self::start_as_it_is(command));
                lent.map_err(|error| io::Error::other(format!("as user {}: {error:#}", user.name)))?
            }
        }
    }

    fn start_as_it_is(mut command: Command) -> io::Result<Running> {
        // One pipe for both, so that what was printed first comes first.
        let (reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
        let output = pipe::Receiver::from_owned_fd(reader.into())?;
        let child = command.spawn()?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 1);
        Ok(Running { group: Group(leader.map(Pid::from_raw)), child, output })
    }

    /// How it ended, and the beginning of what it printed. The pipe may well have no end, if it has started something
    /// that still holds it.
    pub(crate) async fn end(mut self) -> io::Result<(ExitStatus, Vec<u8>)> {
        let mut kept = Vec::new();
        let mut chunk = [0; MAX_KEPT];
        let mut open = true;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status?,
                read = self.output.read(&mut chunk), if open => match read {
                    Ok(length @ 1..) => keep(&mut kept, &chunk[..length]),
                    _ => open = false,
                },
            }
        };
        // What was printed last. A number that has just become free is not given anew before all others have been, so
        // the group that is killed now is its own, or nobody's.
        drop(self.group);
        while let Ok(length @ 1..) = self.output.try_read(&mut chunk) {
            keep(&mut kept, &chunk[..length]);
        }
        Ok((status, kept))
    }
}

fn keep(kept: &mut Vec<u8>, read: &[u8]) {
    kept.extend_from_slice(&read[..read.len().min(MAX_KEPT - kept.len())]);
}

/// A process group that must not outlive its purpose.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // That there is nobody left is as good.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}
