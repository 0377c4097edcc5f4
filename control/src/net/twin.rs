//! The twin of a port in Linux: a TAP of the same name and MAC.
//!
//! Linux talks on it as on a NIC, but there is none to finish a checksum or to cut a 64 kB segment: the TAP has no
//! offloads, so Linux does both before a frame gets here, and what is read can go out of the port as it is.

use std::io;

use nix::errno::Errno;
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

use super::Linux;

/// The TAP of a port. Dropping it removes the interface, and with it the addresses and routes on it.
pub struct Twin {
    tap: AsyncDevice,
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
    /// Makes the interface, with the MAC and the MTU of the port, and sets it up.
    pub async fn create(linux: &Linux, name: &str, mac: [u8; 6], mtu: u16) -> Result<Twin, TwinError> {
        let setup = |error| TwinError::Setup(name.to_owned(), error);
        if linux.index_of(name).await.map_err(setup)?.is_some() {
            return Err(TwinError::Exists(name.to_owned()));
        }
        let builder = DeviceBuilder::new().name(name).layer(Layer::L2).enable(false);
        let builder = builder.with(|options| {
            options.packet_information(false).offload(false);
        });
        let tap = builder.build_async().map_err(|error| TwinError::of(name, error))?;
        let ifindex = linux.index_of(name).await.map_err(setup)?;
        let ifindex = ifindex.ok_or_else(|| setup(anyhow::anyhow!("it vanished")))?;
        // The MAC while it is down: the IPv6 link-local address is made from it when it goes up.
        linux.set_link(ifindex, true, Some(mac), Some(mtu.into())).await.map_err(setup)?;
        Ok(Twin { tap, ifindex })
    }

    /// Index of the interface.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// A frame that Linux sends. A frame longer than the buffer is cut. An error means that somebody removed the
    /// interface. Cancel-safe.
    pub async fn recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.tap.recv(frame).await
    }

    /// Hands Linux a frame as if it had come in on the interface. Never waits.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<usize> {
        self.tap.try_send(frame)
    }
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
