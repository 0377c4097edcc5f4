//! Where an upgrade is asked for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, oneshot};

use super::{Estate, Proof};
use crate::admin::api;
use crate::admin::upgrade::Question;
use crate::capabilities;
use crate::config::Config;
use crate::events::{Events, Kind};
use crate::keep;
use crate::stages::Stages;

/// Takes orders, one in the life of a process. Copies are the same desk.
#[derive(Clone, Debug)]
pub struct Desk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Where this program was started from.
    program: PathBuf,
    config: Config,
    /// Gone with the first order.
    order: Mutex<Option<oneshot::Sender<Order>>>,
    last: OnceLock<api::Upgrade>,
    /// RVS has been told to stop.
    is_closed: AtomicBool,
    events: Events,
}

/// To hand over, to a program that has proven itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What the upgrade is called.
    pub id: String,
    /// The program.
    pub binary: PathBuf,
}

impl Desk {
    /// A desk, and what comes of it.
    pub fn open(config: &Config, events: &Events) -> (Desk, oneshot::Receiver<Order>) {
        let (sender, receiver) = oneshot::channel();
        let (order, last) = (Mutex::new(Some(sender)), OnceLock::new());
        // Services can be many, and are not asked about.
        let config = Config { services: Vec::new(), ..config.clone() };
        let is_closed = AtomicBool::default();
        let shared =
            Shared { program: own_program(), config, order, last, is_closed, events: events.clone() };
        (Desk(Arc::new(shared)), receiver)
    }

    /// Has the other program prove itself, and then orders the upgrade. Whatever is refused changes nothing.
    pub async fn ask(&self, question: Question) -> Result<api::Upgrading> {
        const UNDER_WAY: &str = "an upgrade is under way already";
        let mut order = self.0.order.try_lock().context(UNDER_WAY)?;
        ensure!(order.is_some(), UNDER_WAY);
        let result = self.prove(&question).await;
        if let Err(error) = &result {
            let error = format!("{error:#}");
            tracing::error!(error, "upgrade refused, nothing has changed");
            self.0.events.publish(Kind::UpgradeFailed { error });
        }
        let (binary, proof) = result?;
        ensure!(!self.0.is_closed.load(Ordering::Relaxed), "RVS is stopping");
        let id = format!("{:016x}", RandomState::new().build_hasher().finish());
        let from = env!("CARGO_PKG_VERSION").to_owned();
        tracing::info!(from, to = proof.version, binary = %binary.display(), "upgrade");
        self.0.events.publish(Kind::Upgrading { version: proof.version.clone() });
        let upgrading =
            api::Upgrading { id: id.clone(), from, to: proof.version, binary: binary.display().to_string() };
        let sent = order.take().is_some_and(|order| order.send(Order { id, binary }).is_ok());
        ensure!(sent, "RVS is stopping");
        Ok(upgrading)
    }

    /// RVS has been told to stop, and becomes nothing any more.
    pub fn close(&self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
    }

    async fn prove(&self, question: &Question) -> Result<(PathBuf, Proof)> {
        let typed = question.binary.clone();
        let binary = typed.unwrap_or_else(|| self.0.program.clone());
        ensure!(
            binary.is_absolute() || question.binary.is_none(),
            "binary: {:?} is no absolute path; expected one, e.g. /usr/local/sbin/rvs",
            binary.display().to_string()
        );
        let config = &self.0.config;
        capabilities::enough_to_start_again(config)?;
        // Whether Linux can, which there is no other way to know; when it comes to it there may be more to close.
        dpdk::close_on_exec().context("an upgrade takes Linux 5.11; restart instead")?;
        let proof = Proof::of(&binary, &config.path).await?;
        let is_kept = config.table.keep.as_deref().is_some_and(keep::is_kept);
        let not_now = (!is_kept).then_some("connections are not kept at the moment, the log says why");
        if let Some(reason) = proof.loses(config).or(not_now)
            && !question.lose_connections
        {
            bail!(
                "{reason}, so that the new program will not know the connections; expected lose_connections \
                 (rvs upgrade --lose-connections) if they may be lost"
            );
        }
        Ok((binary, proof))
    }

    /// Each signal asks for an upgrade to what is now where this program was started from.
    pub async fn heed(&self, mut signal: Signal) {
        while let Some(()) = signal.recv().await {
            // What is wrong has been said in the log and as an event.
            let _ = self.ask(Question::default()).await;
        }
    }

    /// This process has come from an upgrade, and has started in these stages.
    pub fn tell(&self, mut estate: Estate, stages: &Stages) {
        estate.gap.pass_start(stages);
        let upgrade = api::Upgrade::from(estate);
        match &upgrade.error {
            None => {
                let (from, milliseconds) = (upgrade.from.clone(), upgrade.gap_us / 1_000);
                let took = |stage: &api::Stage| format!("{} {:.1} ms", stage.name, stage.us as f64 / 1e3);
                let stages: Vec<String> = upgrade.stages.iter().map(took).collect();
                tracing::info!(from, milliseconds, stages = stages.join(", "), "upgraded");
                let version = env!("CARGO_PKG_VERSION");
                self.0.events.publish(Kind::Upgraded { from, version, milliseconds });
            }
            Some(error) => {
                tracing::error!(error, "the new program could not be started; the old one runs again");
                self.0.events.publish(Kind::UpgradeFailed { error: error.clone() });
            }
        }
        // It is told once.
        let _ = self.0.last.set(upgrade);
    }

    /// The upgrade that this process has come from.
    pub fn last(&self) -> api::Upgrades {
        api::Upgrades { last: self.0.last.get().cloned() }
    }
}

/// Where this program was started from. If that is a link, what matters is where it will lead.
fn own_program() -> PathBuf {
    let typed = std::env::args_os().next().map(PathBuf::from);
    let is_path = |path: &PathBuf| path.components().count() > 1 && path.exists();
    // One that was found by its name; this is asked for at the start, when the file is still the one that runs.
    let found = || std::env::current_exe().unwrap_or_else(|_| PathBuf::from("rvs"));
    typed.filter(is_path).unwrap_or_else(found)
}
