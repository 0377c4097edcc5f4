//! Sending frames as they are, right or wrong.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::netns::Namespace;

/// A packet socket (packet(7)) that sends on one interface and receives nothing.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl RawSender {
    /// Opens one on `interface` of `namespace`.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<RawSender> {
        namespace.enter(|| {
            let interface = nix::ifaddrs::getifaddrs()?
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .with_context(|| format!("no interface {interface}"))?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            Ok(RawSender { socket, interface })
        })
    }

    /// Sends a frame from its destination MAC on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty())
            .with_context(|| format!("cannot send {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "sent {sent} of {} bytes", frame.len());
        Ok(())
    }
}
