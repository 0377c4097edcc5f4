//! How far a check has come, for whoever finds that it has not ended in time.
//!
//! A probe that is out of time is dropped and cannot say any more what it was waiting for: a connection, a handshake, an
//! answer, or the rest of one. So it notes that before each wait. Where it notes it belongs to the task
//! (`tokio::task_local!`) and is no argument of all the functions in between; outside of a check a note is lost.

use std::borrow::Cow;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Outcome;

type Note = Arc<Mutex<Cow<'static, str>>>;

tokio::task_local! {
    static CURRENT: Note;
}

/// How far one check has come.
#[derive(Default)]
pub(in crate::health) struct Stage(Note);

impl Stage {
    /// Notes how far this comes.
    pub(in crate::health) fn of<F: Future>(&self, probe: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(Arc::clone(&self.0), probe)
    }

    /// What it says of the server that the check has not ended in this time.
    pub(in crate::health) fn late(&self, timeout: Duration) -> Outcome {
        let note = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let time = humantime::format_duration(timeout);
        Outcome::failed(match &**note {
            "" => format!("timed out after {time}"),
            stage => format!("timed out after {time} while {stage}"),
        })
    }
}

/// From now on the check is at this: "waiting for an answer".
pub(super) fn note(stage: impl Into<Cow<'static, str>>) {
    let _ =
        CURRENT.try_with(|current| *current.lock().unwrap_or_else(PoisonError::into_inner) = stage.into());
}
