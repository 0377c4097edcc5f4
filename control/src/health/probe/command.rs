//! The command check: a server is well if a program of the operator's ends with 0.
//!
//! The program has a process group of its own, and when the check is over, for whatever reason (it has ended, it is out
//! of time, a reload or the end of RVS), whoever is left in that group is killed. So a program that hangs leaves
//! nothing behind, and neither do those it has started; only what takes itself out of the group (`setsid`) lives on.
//!
//! It sees `RVS_ADDRESS`, `RVS_PORT` and `RVS_SERVER` (both) in its environment, and `{address}` and `{port}` in its
//! arguments are replaced. Of what it prints the first line goes into the reason, the rest is read and forgotten.
//!
//! It runs as the user that RVS runs as, or as the check's (`as_user.rs`).

use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Outcome, Probe};
use crate::config::checks;
use crate::process::{Running, describe};

/// Runs a program.
pub(super) struct Command {
    check: Arc<checks::Command>,
}

impl Command {
    pub(super) fn new(check: &Arc<checks::Command>) -> Command {
        Command { check: Arc::clone(check) }
    }

    async fn run(&self, server: SocketAddr) -> Result<Outcome, Outcome> {
        let command = self.command(server);
        // Linux reads the program from its disk while the caller waits. If this future is dropped meanwhile, so is what
        // comes of it.
        let check = Arc::clone(&self.check);
        let started = tokio::task::spawn_blocking(move || Running::start(command, check.user.as_ref())).await;
        let started = started.map_err(|error| Outcome::Unknown(error.to_string().into()))?;
        let running = started.map_err(|error| match Outcome::of_error(&error) {
            Outcome::Failed(why) => {
                let why = format!("cannot run {}: {why}", self.check.program);
                // Not Linux has refused it, but RVS, which cannot become the user.
                match error.raw_os_error() {
                    Some(_) => Outcome::failed(why),
                    None => Outcome::Unknown(why.into()),
                }
            }
            other => other,
        })?;
        let (status, output) = running.end().await.map_err(|error| Outcome::of_error(&error))?;
        Ok(self.judge(status, &output))
    }

    fn command(&self, server: SocketAddr) -> tokio::process::Command {
        let (address, port) = (server.ip().to_string(), server.port().to_string());
        let filled = |argument: &String| argument.replace("{address}", &address).replace("{port}", &port);
        let mut command = tokio::process::Command::new(&self.check.program);
        command
            .args(self.check.arguments.iter().map(filled))
            .env("RVS_ADDRESS", &address)
            .env("RVS_PORT", &port)
            .env("RVS_SERVER", server.to_string());
        command
    }

    fn judge(&self, status: ExitStatus, output: &[u8]) -> Outcome {
        let what = describe(status, output);
        match status.code() {
            Some(0) => Outcome::passed(what),
            // keepalived's misc_dynamic.
            Some(code @ 2..=255) if self.check.dynamic_weight => {
                Outcome::Passed { what: what.into(), weight: u32::try_from(code - 2).ok() }
            }
            _ => Outcome::failed(what),
        }
    }
}

impl Probe for Command {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move { self.run(address).await.unwrap_or_else(|outcome| outcome) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{IpAddr, Ipv4Addr};
    use std::path::Path;
    use std::time::{Duration, Instant};

    use nix::unistd::Pid;
    use tokio::sync::mpsc::unbounded_channel;

    use super::super::fixture::{kind, outcome};
    use super::*;
    use crate::config::Check;
    use crate::health::{Health, News, Target};

    const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11)), 8080);

    /// A check by the shell, whose `$0` and `$1` are the placeholders.
    fn shell(script: &str, keys: &str) -> Check {
        kind(&format!(
            "kind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''', '{{address}}', ':{{port}}']\n{keys}"
        ))
    }

    async fn run(script: &str, keys: &str) -> Outcome {
        outcome(&shell(script, keys), SERVER).await
    }

    fn weighs(what: &'static str, weight: u32) -> Outcome {
        Outcome::Passed { what: what.into(), weight: Some(weight) }
    }

    #[tokio::test]
    async fn exit_statuses() {
        let dynamic = "dynamic_weight = true";
        assert_eq!(run("exit 0", "").await, Outcome::passed("exit status 0"));
        assert_eq!(run("exit 1", "").await, Outcome::failed("exit status 1"));
        assert_eq!(run("exit 12", "").await, Outcome::failed("exit status 12"));
        assert_eq!(run("exit 0", dynamic).await, Outcome::passed("exit status 0"));
        assert_eq!(run("exit 1", dynamic).await, Outcome::failed("exit status 1"));
        assert_eq!(run("exit 2", dynamic).await, weighs("exit status 2", 0));
        assert_eq!(run("exit 12", dynamic).await, weighs("exit status 12", 10));
        assert_eq!(run("exit 255", dynamic).await, weighs("exit status 255", 253));
        assert_eq!(run("kill -SEGV $$", dynamic).await, Outcome::failed("killed by SIGSEGV"));
    }

    #[tokio::test]
    async fn what_it_is_told_and_what_it_says() {
        let script = r#"[ "$RVS_ADDRESS:$RVS_PORT" = "$RVS_SERVER" ] && echo "$0 $1 $RVS_SERVER" >&2; echo more; exit 3"#;
        let why = "exit status 3: 10.0.0.11 :8080 10.0.0.11:8080";
        assert_eq!(run(script, "").await, Outcome::failed(why));
        // The address alone as it is, and with its port in brackets.
        let script = r#"[ "[$RVS_ADDRESS]:$RVS_PORT" = "$RVS_SERVER" ] && echo "$0 $1 $RVS_SERVER""#;
        let server = "[2001:db8::11]:8080".parse().unwrap();
        let told = "exit status 0: 2001:db8::11 :8080 [2001:db8::11]:8080";
        assert_eq!(outcome(&shell(script, ""), server).await, Outcome::passed(told));
        let read = run("cat; printf '\\n\\033[2Jend\\n'", "").await;
        assert_eq!(read, Outcome::passed("exit status 0: \u{fffd}[2Jend"), "its input is empty");
        // More than a pipe holds.
        let long = run("head -c 1000000 /dev/zero | tr '\\0' x", "").await;
        assert_eq!(long, Outcome::passed(format!("exit status 0: {}...", "x".repeat(100))));
    }

    #[tokio::test]
    async fn what_cannot_be_run() {
        let run = async |program: &str| {
            outcome(&kind(&format!("kind = \"command\"\ncommand = [\"{program}\"]")), SERVER).await
        };
        let missing = "cannot run /nonexistent/check: No such file or directory";
        assert_eq!(run("/nonexistent/check").await, Outcome::failed(missing));
        assert_eq!(run("/etc/passwd").await, Outcome::failed("cannot run /etc/passwd: Permission denied"));
    }

    /// Whether a process is there, running or waiting to be waited for by us. What its parent has left to init is gone
    /// when it has ended: how soon init notices is not ours.
    fn is_there(pid: Pid) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // The name before it, in brackets, can contain anything.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[0] != "Z" || fields[1] == std::process::id().to_string()
    }

    async fn assert_gone(pids: &[Pid]) {
        let start = Instant::now();
        while let Some(pid) = pids.iter().find(|pid| is_there(**pid)) {
            assert!(start.elapsed() < Duration::from_secs(20), "{pid} is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The numbers that a script has written down, one a line.
    async fn written_down(path: &Path, count: usize) -> Vec<Pid> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.matches('\n').count() >= count {
                return text.lines().map(|line| Pid::from_raw(line.parse().unwrap())).collect();
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{text:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    const HANGS: &str = "sleep 3600 & echo $! >>$PIDS; echo $$ >>$PIDS; wait";

    /// The dropped check is the time limit, the reload and the end of the program alike.
    #[tokio::test]
    async fn nothing_of_a_check_outlives_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let check = shell(&HANGS.replace("$PIDS", path.to_str().unwrap()), "timeout = \"1h\"");
        let probing = tokio::spawn(async move { outcome(&check, SERVER).await });
        let pids = written_down(&path, 2).await;
        assert!(pids.iter().all(|pid| is_there(*pid)), "both are there while it runs");
        probing.abort();
        assert!(probing.await.unwrap_err().is_cancelled());
        assert_gone(&pids).await;
    }

    #[tokio::test]
    async fn a_check_that_never_ends_is_out_of_time_and_then_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let script = HANGS.replace("$PIDS", path.to_str().unwrap());
        assert_eq!(run(&script, "timeout = \"2s\"").await, Outcome::failed("timed out after 2s"));
        assert_gone(&written_down(&path, 2).await).await;
    }

    /// What it leaves behind holds its pipe, but nobody waits for that.
    #[tokio::test]
    async fn a_check_that_ends_before_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let script = format!("echo well; sleep 3600 & echo $! >>{}; exit 0", path.display());
        assert_eq!(run(&script, "").await, Outcome::passed("exit status 0: well"));
        assert_gone(&written_down(&path, 1).await).await;
    }

    /// Through the whole of it: the weight becomes news, and a reload without the server ends what runs.
    #[tokio::test]
    async fn a_weight_becomes_news_and_a_reload_ends_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let hangs = HANGS.replace("$PIDS", path.to_str().unwrap());
        let script = format!(
            "cd {}; if [ -e once ]; then {hangs}; fi; touch once; exit 12",
            directory.path().display()
        );
        let keys = "dynamic_weight = true\ntimeout = \"1h\"\ninterval = \"10ms\"";
        let target = Target { address: SERVER, check: shell(&script, keys) };
        let (sender, mut receiver) = unbounded_channel();
        let mut health = Health::new(sender, 512);
        let user = ("tcp/192.0.2.10:80".parse().unwrap(), SERVER);
        health.watch([(target.clone(), user)]);
        assert_eq!(receiver.recv().await, Some(News::Weight(target, 10)));
        let pids = written_down(&path, 2).await;
        assert!(pids.iter().all(|pid| is_there(*pid)));
        health.watch([]);
        assert_gone(&pids).await;
    }
}
