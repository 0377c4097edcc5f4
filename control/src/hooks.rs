//! Commands of the operator's that are run when something changes.
//!
//! Those of a service run one after the other, in the order of what has happened, so that the last one to run says how
//! it is. Services do not wait for each other. What a command is about it finds in its environment:
//!
//! ```text
//! RVS_EVENT     up, down, quorum_up or quorum_down
//! RVS_SERVICE   tcp/192.0.2.10:80
//! RVS_SERVER    10.0.0.11:8080, with up and down
//! RVS_WEIGHT    the sum of the weights that are up, with quorum_up and quorum_down
//! ```

use std::collections::HashMap;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

use crate::config::User;
use crate::effects::Happening;
use crate::events::{Events, Kind};
use crate::ids::ServiceKey;
use crate::process::{Running, describe};

/// Commands of one service that wait; it takes a service that flaps and commands that hang to have more.
const WAITING: usize = 64;

/// Runs commands. Dropping it kills those that run.
pub struct Hooks {
    events: Events,
    queues: HashMap<ServiceKey, mpsc::Sender<Hook>>,
    tasks: JoinSet<()>,
}

/// A command to be run.
struct Hook {
    service: ServiceKey,
    occasion: &'static str,
    words: Vec<String>,
    environment: Vec<(&'static str, String)>,
    timeout: Duration,
    user: Option<User>,
}

impl Hooks {
    /// Those that fail are told there.
    pub fn new(events: Events) -> Hooks {
        Hooks { events, queues: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Has the command run that belongs to what has happened to this service, if there is one.
    pub fn run(&mut self, hooks: &crate::config::Hooks, happening: &Happening) {
        let (service, occasion, words) = match happening {
            Happening::Server { service, up: true, .. } => (*service, "up", &hooks.up),
            Happening::Server { service, up: false, .. } => (*service, "down", &hooks.down),
            Happening::Quorum { service, up: true, .. } => (*service, "quorum_up", &hooks.quorum_up),
            Happening::Quorum { service, up: false, .. } => (*service, "quorum_down", &hooks.quorum_down),
            Happening::Held { .. } => return,
        };
        if words.is_empty() {
            return;
        }
        let mut environment = vec![("RVS_EVENT", occasion.to_owned()), ("RVS_SERVICE", service.to_string())];
        match happening {
            Happening::Server { server, .. } => environment.push(("RVS_SERVER", server.to_string())),
            Happening::Quorum { weight, .. } => environment.push(("RVS_WEIGHT", weight.to_string())),
            Happening::Held { .. } => {}
        }
        let (words, timeout, user) = (words.clone(), hooks.timeout, hooks.user.clone());
        let hook = Hook { service, occasion, words, environment, timeout, user };
        while self.tasks.try_join_next().is_some() {}
        let (tasks, events) = (&mut self.tasks, &self.events);
        let queue = self.queues.entry(service).or_insert_with(|| {
            let (sender, mut waiting) = mpsc::channel::<Hook>(WAITING);
            let events = events.clone();
            tasks.spawn(async move {
                while let Some(hook) = waiting.recv().await {
                    if let Err(failed) = hook.run().await {
                        events.publish(failed);
                    }
                }
            });
            sender
        });
        if let Err(TrySendError::Full(hook) | TrySendError::Closed(hook)) = queue.try_send(hook) {
            events.publish(hook.failed(format!("it is not run: {WAITING} are waiting already")));
        }
    }

    /// Lets go of services that are gone, when their last commands have run.
    pub fn retain(&mut self, keep: impl Fn(&ServiceKey) -> bool) {
        self.queues.retain(|key, _| keep(key));
    }
}

impl Hook {
    /// Runs it to its end, or says how it has failed.
    async fn run(self) -> Result<(), Kind> {
        let reason = match tokio::time::timeout(self.timeout, self.end()).await {
            Ok(Ok((status, output))) if status.success() => {
                tracing::debug!(hook = self.program(), "{}", describe(status, &output));
                return Ok(());
            }
            Ok(Ok((status, output))) => describe(status, &output),
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                let time = humantime::format_duration(self.timeout);
                format!("it had not ended after {time} and was killed")
            }
        };
        Err(self.failed(reason))
    }

    /// The event for it, which is logged, too.
    fn failed(&self, reason: String) -> Kind {
        let (service, hook, occasion) = (self.service.to_string(), self.program().to_owned(), self.occasion);
        tracing::error!(service, hook, occasion, reason, "a hook has failed");
        Kind::HookFailed { service, hook, occasion, reason }
    }

    fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    async fn end(&self) -> std::io::Result<(ExitStatus, Vec<u8>)> {
        let (program, arguments) = self.words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let user = self.user.clone();
        let started = tokio::task::spawn_blocking(move || Running::start(command, user.as_ref())).await;
        started.map_err(std::io::Error::other)??.end().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    fn key() -> ServiceKey {
        "tcp/192.0.2.10:80".parse().unwrap()
    }

    fn server(up: bool) -> Happening {
        Happening::Server { service: key(), server: "10.0.0.11:8080".parse().unwrap(), up }
    }

    fn shell(script: &str, timeout: Duration) -> crate::config::Hooks {
        let words = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        crate::config::Hooks {
            up: words.clone(),
            down: words.clone(),
            quorum_up: words.clone(),
            quorum_down: words,
            timeout,
            user: None,
        }
    }

    /// What a file says when it has so many lines.
    async fn lines(path: &Path, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn they_run_in_order_and_are_told_what_it_is_about() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let script = format!(
            "[ $RVS_EVENT = down ] && sleep 0.2; echo $RVS_EVENT $RVS_SERVICE $RVS_SERVER $RVS_WEIGHT >> {}",
            file.display()
        );
        let hooks = shell(&script, Duration::from_secs(20));
        let mut running = Hooks::new(Events::default());
        running.run(&hooks, &server(false));
        running.run(&hooks, &Happening::Quorum { service: key(), up: false, weight: 2 });
        running.run(&hooks, &server(true));
        // Also when the service is gone meanwhile.
        running.retain(|_| false);
        assert_eq!(
            lines(&file, 3).await,
            [
                "down tcp/192.0.2.10:80 10.0.0.11:8080",
                "quorum_down tcp/192.0.2.10:80 2",
                "up tcp/192.0.2.10:80 10.0.0.11:8080"
            ]
        );
    }

    #[tokio::test]
    async fn one_that_hangs_or_fails_does_not_keep_the_next_from_running() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        let script = format!("echo $RVS_EVENT >> {}; [ $RVS_EVENT = up ] || sleep 1000", file.display());
        let hooks = shell(&script, Duration::from_millis(300));
        let mut running = Hooks::new(Events::default());
        running.run(&hooks, &server(false));
        let missing = crate::config::Hooks { up: vec!["/nonexistent".to_owned()], ..hooks.clone() };
        running.run(&missing, &server(true));
        running.run(&hooks, &server(true));
        assert_eq!(lines(&file, 2).await, ["down", "up"]);
    }

    #[tokio::test]
    async fn where_there_is_none_nothing_runs() {
        let mut running = Hooks::new(Events::default());
        running.run(&crate::config::Hooks::default(), &server(true));
        assert!(running.queues.is_empty());
    }
}
