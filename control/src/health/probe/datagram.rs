//! A socket for datagrams to one server, and what ICMP says of them.

use std::io::{self, Read};
use std::net::SocketAddr;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Outcome;

/// The largest that IPv4 has, and IPv6 without jumbograms.
const MAX_DATAGRAM: usize = 65_535;

/// A connected socket: it receives from this server only.
///
/// The type says UDP, but it is no more than a descriptor that can be waited for: to send, to receive and to ask for an
/// error are the same calls for the sockets of ICMP.
pub(super) struct Datagrams(UdpSocket);

impl Datagrams {
    /// With a local port of its own.
    pub(super) fn udp(server: SocketAddr) -> io::Result<Datagrams> {
        Self::connect(Type::DGRAM, Protocol::UDP, server)
    }

    pub(super) fn connect(kind: Type, protocol: Protocol, server: SocketAddr) -> io::Result<Datagrams> {
        let socket = Socket::new(Domain::for_address(server), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        // Without it Linux keeps from us what may be transient: that a host cannot be reached (ip(7), ipv6(7)).
        match server {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        socket.connect(&server.into())?;
        Ok(Datagrams(UdpSocket::from_std(socket.into())?))
    }

    /// Hands a datagram to Linux, which has room for the first of a socket, or else it is short of memory.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        SockRef::from(&self.0).send(datagram).map(drop)
    }

    /// The next datagram, or the error that ICMP has brought.
    ///
    /// An error wakes nobody who only wants to read (epoll says EPOLLERR and not EPOLLIN), so both are waited for, and
    /// the error is asked for first.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let attempt = || {
            if let Some(error) = self.0.take_error()? {
                return Err(error);
            }
            // Only now, so that a thousand checks that wait hold no buffers.
            let mut datagram = vec![0; MAX_DATAGRAM];
            let length = (&*SockRef::from(&self.0)).read(&mut datagram)?;
            datagram.truncate(length);
            Ok(datagram)
        };
        self.0.async_io(Interest::READABLE | Interest::ERROR, attempt).await
    }
}

/// What an error of a socket for datagrams says: nobody refuses a connection here.
pub(super) fn of_error(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Outcome::failed("port unreachable"),
        _ => Outcome::of_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{kind, outcome_in_namespace};
    use super::*;

    /// A network in which nobody has this address, and in which that is found out in 150 ms.
    const NO_NEIGHBOUR: &str = "
        ip link set lo up
        ip link add rvs-a type veth peer name rvs-b
        ip address add 10.9.9.1/24 dev rvs-a
        ip address add 2001:db8:9::1/64 dev rvs-a nodad
        ip link set rvs-a up
        ip link set rvs-b up
        for family in 4 6; do echo 50 >/proc/sys/net/ipv$family/neigh/rvs-a/retrans_time_ms; done";

    #[test]
    fn a_host_that_is_not_there_is_no_silent_one() {
        assert_failed(NO_NEIGHBOUR, "no route to host");
    }

    #[test]
    fn a_network_that_is_not_there() {
        assert_failed("ip link set lo up", "network unreachable");
    }

    /// In either family, whatever is sent.
    fn assert_failed(furnish: &str, why: &'static str) {
        for server in ["10.9.9.2:53", "[2001:db8:9::2]:53"] {
            for check in ["kind = \"udp\"", "kind = \"dns\"", "kind = \"ping\""] {
                let server = server.parse().unwrap();
                let Some(outcome) = outcome_in_namespace(furnish, &kind(check), server) else { return };
                assert_eq!(outcome, Outcome::failed(why), "{server}: {check}");
            }
        }
    }
}
