//! The connect check: a server is well if it accepts a TCP connection.
//!
//! The connection is closed at once, with a FIN, as keepalived does it: a reset (linger 0) would save this machine a
//! TIME_WAIT, but some servers log every reset as an error. What it costs is one socket in TIME_WAIT a check for
//! 60 s, 30 a server at the default interval, and they hold no file descriptor: 1000 servers make 30 000 of them, and
//! a server can be checked every 3 ms before its local ports run out.

use std::io;
use std::net::SocketAddrV4;

use nix::errno::Errno;
use tokio::net::TcpStream;

use super::Outcome;

pub(super) async fn probe(address: SocketAddrV4) -> Outcome {
    match TcpStream::connect(address).await {
        Ok(stream) => {
            drop(stream);
            Outcome::Passed("connected")
        }
        Err(error) => judge(&error),
    }
}

fn judge(error: &io::Error) -> Outcome {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let reason = match errno {
        Some(Errno::ECONNREFUSED) => "connection refused",
        Some(Errno::ECONNRESET) => "connection reset",
        Some(Errno::EHOSTUNREACH) => "no route to host",
        Some(Errno::ENETUNREACH) => "network unreachable",
        Some(Errno::ETIMEDOUT) => "connection timed out",
        Some(errno) => errno.desc(),
        None => return Outcome::Failed(error.to_string()),
    };
    match errno {
        // No descriptor, no memory, no local port left (connect says EADDRNOTAVAIL, or EAGAIN).
        Some(
            Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOMEM
            | Errno::ENOBUFS
            | Errno::EADDRNOTAVAIL
            | Errno::EADDRINUSE
            | Errno::EAGAIN,
        ) => Outcome::Unknown(reason.to_owned()),
        _ => Outcome::Failed(reason.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(errno: Errno) -> Outcome {
        judge(&io::Error::from_raw_os_error(errno as i32))
    }

    #[test]
    fn what_is_the_servers_fault_and_what_is_ours() {
        assert_eq!(outcome(Errno::ECONNREFUSED), Outcome::Failed("connection refused".into()));
        assert_eq!(outcome(Errno::EHOSTUNREACH), Outcome::Failed("no route to host".into()));
        assert_eq!(outcome(Errno::EPERM), Outcome::Failed("Operation not permitted".into()));
        assert_eq!(outcome(Errno::EMFILE), Outcome::Unknown("Too many open files".into()));
        assert!(matches!(outcome(Errno::EADDRNOTAVAIL), Outcome::Unknown(_)));
    }
}
