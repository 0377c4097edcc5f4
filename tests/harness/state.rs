//! Who owns which cluster, so that a failed run is cleaned up by the next one.
//!
//! A cluster is a directory `/run/rvs-tests/ID` and namespaces `rvs-ID-*`.  The directory holds the identity of
//! the process that owns it, of every process that was started for it, and all its files and logs.  A cluster
//! whose owner has ended is removed by the next cluster that is made, by whichever process: its processes are
//! ended by number and start time, its namespaces deleted by their recorded names.  Nothing else is touched,
//! whatever it is called.
//!
//! A cluster that is kept on purpose (`rvs-demo --keep`) has no owner; only [`State::remove`] ends it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail};

use crate::process::Identity;

const ROOT: &str = "/run/rvs-tests";
const KEPT: &str = "kept";

/// The state directory of one cluster.
#[derive(Clone, Debug)]
pub struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    directory: PathBuf,
}

impl State {
    /// Makes the directory of a new cluster with an id of its own, after removing what dead runs have left.
    pub fn unique() -> Result<State> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        State::named(&format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes the directory of a new cluster called `id`, after removing what dead runs have left.
    pub fn named(id: &str) -> Result<State> {
        let _lock = lock()?;
        sweep()?;
        let state = State::at(id);
        if state.0.directory.exists() {
            bail!("there is a cluster called {id} already; remove it first");
        }
        fs::create_dir(&state.0.directory)?;
        fs::write(state.file("owner"), line(Identity::own()))?;
        Ok(state)
    }

    /// The cluster called `id`, if there is one.
    pub fn existing(id: &str) -> Option<State> {
        let state = State::at(id);
        state.0.directory.is_dir().then_some(state)
    }

    fn at(id: &str) -> State {
        State(Arc::new(Inner { id: id.to_owned(), directory: Path::new(ROOT).join(id) }))
    }

    /// The id of the cluster.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The path of a file of the cluster.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.directory.join(name)
    }

    /// The path of a file that does not exist yet: `NAME.EXTENSION`, `NAME-2.EXTENSION`, ...
    pub fn fresh_file(&self, name: &str, extension: &str) -> PathBuf {
        let mut path = self.file(&format!("{name}.{extension}"));
        let mut number = 2;
        while path.exists() {
            path = self.file(&format!("{name}-{number}.{extension}"));
            number += 1;
        }
        path
    }

    /// Remembers a process that was started for the cluster.
    pub fn record(&self, pid: u32) {
        // One that has ended already needs no remembering.
        if let Some(identity) = Identity::of(pid as i32) {
            self.append("processes", &line(identity));
        }
    }

    /// Remembers a namespace that is about to be made for the cluster.
    pub fn record_namespace(&self, name: &str) {
        self.append("namespaces", &format!("{name}\n"));
    }

    fn append(&self, file: &str, text: &str) {
        // Short appends are atomic.  If the file system is full, tests fail for better reasons than this.
        if let Ok(mut file) = File::options().create(true).append(true).open(self.file(file)) {
            let _ = file.write_all(text.as_bytes());
        }
    }

    /// Whether this process owns the cluster.
    pub fn is_own(&self) -> bool {
        parse(&read(&self.file("owner"))) == Some(Identity::own())
    }

    /// Whether it was left up on purpose.
    pub fn is_kept(&self) -> bool {
        read(&self.file("owner")) == KEPT
    }

    /// Gives up ownership: the cluster stays until somebody removes it by name.
    pub fn keep(&self) -> Result<()> {
        Ok(fs::write(self.file("owner"), KEPT)?)
    }

    /// Ends the processes of the cluster and deletes its namespaces.
    pub fn dismantle(&self) -> Result<()> {
        for identity in read(&self.file("processes")).lines().filter_map(parse) {
            identity.end()?;
            // What DPDK keeps for a router that could not clean up after itself.
            let runtime = Path::new("/run/dpdk").join(format!("rvs-{}", identity.pid));
            if runtime.is_dir() {
                fs::remove_dir_all(runtime)?;
            }
        }
        for name in read(&self.file("namespaces")).lines() {
            if name.starts_with("rvs-") && Path::new("/run/netns").join(name).exists() {
                // Directly, not as a command of the cluster: this is the way out after everything else failed.
                let output = std::process::Command::new("ip").args(["netns", "del", name]).output()?;
                if !output.status.success() {
                    bail!("cannot delete namespace {name}: {}", String::from_utf8_lossy(&output.stderr));
                }
            }
        }
        Ok(())
    }

    /// Ends and deletes all of the cluster, its directory too.
    pub fn remove(&self) -> Result<()> {
        self.dismantle()?;
        // Of a test that was killed.
        let _ = fs::remove_dir_all(crate::shm::place(self.id()));
        // Again if somebody is still writing into it.
        crate::wait::until("the state directory is deleted", crate::wait::PATIENCE, || {
            match fs::remove_dir_all(&self.0.directory) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            }
        })
        .with_context(|| format!("{}", self.0.directory.display()))
    }

    /// The ends of all logs, for the report of a failure.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        let mut files: Vec<_> = fs::read_dir(&self.0.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "log")) {
            let text = fs::read(file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if !text.trim().is_empty() {
                logs += &format!("--- {}\n{}\n", file.display(), crate::process::tail(&text, 60));
            }
        }
        logs
    }
}

/// Removes the clusters whose owners are gone.  The caller holds the lock.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(ROOT)?.flatten().filter(|entry| entry.path().is_dir()) {
        let owner = read(&entry.path().join("owner"));
        let alive = owner == KEPT || parse(&owner).is_some_and(Identity::is_alive);
        if !alive {
            State::at(&entry.file_name().to_string_lossy()).remove()?;
        }
    }
    Ok(())
}

fn lock() -> Result<File> {
    fs::create_dir_all(ROOT)?;
    let file = File::create(Path::new(ROOT).join("lock"))?;
    file.lock()?;
    Ok(file)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn line(identity: Identity) -> String {
    format!("{} {}\n", identity.pid, identity.started)
}

fn parse(line: &str) -> Option<Identity> {
    let (pid, started) = line.trim().split_once(' ')?;
    Some(Identity { pid: pid.parse().ok()?, started: started.parse().ok()? })
}
