//! The twin of a port in Linux: a TAP of the same name and MAC.
//!
//! Linux talks on it as on a NIC, but there is none to finish a checksum or to cut a 64 kB segment: the TAP has no
//! offloads, so Linux does both before a frame gets here, and what is read can go out of the port as it is.
//!
//! An interface lives as long as somebody holds its descriptor. So it goes with this process, however that ends, and
//! stays, with carrier, addresses, routes and neighbours, if the descriptor is handed on to the program that follows. (One
//! that was made to persist, as one would expect for that, loses its carrier between the two, and with that Linux its
//! neighbours and keepalived its patience.)

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tun_rs::{DeviceBuilder, Layer};

use super::{Linux, ipv6};

/// The TAP of a port. Dropping it removes the interface, and with it the addresses and routes on it.
pub struct Twin {
    tap: AsyncFd<OwnedFd>,
    ifindex: u32,
}

/// Why a twin could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// The name is taken. A TAP that was made to persist would even let itself be attached to, and stay behind
    /// with its addresses.
    #[error(
        "interface {0} exists already, so the port cannot have a twin of that name; \
         give the port another name, or remove the interface: ip link del {0}"
    )]
    Exists(String),
    /// The device of the TUN/TAP driver is missing.
    #[error("cannot make the twin {0}: there is no /dev/net/tun; load the driver: modprobe tun")]
    NoDriver(String),
    /// Linux does not let us.
    #[error("cannot make the twin {0}: permission denied; it takes root, or CAP_NET_ADMIN and /dev/net/tun")]
    Denied(String),
    /// Anything else the driver says.
    #[error("cannot make the twin {0}: {1}")]
    Driver(String, io::Error),
    /// It was made, but could not be set up.
    #[error("cannot set up the twin {0}: {1:#}")]
    Setup(String, anyhow::Error),
}

impl Twin {
    /// Makes the interface, with the MAC and the MTU of the port, and sets it up. `ipv6` is whether IPv6 is configured anywhere.
    pub async fn create(
        linux: &Linux,
        name: &str,
        mac: [u8; 6],
        mtu: u16,
        ipv6: bool,
    ) -> Result<Twin, TwinError> {
        let setup = |error| TwinError::Setup(name.to_owned(), error);
        if linux.index_of(name).await.map_err(setup)?.is_some() {
            return Err(TwinError::Exists(name.to_owned()));
        }
        let builder = DeviceBuilder::new().name(name).layer(Layer::L2).enable(false);
        let builder = builder.with(|options| {
            options.packet_information(false).offload(false);
        });
        let made = builder.build_sync().and_then(|device| device.as_fd().try_clone_to_owned());
        let tap = made.map_err(|error| TwinError::of(name, error))?;
        let ifindex = linux.index_of(name).await.map_err(setup)?;
        let ifindex = ifindex.ok_or_else(|| setup(anyhow::anyhow!("it vanished")))?;
        ipv6::set_up(name, ipv6);
        // The MAC while it is down: the IPv6 link-local address is made from it when it goes up.
        linux.set_link(ifindex, true, Some(mac), Some(mtu.into())).await.map_err(setup)?;
        Ok(Twin { tap: watched(tap).map_err(|error| TwinError::of(name, error))?, ifindex })
    }

    /// Takes over the interface of a predecessor, whose descriptor this is, and has it as the port is now: what is the
    /// same is not touched, since Linux forgets neighbours with a MAC that is set; and how it does IPv6 is as somebody may have
    /// set it since.
    ///
    /// Makes another one if it was renamed or removed meanwhile.
    pub async fn inherit(
        linux: &Linux,
        tap: OwnedFd,
        name: &str,
        mac: [u8; 6],
        mtu: u16,
        ipv6: bool,
    ) -> Result<Twin, TwinError> {
        let setup = |error| TwinError::Setup(name.to_owned(), error);
        let link = match interface_of(&tap) {
            Some(interface) if interface == name => linux.link_of(name).await.map_err(setup)?,
            _ => None,
        };
        let Some((ifindex, link)) = link else {
            tracing::warn!(twin = name, "the predecessor's twin is not there any more; making another one");
            drop(tap);
            return Twin::create(linux, name, mac, mtu, ipv6).await;
        };
        let other_mac = Some(mac).filter(|mac| link.mac != Some(*mac));
        let other_mtu = Some(mtu.into()).filter(|mtu| link.mtu != *mtu);
        if !link.up || other_mac.is_some() || other_mtu.is_some() {
            linux.set_link(ifindex, true, other_mac, other_mtu).await.map_err(setup)?;
        }
        Ok(Twin { tap: watched(tap).map_err(|error| TwinError::of(name, error))?, ifindex })
    }

    /// Index of the interface.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The interface's descriptor once more: it lives as long as one of them does.
    pub fn heirloom(&self) -> io::Result<OwnedFd> {
        self.tap.get_ref().try_clone()
    }

    /// A frame that Linux sends. A frame longer than the buffer is cut. An error means that somebody removed the
    /// interface. Cancel-safe.
    pub async fn recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        // An interface that was removed is an error and nothing else, which who waits for frames only does not hear of.
        let interest = Interest::READABLE | Interest::ERROR;
        self.tap.async_io(interest, |tap| Ok(rustix::io::read(tap, &mut *frame)?)).await
    }

    /// Hands Linux a frame as if it had come in on the interface. Never waits.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.tap.get_ref(), frame)?)
    }
}

#[expect(
    deprecated,
    reason = "an OwnedFd stays open and the same, which is what its successor has the caller promise"
)]
fn watched(tap: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&tap, true)?;
    AsyncFd::new(tap)
}

/// The name of the interface that a TAP's descriptor is attached to, as proc(5) has it.
fn interface_of(tap: &OwnedFd) -> Option<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", tap.as_raw_fd())).ok()?;
    info.lines().find_map(|line| Some(line.strip_prefix("iff:")?.trim().to_owned()))
}

impl TwinError {
    fn of(name: &str, error: io::Error) -> TwinError {
        let name = name.to_owned();
        match error.raw_os_error().map(Errno::from_raw) {
            // Somebody was faster than us.
            Some(Errno::EBUSY | Errno::EEXIST) => TwinError::Exists(name),
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TwinError::NoDriver(name),
            Some(Errno::EPERM | Errno::EACCES) => TwinError::Denied(name),
            _ => TwinError::Driver(name, error),
        }
    }
}
