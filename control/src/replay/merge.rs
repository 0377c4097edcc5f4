//! Several captures as one: packet by packet, the earliest first.

use anyhow::Result;
use dataplane::fib::PortIndex;

use super::input::{Capture, Packet};

/// Captures that are being read together.
#[derive(Default)]
pub struct Merged {
    sources: Vec<Source>,
}

struct Source {
    port: PortIndex,
    capture: Capture,
    /// Its next packet.
    next: Option<Packet>,
}

impl Merged {
    /// Adds a capture of a port.
    pub fn add(&mut self, port: PortIndex, mut capture: Capture) -> Result<()> {
        let mut next = Packet::default();
        let next = capture.next(&mut next)?.then_some(next);
        self.sources.push(Source { port, capture, next });
        Ok(())
    }

    /// Takes the earliest packet, and of two of one moment that of the capture that was named first; the port that it came in on. Within
    /// a file the order is the file's, whatever the times.
    pub fn next(&mut self, packet: &mut Packet) -> Result<Option<PortIndex>> {
        let due = |source: &Source| source.next.as_ref().map(|packet| packet.at);
        let first = self.sources.iter_mut().filter(|source| due(source).is_some());
        let Some(Source { port, capture, next: place }) = first.min_by_key(|source| due(source)) else {
            return Ok(None);
        };
        let Some(next) = place else { return Ok(None) };
        std::mem::swap(packet, next);
        if !capture.next(next)? {
            *place = None;
        }
        Ok(Some(*port))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::path::Path;

    use pcap_file::pcap::{PcapWriter, RawPcapPacket};

    use super::super::input::Way;
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_a_file_keeps_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let ports = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut merged = Merged::default();
        for (port, seconds) in [vec![1, 5, 3, 6], vec![1, 4, 5], vec![]].iter().enumerate() {
            let mut writer = PcapWriter::new(Vec::new()).unwrap();
            for &ts_sec in seconds {
                let data = Cow::Owned(vec![ts_sec as u8]);
                let packet = RawPcapPacket { ts_sec, ts_frac: 0, incl_len: 1, orig_len: 1, data };
                writer.write_raw_packet(&packet).unwrap();
            }
            let path = directory.path().join(port.to_string());
            std::fs::write(&path, writer.into_writer()).unwrap();
            let capture = Capture::open(Path::new(&path), &ports[port], &ports, Way::In).unwrap();
            merged.add(port as PortIndex, capture).unwrap();
        }
        let (mut packet, mut seen) = (Packet::default(), Vec::new());
        while let Some(port) = merged.next(&mut packet).unwrap() {
            seen.push((port, packet.frame[0]));
        }
        assert_eq!(seen, [(0, 1), (1, 1), (1, 4), (0, 5), (0, 3), (1, 5), (0, 6)]);
        assert_eq!(merged.next(&mut packet).unwrap(), None);
    }
}
