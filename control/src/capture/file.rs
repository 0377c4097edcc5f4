//! The file: pcapng (draft-ietf-opsawg-pcapng), of which Wireshark and tcpdump show the comments.
//!
//! A port is an interface. A packet is there as it came, inbound on its port, with what became of it as comment; and if it was
//! rewritten once more, outbound on the port that it went out of. What was missed before it is its drop count.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use dataplane::capture::{SNAP, Sample};
use dataplane::counters::Punt;
use dataplane::engine::Verdict;
use dataplane::fib::PortIndex;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};

/// Of a packet's flags: which way it went.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// The unit of time, as a negative power of ten: the crate writes nanoseconds, whatever is declared.
const RESOLUTION: u8 = 9;

/// A file that is being written, in memory, as far as nobody has taken it.
pub struct File {
    writer: PcapNgWriter<Vec<u8>>,
    ports: Vec<String>,
    /// The same moment by both clocks.
    began: (SystemTime, u64),
    tsc_hz: u64,
    missed: u64,
}

impl File {
    /// The head of the file. `now` is the moment at which the time-stamp counter was at `tsc`.
    pub fn begin(ports: &[String], now: SystemTime, tsc: u64, tsc_hz: u64) -> Result<File> {
        let mut writer = PcapNgWriter::new(Vec::new()).context("cannot begin the capture")?;
        for name in ports {
            let interface = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: SNAP as u32,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                    InterfaceDescriptionOption::IfTsResol(RESOLUTION),
                ],
            };
            writer.write_pcapng_block(interface).context("cannot write an interface of the capture")?;
        }
        let (ports, began) = (ports.to_vec(), (now, tsc));
        Ok(File { writer, ports, began, tsc_hz: tsc_hz.max(1), missed: 0 })
    }

    /// Adds a packet; `missed` is how many have been missed since the capture began.
    pub fn add(&mut self, sample: &Sample, missed: u64) -> Result<()> {
        let lost = std::mem::replace(&mut self.missed, missed).abs_diff(missed);
        let mut options = vec![EnhancedPacketOption::Flags(INBOUND), comment(self.fate(sample.verdict))];
        if lost > 0 {
            options.push(EnhancedPacketOption::DropCount(lost));
        }
        self.write(sample, sample.port, sample.length_before(), Cow::Owned(sample.before()), options)?;
        let (port, what) = match sample.verdict {
            Verdict::Forward(port) => (port, "rewritten"),
            Verdict::Route(port) => (port, "routed"),
            Verdict::Punt(Punt::Unresolved) => {
                (sample.port, "rewritten, for Linux to send: its MACs are the old ones")
            }
            Verdict::Punt(Punt::ToFragment) => (sample.port, "for Linux to send in fragments"),
            Verdict::Punt(_) | Verdict::Drop(_) | Verdict::Hold => return Ok(()),
        };
        let options = vec![EnhancedPacketOption::Flags(OUTBOUND), comment(what.to_owned())];
        self.write(sample, port, sample.length, Cow::Borrowed(sample.after()), options)
    }

    /// What has been written since the last time.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }

    fn write(
        &mut self,
        sample: &Sample,
        port: PortIndex,
        original_len: u32,
        data: Cow<'_, [u8]>,
        options: Vec<EnhancedPacketOption<'_>>,
    ) -> Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: port.into(),
            timestamp: self.time(sample.tsc),
            original_len,
            data,
            options,
        };
        self.writer.write_pcapng_block(block).context("cannot write a packet of the capture")?;
        Ok(())
    }

    /// Since 1970.
    fn time(&self, tsc: u64) -> Duration {
        let (moment, began) = self.began;
        let since = u128::from(tsc.saturating_sub(began)) * 1_000_000_000 / u128::from(self.tsc_hz);
        moment.duration_since(UNIX_EPOCH).unwrap_or_default() + Duration::from_nanos(since as u64)
    }

    fn fate(&self, verdict: Verdict) -> String {
        match verdict {
            Verdict::Forward(port) => format!("forward{}", self.out_of(port)),
            Verdict::Route(port) => format!("route{}: {}", self.out_of(port), Verdict::ROUTE),
            Verdict::Punt(punt) => format!("punt to Linux, {punt}: {}", punt.meaning()),
            Verdict::Drop(drop) => format!("drop, {drop}: {}", drop.meaning()),
            Verdict::Hold => format!("hold: {}", Verdict::HOLD),
        }
    }

    fn out_of(&self, port: PortIndex) -> String {
        self.ports.get(usize::from(port)).map_or_else(String::new, |name| format!(", out of {name}"))
    }
}

fn comment(text: String) -> EnhancedPacketOption<'static> {
    EnhancedPacketOption::Comment(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dataplane::capture::{Filter, Session, Switch, Tap};
    use dataplane::counters::Drop;
    use dataplane::engine::BURST;
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    /// Written, read again by the crate's reader: time, interface, bytes, comments, what was missed.
    #[test]
    fn what_is_written_can_be_read() {
        let switch = Arc::<Switch>::default();
        let session = Arc::new(Session::new(1, Filter::default()));
        switch.begin(session.clone());
        let mut tap = Tap::new(switch.clone());
        let mut burst = vec![vec![1; 60], vec![2; 1000], vec![3; 61]];
        assert!(tap.before(&burst));
        burst[0][0] = 9;
        let mut verdicts = [Verdict::Drop(Drop::NoServer); BURST];
        (verdicts[0], verdicts[1]) = (Verdict::Forward(1), Verdict::Punt(Punt::NoService));
        tap.after(0, &burst, &verdicts, 1_500);

        let ports = ["wan".to_owned(), "lan".to_owned()];
        let mut file = File::begin(&ports, UNIX_EPOCH + Duration::from_secs(100), 1_000, 1_000).unwrap();
        let mut bytes = file.take();
        for missed in [0, 0, 7] {
            file.add(&session.pop().unwrap(), missed).unwrap();
        }
        bytes.extend(file.take());

        let mut reader = PcapNgReader::new(bytes.as_slice()).unwrap();
        let mut names = Vec::new();
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(interface) => names.push(format!("{:?}", interface.options)),
                Block::EnhancedPacket(packet) => {
                    assert_eq!(packet.timestamp, Duration::from_millis(100_500));
                    let options = format!("{:?}", packet.options);
                    packets.push((packet.interface_id, packet.original_len, packet.data.to_vec(), options));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, [r#"[IfName("wan"), IfTsResol(9)]"#, r#"[IfName("lan"), IfTsResol(9)]"#]);
        let changed = [&[9][..], &[1; 59]].concat();
        let says = |flags, text, rest| format!("[Flags({flags}), Comment({text:?}){rest}]");
        let no_service = "punt to Linux, no_service: No service, and no reply of a connection that is known.";
        let no_server = "drop, no_server: The service has no usable real server.";
        let expected = [
            (0, 60, vec![1; 60], says(1, "forward, out of lan", "")),
            (1, 60, changed, says(2, "rewritten", "")),
            (0, 1000, vec![2; SNAP], says(1, no_service, "")),
            (0, 61, vec![3; 61], says(1, no_server, ", DropCount(7)")),
        ];
        assert_eq!(packets, expected);
    }
}
