//! What takes the configuration file: a reload, what differs from the file, and writing into it.
//!
//! To read and check the file of ten thousand services takes most of a second. So another thread does that, and the
//! director goes on answering and judging; then it carries out what the file was read for. One at a time, in the order in
//! which they came, and each with the file as it is after that: who has written a file and then asks for a reload gets
//! what he has written.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Director;
use crate::admin::api;
use crate::config::{self, Config};
use crate::events::Kind;
use crate::services::diff::diff;
use crate::services::{Basis, List, Plan, settings};

/// What the file is read for, and who waits for it.
pub(super) enum Errand {
    /// SIGHUP has nobody who waits.
    Reload {
        dry_run: bool,
        reply: Option<oneshot::Sender<Result<api::Reloaded>>>,
    },
    Diff(oneshot::Sender<Result<Vec<api::Change>>>),
    Save(oneshot::Sender<Result<api::Saved>>),
}

/// The errands that have not been done yet; for the first of them the file is being read.
#[derive(Default)]
pub(super) struct Errands {
    waiting: VecDeque<Errand>,
    reading: Option<JoinHandle<Result<File>>>,
}

/// The file, read for an errand.
pub(super) struct File {
    /// Without its services if they are in the plan.
    config: Config,
    /// For a reload: what becomes of the services, and what that changes.
    planned: Option<(Plan, Vec<api::Change>)>,
}

impl Errands {
    /// Waits until the file has been read for an errand. Cancel-safe.
    pub(super) async fn read(&mut self) -> (Errand, Result<File>) {
        let (Some(reading), false) = (&mut self.reading, self.waiting.is_empty()) else {
            return std::future::pending().await;
        };
        let file = reading.await;
        self.reading = None;
        let errand = self.waiting.pop_front().expect("the file is read for one that waits");
        (errand, file.unwrap_or_else(|error| Err(error.into())))
    }
}

impl Director {
    /// Has the file read for this, after what came before.
    pub(super) fn begin(&mut self, errand: Errand) {
        if let Errand::Reload { dry_run: false, .. } = errand
            && !self.learning
        {
            self.manager.reloading();
        }
        self.errands.waiting.push_back(errand);
        self.read_for_next();
    }

    fn read_for_next(&mut self) {
        let (None, Some(errand)) = (&self.errands.reading, self.errands.waiting.front()) else { return };
        let basis = matches!(errand, Errand::Reload { .. }).then(|| self.services.basis());
        let in_force = self.config.clone();
        self.errands.reading = Some(tokio::task::spawn_blocking(move || read(&in_force, basis)));
    }

    /// Whoever asked may have gone meanwhile; then nobody takes the answer.
    pub(super) async fn finish(&mut self, errand: Errand, file: Result<File>) {
        match errand {
            Errand::Reload { dry_run: true, reply } => {
                let result = file.and_then(|file| self.try_reload_dry(file));
                let _ = reply.map(|reply| reply.send(result));
            }
            Errand::Reload { dry_run: false, reply } => {
                let result = self.reload(file).await;
                let _ = reply.map(|reply| reply.send(result));
            }
            Errand::Diff(reply) => {
                // What the file would have to change to become what is running.
                let changes = file.map(|file| {
                    let services = diff(&file.config.services, self.services.running());
                    settings::diff(&file.config, &self.config).into_iter().chain(services).collect()
                });
                let _ = reply.send(changes);
            }
            Errand::Save(reply) => {
                let _ = reply.send(file.and_then(|file| self.save(&file.config)));
            }
        }
        self.read_for_next();
    }

    /// Puts the file in force if it is good; if not, nothing changes.
    async fn reload(&mut self, file: Result<File>) -> Result<api::Reloaded> {
        let result = match file {
            Ok(file) => self.try_reload(file).await,
            Err(error) => Err(error),
        };
        self.events.publish(Kind::of_reload(&result, self.generation));
        match &result {
            Ok(reloaded) => tracing::info!(
                generation = reloaded.generation,
                services = reloaded.services,
                servers = reloaded.servers,
                "reloaded"
            ),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "reload refused, nothing has changed")
            }
        }
        self.say_ready();
        result
    }

    async fn try_reload(&mut self, file: File) -> Result<api::Reloaded> {
        let (config, plan, changes) = self.planned(file);
        self.check_room(plan.running())?;
        // From here on nothing can fail.
        if let Some((remote, tcp)) = self.remote.as_ref().zip(config.admin.tcp.as_ref()) {
            remote.renew(tcp);
        }
        self.config = config;
        self.services.hash_flows_by(self.config.scheduling.flow_key);
        let overruled = self.services.carry_out(plan, Instant::now());
        self.prepare();
        // With a hundred thousand servers each of these steps takes long enough.
        self.give_way().await;
        self.publish();
        self.give_way().await;
        self.place().await;
        Ok(self.reloaded(changes, overruled, false))
    }

    /// What a reload would do.
    fn try_reload_dry(&self, file: File) -> Result<api::Reloaded> {
        let (_, plan, changes) = self.planned(file);
        self.check_room(plan.running())?;
        Ok(self.reloaded(changes, Vec::new(), true))
    }

    /// What was planned while the file was read, or another plan if something was changed live meanwhile.
    fn planned(&self, file: File) -> (Config, Plan, Vec<api::Change>) {
        let File { config, planned } = file;
        let (plan, services) = match planned {
            Some((plan, changes)) if self.services.fits(&plan) => (plan, changes),
            other => {
                let file = other.map(|(plan, _)| plan.into_file()).unwrap_or_default();
                plan(self.services.basis(), file)
            }
        };
        let changes = settings::diff(&self.config, &config).into_iter().chain(services).collect();
        (config, plan, changes)
    }

    fn reloaded(&self, changes: Vec<api::Change>, overruled: Vec<String>, dry_run: bool) -> api::Reloaded {
        let running = self.services.running();
        let servers = running.iter().map(|service| service.servers.len() as u64).sum();
        let services = running.len() as u64;
        api::Reloaded { generation: self.generation, services, servers, changes, overruled, dry_run }
    }
}

/// The file as it is now, if it could be put in force in the place of what is; with a plan if there is a basis for one.
fn read(in_force: &Config, basis: Option<Basis>) -> Result<File> {
    let mut config = config::load(&in_force.path)?;
    if let Some(key) = in_force.needs_restart(&config) {
        let message = "cannot change while RVS runs; restart it, or put the old value back";
        return Err(config.error(&key, message).into());
    }
    let planned = basis.map(|basis| plan(basis, Arc::new(std::mem::take(&mut config.services))));
    Ok(File { config, planned })
}

fn plan(basis: Basis, file: List) -> (Plan, Vec<api::Change>) {
    let plan = basis.plan(file);
    let changes = diff(plan.before(), plan.running());
    (plan, changes)
}
