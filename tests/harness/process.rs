//! Processes that the harness starts: always with a deadline, always findable by the next run.
//!
//! Two kinds: a command whose output is wanted ([`Command::output`]), and a daemon that goes on beside the test
//! ([`Daemon`]).  Both are put into a process group of their own, so that Ctrl-C in a terminal reaches the
//! harness alone, which then takes everything down in order; and both are written into the cluster's state
//! directory with their start time, so that a later run can end what a killed run has left, and never anything
//! else that happens to have the same number.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{state::State, wait};

/// How long a helper command may take unless the caller says otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Whether nothing is started any more; held while something is started and written down.
static STOPPED: Mutex<bool> = Mutex::new(false);

/// From now on no process is started any more: who tries waits for the end of this process instead.
///
/// For a signal handler that is about to take everything down while another thread is still building.  When it
/// returns, every process that was started is also written down.
pub fn start_no_more() {
    *STOPPED.lock().unwrap_or_else(PoisonError::into_inner) = true;
}

/// Waits for the end of this process if [`start_no_more`] was called.
pub fn stop_here_if_stopping() {
    drop(permission());
}

fn permission() -> MutexGuard<'static, bool> {
    loop {
        let stopped = STOPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*stopped {
            return stopped;
        }
        drop(stopped);
        thread::park();
    }
}

/// A process by number and start time, which together are unique until the machine is booted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub started: u64,
}

impl Identity {
    /// The process that runs under this number now.
    pub fn of(pid: i32) -> Option<Identity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may contain anything; the fields after it may not.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        // Field 3 is the state, field 22 the start time (proc(5)).  A zombie has ended for all that we care.
        let (state, started) = (fields.next()?, fields.nth(18)?.parse().ok()?);
        (state != "Z").then_some(Identity { pid, started })
    }

    /// This very process.
    pub fn own() -> Identity {
        let pid = std::process::id() as i32;
        Identity::of(pid).unwrap_or(Identity { pid, started: 0 })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    /// Kills it if it still runs, and waits until it is gone.
    pub fn end(self) -> Result<()> {
        if self.is_alive() {
            // It may end by itself between the check and the signal; then nothing needs to be done.
            let _ = signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        wait::until_true("a killed process is gone", wait::PATIENCE, || !self.is_alive())
            .with_context(|| format!("process {}", self.pid))
    }
}

/// A program to start on behalf of a cluster.
pub struct Command {
    inner: std::process::Command,
    shown: String,
    state: State,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Command {
    /// Starts describing a call of `program`.
    pub fn new(state: &State, program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref();
        Command {
            inner: std::process::Command::new(program),
            shown: program.to_string_lossy().into_owned(),
            state: state.clone(),
            input: None,
            limit: COMMAND_LIMIT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.shown = format!("{} {}", self.shown, arg.as_ref().to_string_lossy());
        self.inner.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Command {
        args.into_iter().fold(self, |command, arg| command.arg(arg))
    }

    /// Adds the arguments in `text`, which are separated by blanks.
    pub fn words(self, text: &str) -> Command {
        self.args(text.split_ascii_whitespace())
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Command {
        self.inner.env(key, value);
        self
    }

    /// What the program reads from its standard input; by default nothing.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Command {
        self.input = Some(input.into());
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Command {
        self.limit = limit;
        self
    }

    /// Runs it to its end and returns what it said, whether it succeeded or not.
    pub fn output(mut self) -> Result<Output> {
        let shown = self.shown.clone();
        let permission = permission();
        let mut child = self
            .inner
            .process_group(0)
            .stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        self.state.record(child.id());
        drop(permission);
        let input = self.input.take().zip(child.stdin.take());
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        if let Some((bytes, mut pipe)) = input {
            // A program that does not want all of its input closes the pipe: its business.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        let deadline = Instant::now() + self.limit;
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline && !late {
                late = true;
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(1));
        };
        let text = |reader: thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        ensure!(!late, "`{shown}` did not end within {:?}\n{stdout}{stderr}", self.limit);
        Ok(Output { shown, status, stdout, stderr })
    }

    /// Runs it to its end and returns what it printed; an error if it failed.
    pub fn run(self) -> Result<String> {
        self.output()?.success()
    }

    /// Starts it to go on beside the test; what it prints goes to `NAME.log` in the state directory.
    pub fn spawn(mut self, name: &str) -> Result<Daemon> {
        let permission = permission();
        let log = self.state.file(&format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = self
            .inner
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown))?;
        self.state.record(child.id());
        drop(permission);
        Ok(Daemon { name: name.to_owned(), child, log, ended: None })
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What arrived before an error is worth showing; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// What a program said.
#[derive(Debug)]
pub struct Output {
    shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("`{}`: {}\n{}{}", self.shown, self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// Its exit code, if it exited by itself.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A program that runs beside the test; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Daemon {
    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Where its output goes.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// An error, with the end of its log, if it does not run any more.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.status()? {
            bail!("{} ended: {status}\n{}", self.name, tail(&self.log(), 40));
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_running()?;
        signal::kill(Pid::from_raw(self.pid()), signal)?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait::until(&format!("{name} ends"), patience, || self.status()?.context("it runs"))
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if self.status()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Whether a signal ended it, and which.
    pub fn ended_by(&self) -> Option<i32> {
        self.ended.and_then(|status| status.signal())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the next run tries again.
        let _ = self.kill();
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
