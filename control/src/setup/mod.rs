//! `rvs setup`: gives DPDK what a configuration names, NICs and hugepages, and takes it back.
//!
//! ```text
//!   configuration --+                 +--> refusals: nothing is done at all
//!   sysfs ----------+--> Plan --------+
//!   lifelines ------+                 +--> changes --> note down what was before --> do them, one by one
//!                                                         /var/lib/rvs/setup.json      |
//!                                                                 |                    v what fails takes back
//!                                                                 +----> --undo          the others
//! ```
//!
//! Only what is missing is done. Each step is printed as one would type it, so that an operator sees, and can do by hand, what
//! dpdk-devbind.py, driverctl and sysctl would do. Nothing here survives a boot, neither the drivers nor the pages: a unit
//! runs `rvs setup --boot` then, which takes the NICs that a run by hand has taken ([`Permit`]).

mod change;
mod doing;
mod permit;
mod plan;
mod record;
#[cfg(test)]
mod tests;

pub(crate) use change::Linux;
pub(crate) use doing::{Mode, apply, undo};
pub(crate) use permit::Permit;
pub(crate) use plan::{Consent, plan};
