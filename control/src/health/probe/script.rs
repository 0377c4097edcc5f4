//! The script check: a dialogue over TCP in which each step must come about, as with LVS' nanny.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::stage::note;
use super::{Outcome, Probe};
use crate::config::checks::{self, Pattern, Step};
use crate::text::quoted;

/// Goes through the steps.
pub(super) struct Script {
    check: Arc<checks::Script>,
}

/// What a server may say before a step is met. A server that talks for ever must not fill the memory.
const MAX_RECEIVED: usize = 64 << 10;

/// So much is read at a time: a pattern is searched anew after each.
const READ: usize = 4 << 10;

impl Script {
    pub(super) fn new(check: &Arc<checks::Script>) -> Script {
        Script { check: Arc::clone(check) }
    }

    async fn play(&self, server: SocketAddr) -> io::Result<Outcome> {
        note("connecting");
        let mut stream = TcpStream::connect(server).await?;
        let mut received = Vec::new();
        for (number, step) in (1..).zip(&self.check.steps) {
            note(format!("at step {number}"));
            match step {
                Step::Send(bytes) => stream.write_all(bytes).await?,
                Step::Expect(pattern) => {
                    if let Err(wrong) = expect(&mut stream, &mut received, pattern, number).await? {
                        return Ok(Outcome::failed(format!("step {number}: {wrong}")));
                    }
                }
            }
        }
        Ok(Outcome::passed("dialogue complete"))
    }
}

/// Reads until the pattern matches, and leaves what has come after the match; or what there is instead.
async fn expect(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    pattern: &Pattern,
    step: usize,
) -> io::Result<Result<(), String>> {
    loop {
        if let Some(end) = pattern.find(received) {
            received.drain(..end);
            return Ok(Ok(()));
        }
        let wanted = format_args!("expected a match of {}", quoted(pattern.as_str().as_bytes())).to_string();
        let room = MAX_RECEIVED - received.len();
        if room == 0 {
            return Ok(Err(format!("said more than {MAX_RECEIVED} bytes; {wanted}")));
        }
        received.reserve(READ.min(room));
        if stream.take(room as u64).read_buf(received).await? == 0 {
            let said = if received.is_empty() { "nothing".to_owned() } else { quoted(received) };
            return Ok(Err(format!("said {said} and closed; {wanted}")));
        }
        // It may say no more, and what it has said may well be the reason.
        note(format!("at step {step}: said {}; {wanted}", quoted(received)));
    }
}

impl Probe for Script {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move { self.play(address).await.unwrap_or_else(|error| Outcome::of_error(&error)) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::super::fixture::{dialogue, dialogue_at, kind, loopbacks, outcome};
    use super::*;

    const POP: &str = r#"
kind = "script"
steps = [{ expect = '^\+OK.*\r\n' }, { send = 'QUIT\r\n' }, { expect = '^\+OK bye\r\n' }]"#;

    #[tokio::test]
    async fn a_dialogue_to_its_end() {
        for host in loopbacks() {
            let turns = &["+OK ", "ready\r\n", "<QUIT\r\n", "+OK bye\r\n"];
            let server = dialogue_at(host, turns, false).await;
            assert_eq!(outcome(&kind(POP), server).await, Outcome::passed("dialogue complete"), "{host}");
        }
    }

    /// What comes after a match is for the next step, what comes before it is over.
    #[tokio::test]
    async fn a_match_uses_up_what_it_matches() {
        let check =
            kind("kind = \"script\"\nsteps = [{ expect = 'a' }, { expect = '^b' }, { expect = 'a' }]");
        let server = dialogue(&["xab"], false).await;
        let why = r#"step 3: said nothing and closed; expected a match of "a""#;
        assert_eq!(outcome(&check, server).await, Outcome::failed(why));
    }

    #[tokio::test]
    async fn a_dialogue_that_stops_halfway() {
        let check = kind(&format!("timeout = \"300ms\"{POP}"));
        let server = dialogue(&["+OK ready\r\n", "<QUIT\r\n", "+OK b"], true).await;
        let late =
            r#"timed out after 300ms while at step 3: said "+OK b"; expected a match of "^\\+OK bye\\r\\n""#;
        assert_eq!(outcome(&check, server).await, Outcome::failed(late));
        let server = dialogue(&["+OK ready\r\n", "<QUIT\r\n", "-ERR no"], false).await;
        let why = r#"step 3: said "-ERR no" and closed; expected a match of "^\\+OK bye\\r\\n""#;
        assert_eq!(outcome(&kind(POP), server).await, Outcome::failed(why));
    }

    #[tokio::test]
    async fn a_server_that_talks_for_ever() {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 84, 2, 5), 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'a'; 10_000]).await.is_ok() {}
        });
        let server = SocketAddr::new([127, 84, 2, 5].into(), port);
        let check = kind("kind = \"script\"\nsteps = [{ expect = 'b' }]");
        let why = r#"step 1: said more than 65536 bytes; expected a match of "b""#;
        assert_eq!(outcome(&check, server).await, Outcome::failed(why));
    }

    #[tokio::test]
    async fn nobody_listens() {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 84, 2, 6), 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let server = SocketAddr::new([127, 84, 2, 6].into(), port);
        assert_eq!(outcome(&kind(POP), server).await, Outcome::failed("connection refused"));
    }
}
