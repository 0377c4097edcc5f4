//! The atomics of the connection table, replaced by loom's under `--cfg loom`.

#[cfg(not(loom))]
pub use portable_atomic::AtomicU128;
#[cfg(not(loom))]
pub use std::sync::atomic::Ordering;

#[cfg(loom)]
pub use self::model::{AtomicU128, Ordering};

/// loom has no 128-bit atomic. A mutex around the word makes every operation one indivisible step, and
/// loom explores their interleavings. That is the model of the machine we build for: `cmpxchg16b` with
/// `lock` and the aligned 16-byte load are totally ordered on x86-64.
#[cfg(loom)]
mod model {
    pub use loom::sync::atomic::Ordering;

    #[derive(Debug)]
    pub struct AtomicU128(loom::sync::Mutex<u128>);

    impl Default for AtomicU128 {
        fn default() -> Self {
            AtomicU128::new(0)
        }
    }

    impl AtomicU128 {
        pub fn new(value: u128) -> Self {
            AtomicU128(loom::sync::Mutex::new(value))
        }

        pub fn load(&self, _: Ordering) -> u128 {
            *self.0.lock().expect("loom mutexes are never poisoned")
        }

        pub fn store(&self, value: u128, _: Ordering) {
            *self.0.lock().expect("loom mutexes are never poisoned") = value;
        }

        pub fn compare_exchange(&self, old: u128, new: u128, _: Ordering, _: Ordering) -> Result<u128, u128> {
            let mut word = self.0.lock().expect("loom mutexes are never poisoned");
            if *word == old {
                *word = new;
                Ok(old)
            } else {
                Err(*word)
            }
        }
    }
}
