//! The network cards (NICs) of this machine, as Linux shows them: what they are, whose they are, and whether DPDK could have
//! them. Nothing is opened and nothing is changed.
//!
//! ```text
//!   /sys/bus/pci/devices/A ---> Nic ---------------+--> standing: can DPDK have it, and if not, why
//!   /proc/PID/fd           ---> who has it open ---+
//!   netlink, getifaddrs,   ---> Lifelines: what Linux reaches the world by, and the operator this machine
//!   SSH_CONNECTION
//! ```
//!
//! `rvs ports`, `rvs setup`, `rvs doctor` and the start itself all ask here, so that they say the same in the same words.

mod lifelines;
mod names;
mod nic;
mod standing;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use lifelines::Lifelines;
pub(crate) use names::Names;
pub(crate) use nic::{Interface, Nic, nics};
pub(crate) use standing::{Iommu, Obstacle, Standing, UIO, VFIO, obstacles};
