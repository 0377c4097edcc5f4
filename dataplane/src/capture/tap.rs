//! A worker's end.

use std::sync::Arc;

use super::filter::Headers;
use super::{HEAD, SNAP, Sample, Switch};
use crate::engine::{BURST, Frame, Verdict};
use crate::fib::PortIndex;

/// A worker's hand on the [`Switch`]: marks packets before the engine has them, and takes their samples afterwards.
pub struct Tap {
    switch: Arc<Switch>,
    /// The session that is counted for.
    number: u64,
    /// Packets to let pass before the next one of the sample.
    to_pass: usize,
    /// The burst's packets of the sample, with their lengths and headers as they came. Has room for a burst.
    marks: Vec<(usize, usize, [u8; HEAD])>,
}

impl Tap {
    /// A worker's.
    pub fn new(switch: Arc<Switch>) -> Tap {
        Tap { switch, number: 0, to_pass: 0, marks: Vec::with_capacity(BURST) }
    }

    /// Before the engine: whether [`Self::after`] has something to do.
    #[inline(always)]
    pub fn before<F: Frame>(&mut self, burst: &[F]) -> bool {
        let number = self.switch.number();
        number != 0 && self.is_due(number, burst.len()) && self.mark(burst)
    }

    /// Whether one of so many packets is of the sample; or else they have passed. To load the session costs more than all
    /// of this, and most bursts have none.
    #[cold]
    #[inline(never)]
    fn is_due(&mut self, number: u64, length: usize) -> bool {
        if self.number != number {
            (self.number, self.to_pass) = (number, 0);
        }
        let is_due = self.to_pass < length;
        if !is_due {
            self.to_pass -= length;
        }
        is_due
    }

    #[cold]
    #[inline(never)]
    fn mark<F: Frame>(&mut self, burst: &[F]) -> bool {
        self.marks.clear();
        let session = self.switch.session.load();
        let Some(session) = session.as_ref() else { return false };
        let step = session.one_in as usize;
        let mut at = self.to_pass;
        while let Some(frame) = burst.get(at)
            && self.marks.len() < BURST
        {
            let mut head = [0; HEAD];
            let bytes = frame.bytes();
            let length = bytes.len().min(HEAD);
            head[..length].copy_from_slice(&bytes[..length]);
            self.marks.push((at, frame.length(), head));
            at += step;
        }
        self.to_pass = at.saturating_sub(burst.len());
        !self.marks.is_empty()
    }

    /// After the engine: the samples of the packets that came in on a port, with the verdicts on them.
    #[cold]
    #[inline(never)]
    pub fn after<F: Frame>(&mut self, port: PortIndex, burst: &[F], verdicts: &[Verdict; BURST], tsc: u64) {
        let session = self.switch.session.load();
        let Some(session) = session.as_ref() else { return };
        for &(index, length, head) in &self.marks {
            let (Some(frame), Some(&verdict)) = (burst.get(index), verdicts.get(index)) else { continue };
            let bytes = frame.bytes();
            let captured = bytes.len().min(SNAP);
            let grown = frame.length().saturating_sub(length);
            let before = Headers::of(&head[..captured.saturating_sub(grown).min(HEAD)]);
            if !session.filter.matches(before, || Headers::of(bytes), verdict) {
                continue;
            }
            let mut data = [0; SNAP];
            data[..captured].copy_from_slice(&bytes[..captured]);
            let (length, grown, captured) = (frame.length() as u32, grown as u16, captured as u16);
            session.push(Sample { tsc, port, verdict, length, grown, captured, head, data });
        }
    }
}
