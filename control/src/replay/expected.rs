//! Compares what leaves a port with a capture of what should, byte for byte and in order. Times do not count.

use std::fmt;
use std::path::Path;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::fields::{Change, changes};
use super::input::{Capture, Packet, Way};

/// Differences of a port that are told; all are counted.
const TOLD: u64 = 10;

/// What should leave a port.
pub struct Expected {
    port: String,
    capture: Capture,
    next: Packet,
    /// Packets that have left.
    left: u64,
    /// Whether the file has come to its end.
    ended: bool,
    differences: u64,
}

/// Where what has left a port is not what should have.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The port.
    pub port: String,
    /// The packet's number among those that leave the port, from 1.
    pub packet: u64,
    /// The number of the packet that came in and became it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<u64>,
    /// What is wrong.
    pub what: What,
    /// The first byte that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<usize>,
    /// The fields that differ, from what was expected to what there is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Change>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The packet is another one.
    Differs,
    /// Nothing was expected any more.
    Unexpected,
    /// This one, and so many more behind it, have not come.
    Missing(u64),
}

impl Expected {
    /// What should leave the port with this name, one of `ports`.
    pub fn open(path: &Path, port: &str, ports: &[String]) -> Result<Expected> {
        let capture = Capture::open(path, port, ports, Way::Out)?;
        let (port, next) = (port.to_owned(), Packet::default());
        Ok(Expected { port, capture, next, left: 0, ended: false, differences: 0 })
    }

    /// How many packets were other than expected, missing ones among them.
    pub fn differences(&self) -> u64 {
        self.differences
    }

    /// A packet leaves, which came in under this number. Says in what it is not the one that should, as long as little has been said.
    pub fn leaves(&mut self, input: u64, frame: &[u8]) -> Result<Option<Difference>> {
        let has_one = self.advance()?;
        self.left += 1;
        if has_one && self.next.frame == frame {
            return Ok(None);
        }
        self.differences += 1;
        if self.differences > TOLD {
            return Ok(None);
        }
        let expected = &self.next.frame;
        let at =
            expected.iter().zip(frame).position(|(a, b)| a != b).unwrap_or(expected.len().min(frame.len()));
        let (what, at, fields) = match has_one {
            true => (What::Differs, Some(at), changes(expected, frame)),
            false => (What::Unexpected, None, Vec::new()),
        };
        let port = self.port.clone();
        Ok(Some(Difference { port, packet: self.left, input: Some(input), what, at, fields }))
    }

    /// No packets leave any more. Says how many should have.
    pub fn end(&mut self) -> Result<Option<Difference>> {
        let (packet, mut missing) = (self.left + 1, 0);
        while self.advance()? {
            missing += 1;
        }
        self.differences += missing;
        let missing = (missing > 0).then_some(What::Missing(missing));
        let port = self.port.clone();
        Ok(missing.map(|what| Difference { port, packet, input: None, what, at: None, fields: Vec::new() }))
    }

    /// Reads the next packet that should leave; whether there is one.
    fn advance(&mut self) -> Result<bool> {
        if !self.ended {
            self.ended = !self.capture.next(&mut self.next)?;
        }
        let Packet { frame, length, .. } = &self.next;
        ensure!(
            self.ended || !self.next.is_cut(),
            "{}: {} of the {length} bytes of a packet were captured; expected whole packets, to compare them",
            self.capture.path().display(),
            frame.len()
        );
        Ok(!self.ended)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { port, packet, input, what, at, fields } = self;
        write!(f, "{port}: packet {packet}")?;
        if let Some(input) = input {
            write!(f, " (packet {input} that came in)")?;
        }
        match (what, at) {
            (What::Differs, Some(at)) => write!(f, " differs from byte {at} on")?,
            (What::Differs, None) => write!(f, " differs")?,
            (What::Unexpected, _) => write!(f, " is not expected: there are no more in the file")?,
            (What::Missing(1), _) => write!(f, " is missing")?,
            (What::Missing(count), _) => write!(f, " is missing, and {} behind it", count - 1)?,
        }
        for (index, Change { field, at, from, to }) in fields.iter().enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{field} (byte {at}): expected {from}, got {to}")?;
        }
        Ok(())
    }
}
