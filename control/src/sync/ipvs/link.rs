//! The wire that directors are on: sockets of one interface and one multicast group.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};

use crate::config::{Config, ConfigErrors, IpvsSync};

/// Bytes that wait in the socket, as far as Linux allows.
const SOCKET_BYTES: usize = 4 << 20;
/// The longest datagram.
const DATAGRAM: usize = 1 << 16;

/// The way from and to directors.
pub struct Link {
    /// Receives what is sent to the group. Not there if nobody would read it: it would be full, and ready, for ever.
    receiver: Option<UdpSocket>,
    /// Sends to the group, and has no port that anybody knows.
    sender: UdpSocket,
    group: SocketAddrV4,
    buffer: Box<[u8]>,
}

/// Opens the link of a configuration, if it has one. The interface must be there: twins have been made before.
pub fn open(config: &Config) -> Result<Option<Link>, ConfigErrors> {
    let Some(ipvs) = &config.ipvs_sync else { return Ok(None) };
    Link::open(ipvs).map(Some).map_err(|error| {
        let message = format_args!(
            "cannot reach directors on {}: {error}; expected the name of a port or of an interface of this machine \
             that is up",
            ipvs.interface
        );
        config.error("ipvs_sync.interface", message)
    })
}

impl Link {
    fn open(ipvs: &IpvsSync) -> io::Result<Link> {
        let index = if_nametoindex(ipvs.interface.as_str())?;
        let group = SocketAddrV4::new(ipvs.group, ipvs.port);
        let socket = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind_device(Some(ipvs.interface.as_bytes()))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let receiver = || -> io::Result<UdpSocket> {
            let receiver = socket()?;
            // A socket of [sync], or another RVS of this machine, may have the port on an address.
            receiver.set_reuse_address(true)?;
            receiver.set_recv_buffer_size(SOCKET_BYTES)?;
            receiver.bind(&SocketAddr::V4(group).into())?;
            receiver.join_multicast_v4_n(&ipvs.group, &InterfaceIndexOrAddress::Index(index))?;
            Ok(receiver.into())
        };
        let receiver = ipvs.role.listens().then(receiver).transpose()?;
        let sender = socket()?;
        sender.set_multicast_ttl_v4(ipvs.ttl.into())?;
        // Not to ourselves.
        sender.set_multicast_loop_v4(false)?;
        Ok(Link { receiver, sender: sender.into(), group, buffer: vec![0; DATAGRAM].into_boxed_slice() })
    }

    /// Where messages come in, if they do.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.receiver.as_ref().map(AsFd::as_fd)
    }

    /// A datagram and who has sent it, if one has come.
    pub fn receive(&mut self) -> io::Result<Option<(Ipv4Addr, &[u8])>> {
        let Some(receiver) = &self.receiver else { return Ok(None) };
        match receiver.recv_from(&mut self.buffer) {
            Ok((length, SocketAddr::V4(from))) => Ok(Some((*from.ip(), &self.buffer[..length]))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a datagram.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.sender.send_to(datagram, self.group).map(drop)
    }
}
