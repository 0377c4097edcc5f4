//! One device, one RVS.
//!
//! Two that read the same interface would both balance every packet; DPDK's socket drivers do not mind. So each RVS holds a
//! name for each of its devices: an abstract Unix socket, which is as wide as a network namespace, as interfaces are, and
//! which Linux takes away with whoever holds it, however that ends. (A PCI device is also locked by its driver.)

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// A device that this process has to itself, as far as other RVS go.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, not used")] UnixListener);

impl Claim {
    /// Takes a device by its identity, e.g. `interface eth1`; none if another RVS has it.
    pub fn take(identity: &str) -> io::Result<Option<Claim>> {
        let name = SocketAddr::from_abstract_name(format!("rvs device {identity}"))?;
        match UnixListener::bind_addr(&name) {
            Ok(held) => Ok(Some(Claim(held))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let identity = format!("test {}", std::process::id());
        let held = Claim::take(&identity).unwrap();
        assert!(held.is_some());
        assert!(Claim::take(&identity).unwrap().is_none());
        assert!(Claim::take("another").unwrap().is_some());
        drop(held);
        assert!(Claim::take(&identity).unwrap().is_some());
    }
}
