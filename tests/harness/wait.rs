//! Waiting for things to become true: always for a condition, always with a deadline.
//!
//! A fixed sleep is either too short on a loaded machine or too long on an idle one, so there is none in
//! these tests.  What is waited for is asked again and again, every few milliseconds, until it holds or the
//! deadline has passed; then the error says what was waited for and what was seen last.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long something that normally takes milliseconds may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` until it answers `Ok`, and returns what it answered; its last error after `patience`.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {patience:?} in vain: {what}")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits until `condition` holds.
pub fn until_true(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, patience, || if condition() { Ok(()) } else { Err(anyhow!("it does not hold")) })
}
