//! The SMTP check: greeting, EHLO (or HELO), if asked the beginning of a mail, and QUIT (RFC 5321).
//!
//! Every answer up to QUIT must be the right one. What the server says to QUIT no longer matters, but it must say
//! something or close, as with keepalived; and we wait for that, because servers log a client that just leaves.

use std::fs;
use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::stage::note;
use super::{Outcome, Probe};
use crate::config::checks::{self, is_helo};
use crate::text::first_line;

/// Greets a mail server.
pub(super) struct Smtp {
    helo: String,
    from: Option<String>,
}

/// Lines of an answer and bytes of a line that no server needs (RFC 5321, 4.5.3.1.5: 512 bytes).
const MAX_LINES: usize = 100;
const MAX_LINE: u64 = 2048;

impl Smtp {
    pub(super) fn new(check: &checks::Smtp) -> Smtp {
        Smtp { helo: check.helo.clone().unwrap_or_else(own_name), from: check.from.clone() }
    }

    async fn greet(&self, server: SocketAddr) -> Result<(), Outcome> {
        note("connecting");
        let stream = TcpStream::connect(server).await.map_err(|error| Outcome::of_error(&error))?;
        let mut dialogue = Dialogue(BufReader::new(stream));
        note("waiting for the greeting");
        dialogue.answer(220).await?.right()?;
        note("waiting for an answer to EHLO");
        let extended = dialogue.ask(&format!("EHLO {}\r\n", self.helo), 250).await?;
        // A server from before 2001, or one that is hidden behind something older.
        match extended.code {
            500..=599 => {
                note("waiting for an answer to HELO");
                dialogue.ask(&format!("HELO {}\r\n", self.helo), 250).await?.right()?;
            }
            _ => extended.right()?,
        }
        if let Some(from) = &self.from {
            note("waiting for an answer to MAIL FROM");
            dialogue.ask(&format!("MAIL FROM:<{from}>\r\n"), 250).await?.right()?;
        }
        note("waiting for an answer to QUIT");
        dialogue.quit().await;
        Ok(())
    }
}

impl Probe for Smtp {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        async move {
            match self.greet(address).await {
                Ok(()) => Outcome::passed("greeted"),
                Err(outcome) => outcome,
            }
        }
        .boxed()
    }
}

/// What this machine calls itself, if a server can be told that.
fn own_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_helo(name) { name.to_owned() } else { "rvs".to_owned() }
}

struct Dialogue(BufReader<TcpStream>);

impl Dialogue {
    async fn ask(&mut self, command: &str, expected: u16) -> Result<Answer, Outcome> {
        let sent = self.0.get_mut().write_all(command.as_bytes()).await;
        sent.map_err(|error| Outcome::of_error(&error))?;
        self.answer(expected).await
    }

    /// An answer of one line or several; of these the first says what it is.
    async fn answer(&mut self, expected: u16) -> Result<Answer, Outcome> {
        let mut first = None;
        for _ in 0..MAX_LINES {
            let mut line = Vec::new();
            let read = (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut line).await;
            read.map_err(|error| Outcome::of_error(&error))?;
            if !line.ends_with(b"\n") {
                let how = match line.len() as u64 {
                    MAX_LINE => "said a line without end",
                    _ => "closed without an answer",
                };
                return Err(Outcome::failed(format!("{how}; expected {expected}")));
            }
            let (code, last) = code(&line).ok_or_else(|| {
                Outcome::failed(format!("said {:?}; expected {expected}", first_line(&line)))
            })?;
            let answer = first.get_or_insert_with(|| Answer { code, expected, text: first_line(&line) });
            if answer.code != code {
                let line = first_line(&line);
                return Err(Outcome::failed(format!(
                    "said {} and then {line}; expected one code",
                    answer.text
                )));
            }
            if last && let Some(answer) = first {
                return Ok(answer);
            }
        }
        Err(Outcome::failed(format!("said more than {MAX_LINES} lines; expected {expected}")))
    }

    async fn quit(&mut self) {
        if self.0.get_mut().write_all(b"QUIT\r\n").await.is_ok() {
            // Whatever it is, also an end or a reset.
            let _ = (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut Vec::new()).await;
        }
    }
}

struct Answer {
    code: u16,
    expected: u16,
    text: String,
}

impl Answer {
    fn right(self) -> Result<(), Outcome> {
        match self.code == self.expected {
            true => Ok(()),
            false => Err(Outcome::failed(format!("said {}; expected {}", self.text, self.expected))),
        }
    }
}

/// The code of a line, and whether it is the last of its answer: `250-` has more after it, `250 ` and `250` have not.
fn code(line: &[u8]) -> Option<(u16, bool)> {
    let (digits, rest) = line.trim_ascii_end().split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.first() {
        None | Some(b' ') => Some((code, true)),
        Some(b'-') => Some((code, false)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{dialogue, dialogue_at, kind, loopbacks, outcome};
    use super::*;

    const CHECK: &str = "kind = \"smtp\"\nhelo = \"lb\"";

    async fn assert_outcome(turns: &'static [&'static str], expected: Result<(), &'static str>) {
        let expected = expected.map_or_else(Outcome::failed, |()| Outcome::passed("greeted"));
        for host in loopbacks() {
            let server = dialogue_at(host, turns, false).await;
            assert_eq!(outcome(&kind(CHECK), server).await, expected, "{host}");
        }
    }

    #[tokio::test]
    async fn servers_that_are_well() {
        let modern = &[
            "220-mx\r\n220 ready\r\n",
            "<EHLO lb\r\n",
            "250-mx\r\n250-SIZE\r\n",
            "250 OK\r\n",
            "<QUIT\r\n",
            "221\r\n",
        ];
        assert_outcome(modern, Ok(())).await;
        let old = &["220 mx\r\n", "<EHLO lb\r\n", "502 what?\r\n", "<HELO lb\r\n", "250 mx\r\n", "<QUIT\r\n"];
        assert_outcome(old, Ok(())).await;
    }

    #[tokio::test]
    async fn servers_that_are_not() {
        assert_outcome(&["554 no service\r\n"], Err("said 554 no service; expected 220")).await;
        assert_outcome(
            &["220 mx\r\n", "<EHLO lb\r\n", "421-busy\r\n421 later\r\n"],
            Err("said 421-busy; expected 250"),
        )
        .await;
        let strict = &["220 mx\r\n", "<EHLO lb\r\n", "550 who?\r\n", "<HELO lb\r\n", "550 who?\r\n"];
        assert_outcome(strict, Err("said 550 who?; expected 250")).await;
        assert_outcome(&["SSH-2.0-x\r\n"], Err("said \"SSH-2.0-x\"; expected 220")).await;
        assert_outcome(&[], Err("closed without an answer; expected 220")).await;
        assert_outcome(
            &["220 mx\r\n", "<EHLO lb\r\n", "250-mx\r\n"],
            Err("closed without an answer; expected 250"),
        )
        .await;
        assert_outcome(&["220-mx\r\n554 no\r\n"], Err("said 220-mx and then 554 no; expected one code"))
            .await;
    }

    #[tokio::test]
    async fn a_sender_that_is_refused() {
        let turns = &["220 mx\r\n", "<EHLO lb\r\n", "250 mx\r\n", "<MAIL FROM:<a@b>\r\n", "452 no room\r\n"];
        let server = dialogue(turns, false).await;
        let check = kind(&format!("{CHECK}\nfrom = \"a@b\""));
        assert_eq!(outcome(&check, server).await, Outcome::failed("said 452 no room; expected 250"));
    }

    #[tokio::test]
    async fn a_dialogue_that_stops_halfway() {
        let check = kind(&format!("{CHECK}\ntimeout = \"300ms\""));
        let server = dialogue(&["220-mx\r\n"], true).await;
        assert_eq!(
            outcome(&check, server).await,
            Outcome::failed("timed out after 300ms while waiting for the greeting")
        );
    }

    #[test]
    fn lines_of_answers() {
        for (line, expected) in [
            (&b"250 OK\r\n"[..], Some((250, true))),
            (b"250-OK\r\n", Some((250, false))),
            (b"250\r\n", Some((250, true))),
            (b"250\n", Some((250, true))),
            (b"2500\r\n", None),
            (b"+25 OK\r\n", None),
            (b"25\r\n", None),
            (b"\r\n", None),
        ] {
            assert_eq!(code(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(is_helo(&own_name()));
    }
}
