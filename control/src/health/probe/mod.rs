//! What a check does, a file a kind.
//!
//! A kind is made ready once a target (patterns are compiled, certificates read) and then probes as often as it is
//! asked. It needs no time limit of its own: a probe that has not ended after the check's timeout is dropped, and all
//! that it holds must end with it.

mod command;
mod datagram;
mod dns;
#[cfg(test)]
mod fixture;
mod grpc;
#[cfg(test)]
mod grpc_tests;
mod http;
#[cfg(test)]
mod http_tests;
mod ping;
mod script;
mod smtp;
mod stage;
mod stream;
mod tcp;
pub(crate) mod tls;
#[cfg(test)]
mod tls_tests;
mod udp;

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use nix::errno::Errno;

use crate::config::{Check, CheckKind};

pub(super) use stage::Stage;

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server answered as it should.
    Passed {
        /// How: "connected".
        what: Cow<'static, str>,
        /// The weight that it asks for, if its check can say so.
        weight: Option<u32>,
    },
    /// It did not, and why.
    Failed(Cow<'static, str>),
    /// The check could not be made, for a reason that lies with this machine (no file descriptor, no local port).
    /// It says nothing about the server, so it counts neither way: a director short of descriptors must not take
    /// every server for dead.
    Unknown(Cow<'static, str>),
}

/// A kind of check that has been made ready.
pub(super) trait Probe: Send + Sync {
    /// Checks this address once.
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome>;
}

/// Makes a kind of check ready.
pub(super) fn ready(check: &Check) -> Box<dyn Probe> {
    match &check.kind {
        CheckKind::Tcp => Box::new(tcp::Tcp),
        CheckKind::Udp(udp) => Box::new(udp::Udp::new(udp, check.timeout)),
        CheckKind::Dns(dns) => Box::new(dns::Dns::new(dns)),
        CheckKind::Ping(ping) => Box::new(ping::Ping::new(ping)),
        CheckKind::Smtp(smtp) => Box::new(smtp::Smtp::new(smtp)),
        CheckKind::Script(script) => Box::new(script::Script::new(script)),
        CheckKind::Command(command) => Box::new(command::Command::new(command)),
        CheckKind::Http(request) => Box::new(http::Http::new(request, None)),
        CheckKind::Https(request, tls) => Box::new(http::Http::new(request, Some(tls))),
        CheckKind::Tls(tls) => Box::new(tls::Tls::new(tls)),
        CheckKind::Grpc(question) => Box::new(grpc::Grpc::new(question)),
    }
}

impl Outcome {
    pub(super) fn passed(what: impl Into<Cow<'static, str>>) -> Outcome {
        Outcome::Passed { what: what.into(), weight: None }
    }

    pub(super) fn failed(why: impl Into<Cow<'static, str>>) -> Outcome {
        Outcome::Failed(why.into())
    }

    /// What an error of a socket says of the server, or of this machine.
    pub(super) fn of_error(error: &io::Error) -> Outcome {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let reason = match errno {
            Some(Errno::ECONNREFUSED) => "connection refused",
            Some(Errno::ECONNRESET) => "connection reset",
            Some(Errno::EHOSTUNREACH) => "no route to host",
            Some(Errno::ENETUNREACH) => "network unreachable",
            Some(Errno::ETIMEDOUT) => "connection timed out",
            Some(errno) => errno.desc(),
            None => return Outcome::failed(error.to_string()),
        };
        match errno {
            // No descriptor, no memory, no process, no local port left (connect says EADDRNOTAVAIL, or EAGAIN), no IPv6.
            Some(
                Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::EADDRNOTAVAIL
                | Errno::EADDRINUSE
                | Errno::EAGAIN
                | Errno::EAFNOSUPPORT,
            ) => Outcome::Unknown(reason.into()),
            _ => Outcome::Failed(reason.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(errno: Errno) -> Outcome {
        Outcome::of_error(&io::Error::from_raw_os_error(errno as i32))
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
