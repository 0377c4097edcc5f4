//! For the tests of the kinds: checks as an operator writes them, and one round of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Outcome, Stage};
use crate::config::Check;
use crate::config::checks::fixture::check;

/// The check with these keys, and ten seconds of time unless they say otherwise.
pub(super) fn kind(keys: &str) -> Check {
    let time = if keys.contains("timeout") { "" } else { "timeout = \"10s\"\n" };
    check(&format!("{time}{keys}"))
}

/// What comes of it within its time.
pub(super) async fn outcome(check: &Check, server: SocketAddrV4) -> Outcome {
    let probe = super::ready(check);
    let stage = Stage::default();
    let checked = tokio::time::timeout(check.timeout, stage.of(probe.probe(server))).await;
    checked.unwrap_or_else(|_| stage.late(check.timeout))
}

/// A server for one connection of a dialogue: it waits for each of these, and says each of those. At the end it closes,
/// or is silent if the dialogue is to be left hanging. A line that starts with `<` is what it waits for.
pub(super) async fn dialogue(host: [u8; 4], turns: &'static [&'static str], hang: bool) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::from(host), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for turn in turns {
            match turn.strip_prefix('<') {
                Some(expected) => {
                    let mut got = vec![0; expected.len()];
                    stream.read_exact(&mut got).await.unwrap();
                    assert_eq!(String::from_utf8_lossy(&got), expected);
                }
                None => stream.write_all(turn.as_bytes()).await.unwrap(),
            }
        }
        if hang {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
    });
    SocketAddrV4::new(host.into(), port)
}

/// What comes of a check in a network namespace of its own, which a script of the shell has furnished; nothing if this
/// user may not make one.
pub(super) fn outcome_in_namespace(furnish: &str, check: &Check, server: SocketAddrV4) -> Option<Outcome> {
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: only root may make a network namespace");
        return None;
    }
    // It ends with its thread.
    let within = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let furnished = Command::new("/bin/sh").args(["-ec", furnish]).status().unwrap();
        assert!(furnished.success(), "{furnish}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(outcome(check, server))
    };
    Some(std::thread::scope(|scope| scope.spawn(within).join().unwrap()))
}
