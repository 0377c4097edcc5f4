//! A thread with many tasks, such as one for each of ten thousand connections.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, bail};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::time::interval;

use crate::netns::Namespace;

/// Tasks in a thread of a namespace, which end when this is dropped.
///
/// It has open files of its own, so that ten thousand connections with both ends in this process take ten thousand of what
/// Linux allows, and not twenty. So nobody outside can wake it, and it looks itself whether it is to end.
#[derive(Debug)]
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// Starts a thread that prepares something, which may fail, and then runs these tasks until they or this end.
    pub fn start<T, F: Future<Output = Result<()>>>(
        namespace: &Namespace,
        prepare: impl FnOnce() -> Result<T> + Send + 'static,
        body: impl FnOnce(T) -> F + Send + 'static,
    ) -> Result<Background> {
        let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
        // What tokio has once in a process, a pipe for signals, has to be there before the threads' files part ways.
        drop(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        let thread = namespace.spawn(move || {
            unshare(CloneFlags::CLONE_FILES)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let prepared = prepare()?;
            // Whoever waits for it has not gone.
            let _ = ready.send(());
            runtime.block_on(async {
                tokio::select! {
                    result = body(prepared) => result,
                    () = raised(&stopped) => Ok(()),
                }
            })
        });
        match is_ready.recv() {
            Ok(()) => Ok(Background { stop, thread: Some(thread) }),
            Err(_) => match thread.join() {
                Ok(result) => result.and_then(|()| bail!("it has ended at once")),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}

async fn raised(flag: &AtomicBool) {
    let mut looks = interval(Duration::from_millis(20));
    while !flag.load(Ordering::Relaxed) {
        looks.tick().await;
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a background thread had ended: {error:#}");
        }
    }
}
