//! Captures, read packet by packet: pcap and pcapng, Ethernet.
//!
//! What a file says is taken as it is or refused, never guessed: a file that ends within a packet, a packet without a time and
//! another link layer are errors that name file and packet. That fewer bytes were captured than the packet had is no fault of a file;
//! the reader of it decides ([`Packet::is_cut`]).

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

/// The longest frame, tcpdump's longest, too.
pub const LONGEST: usize = 1 << 18;

const NANOS: u64 = 1_000_000_000;

/// How files begin.
const PCAPNG: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];
const PCAP: [[u8; 4]; 4] =
    [[0xA1, 0xB2, 0xC3, 0xD4], [0xA1, 0xB2, 0x3C, 0x4D], [0xD4, 0xC3, 0xB2, 0xA1], [0x4D, 0x3C, 0xB2, 0xA1]];

/// The unit of time of an interface that says nothing of it, as a negative power of ten (pcapng, `if_tsresol`).
const MICROSECONDS: u8 = 6;

/// Of a packet's flags in pcapng: which way it went.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A packet of a capture.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// When, in nanoseconds since 1970.
    pub at: u64,
    /// How many bytes it had.
    pub length: usize,
    /// Those that were captured.
    pub frame: Vec<u8>,
}

impl Packet {
    /// Whether bytes of it are missing.
    pub fn is_cut(&self) -> bool {
        self.frame.len() < self.length
    }
}

/// Which packets of a port are wanted, where the file says which are which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those that came in.
    In,
    /// Those that went out.
    Out,
}

/// A file that is being read.
pub struct Capture {
    path: PathBuf,
    reader: Reader,
    /// Packets of the file so far.
    number: u64,
    filter: Filter,
}

enum Reader {
    Pcap(PcapReader<File>),
    PcapNg(PcapNgReader<File>),
}

/// Which packets of a pcapng file are this port's.
///
/// A file of `rvs capture` has all ports, as interfaces of their names, and packets before and after. So those of an interface that
/// is called as another port are left out; and those of one that is called as this port, if they say that they went the other way.
struct Filter {
    port: String,
    others: Vec<String>,
    way: Way,
}

impl Capture {
    /// Opens what was captured at the port with this name, one of `ports`.
    pub fn open(path: &Path, port: &str, ports: &[String], way: Way) -> Result<Capture> {
        let of_file = || path.display().to_string();
        let metadata = std::fs::metadata(path).with_context(of_file)?;
        // It is read twice, and whoever opens a pipe may wait for ever.
        ensure!(metadata.is_file(), "{}: is no regular file; expected a capture", of_file());
        let mut file = File::open(path).with_context(of_file)?;
        let mut magic = Vec::new();
        file.by_ref().take(4).read_to_end(&mut magic).with_context(of_file)?;
        file.rewind().with_context(of_file)?;
        let head = || format!("{}: its head", path.display());
        let reader = if magic == PCAPNG {
            Reader::PcapNg(PcapNgReader::new(file).map_err(describe).with_context(head)?)
        } else if PCAP.iter().any(|known| magic == known) {
            let reader = PcapReader::new(file).map_err(describe).with_context(head)?;
            check_link(reader.header().datalink).with_context(of_file)?;
            Reader::Pcap(reader)
        } else {
            let begins = magic.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            let begins = if magic.is_empty() { "nothing" } else { &begins };
            bail!("{}: is no capture (it begins with: {begins}); expected pcap or pcapng", of_file());
        };
        let others = ports.iter().filter(|other| *other != port).cloned().collect();
        let filter = Filter { port: port.to_owned(), others, way };
        Ok(Capture { path: path.to_owned(), reader, number: 0, filter })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the next packet into this one; whether there was one.
    pub fn next(&mut self, packet: &mut Packet) -> Result<bool> {
        let Capture { path, reader, number, filter } = self;
        let read = match reader {
            Reader::Pcap(reader) => {
                *number += 1;
                next_of_pcap(reader, packet)
            }
            Reader::PcapNg(reader) => next_of_pcapng(reader, number, filter, packet),
        };
        read.with_context(|| format!("{}: packet {number}", path.display()))
    }
}

/// The crate's checked reading refuses a packet of which not all was captured; its raw one does not.
fn next_of_pcap(reader: &mut PcapReader<File>, packet: &mut Packet) -> Result<bool> {
    let unit = if reader.header().ts_resolution == TsResolution::NanoSecond { 1 } else { 1000 };
    let Some(raw) = reader.next_raw_packet() else { return Ok(false) };
    let raw = raw.map_err(describe)?;
    let fraction = u64::from(raw.ts_frac) * unit;
    ensure!(fraction < NANOS, "its time has {fraction} ns of a second; expected less than a second");
    packet.frame.clear();
    packet.frame.extend_from_slice(&raw.data);
    packet.at = u64::from(raw.ts_sec) * NANOS + fraction;
    packet.length = raw.orig_len as usize;
    check_length(packet)?;
    Ok(true)
}

fn next_of_pcapng(
    reader: &mut PcapNgReader<File>,
    number: &mut u64,
    filter: &Filter,
    packet: &mut Packet,
) -> Result<bool> {
    loop {
        // Also for an error that is met before it is known whether it is in a packet.
        *number += 1;
        let Some(block) = reader.next_block() else { return Ok(false) };
        let block = match block.map_err(describe)? {
            Block::EnhancedPacket(block) => block,
            Block::SimplePacket(_) => {
                bail!("has no time (a simple packet block); expected enhanced packet blocks")
            }
            Block::Packet(_) => bail!("is an obsolete packet block; expected enhanced packet blocks"),
            _ => {
                *number -= 1;
                continue;
            }
        };
        let EnhancedPacketBlock { interface_id, timestamp, original_len, data, options } = block;
        packet.frame.clear();
        packet.frame.extend_from_slice(&data);
        packet.length = original_len as usize;
        let direction = options.iter().find_map(|option| match option {
            EnhancedPacketOption::Flags(flags) => Some(flags & (INBOUND | OUTBOUND)),
            _ => None,
        });
        let interface = reader.interfaces().get(interface_id as usize);
        let interface = interface.with_context(|| {
            format!("is of interface {interface_id}; expected one that the file describes")
        })?;
        if !filter.takes(interface, direction) {
            continue;
        }
        check_link(interface.linktype)?;
        // The crate takes the number for nanoseconds, whatever the interface says.
        packet.at = moment(interface, timestamp.as_nanos())?;
        check_length(packet)?;
        return Ok(true);
    }
}

impl Filter {
    fn takes(&self, interface: &InterfaceDescriptionBlock<'_>, direction: Option<u32>) -> bool {
        let name = interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.as_ref()),
            _ => None,
        });
        let opposite = if self.way == Way::In { OUTBOUND } else { INBOUND };
        match name {
            Some(name) if name == self.port => direction != Some(opposite),
            Some(name) => !self.others.iter().any(|other| other == name),
            None => true,
        }
    }
}

/// Nanoseconds since 1970, of so many units of an interface.
fn moment(interface: &InterfaceDescriptionBlock<'_>, units: u128) -> Result<u64> {
    let (mut resolution, mut offset) = (MICROSECONDS, 0);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(units) => resolution = *units,
            InterfaceDescriptionOption::IfTsOffset(seconds) => offset = *seconds,
            _ => {}
        }
    }
    // A power of two, if the highest bit is set, else of ten.
    let base: u128 = if resolution & 0x80 != 0 { 2 } else { 10 };
    let nanos = base
        .checked_pow(u32::from(resolution & 0x7F))
        .and_then(|in_a_second| Some(units.checked_mul(NANOS.into())? / in_a_second))
        .and_then(|nanos| nanos.checked_add(u128::from(offset) * u128::from(NANOS)))
        .and_then(|nanos| u64::try_from(nanos).ok());
    nanos.context("its time is beyond the year 2500; expected one since 1970")
}

fn check_link(link: DataLink) -> Result<()> {
    ensure!(
        link == DataLink::ETHERNET,
        "the link layer is {link:?}; expected ETHERNET, as tcpdump has it of one interface and not of \"any\""
    );
    Ok(())
}

fn check_length(packet: &Packet) -> Result<()> {
    let (captured, length) = (packet.frame.len(), packet.length);
    ensure!(captured <= length, "{captured} bytes were captured of {length}; expected no more than it has");
    ensure!(length <= LONGEST, "has {length} bytes; expected {LONGEST} at the most");
    Ok(())
}

/// What the crate found wrong.
fn describe(error: PcapError) -> anyhow::Error {
    match error {
        PcapError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            anyhow!("is cut off by the end of the file, or garbled; expected all of it")
        }
        PcapError::IoError(error) => anyhow!("cannot be read: {error}"),
        error => anyhow!("is garbled: {error}; expected pcap or pcapng"),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Duration;

    use pcap_file::pcap::{PcapHeader, PcapWriter, RawPcapPacket};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
    use proptest::prelude::*;

    use super::*;

    fn ports() -> [String; 2] {
        ["wan".to_owned(), "lan".to_owned()]
    }

    /// All packets of a file with these contents, or what is wrong with it.
    fn read(contents: &[u8], way: Way) -> Result<Vec<(u64, usize, Vec<u8>)>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, contents).unwrap();
        let all = || {
            let mut capture = Capture::open(&path, "wan", &ports(), way)?;
            let (mut packet, mut all) = (Packet::default(), Vec::new());
            while capture.next(&mut packet)? {
                all.push((packet.at, packet.length, packet.frame.clone()));
            }
            anyhow::Ok(all)
        };
        let shown = path.display().to_string();
        all().map_err(|error| format!("{error:#}").replace(&shown, "F"))
    }

    fn pcap(resolution: TsResolution, datalink: DataLink, packets: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let header = PcapHeader { ts_resolution: resolution, datalink, snaplen: 64, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for &(ts_sec, ts_frac, orig_len, data) in packets {
            let (incl_len, data) = (data.len() as u32, Cow::Borrowed(data));
            writer.write_raw_packet(&RawPcapPacket { ts_sec, ts_frac, incl_len, orig_len, data }).unwrap();
        }
        writer.into_writer()
    }

    #[test]
    fn pcap_of_both_resolutions_and_of_parts_of_packets() {
        let packets: [(u32, u32, u32, &[u8]); 2] = [(1, 5, 4, &[1, 2, 3, 4]), (2, 999_999, 1500, &[9; 64])];
        let micro = read(&pcap(TsResolution::MicroSecond, DataLink::ETHERNET, &packets), Way::In).unwrap();
        assert_eq!(micro, [(1_000_005_000, 4, vec![1, 2, 3, 4]), (2_999_999_000, 1500, vec![9; 64])]);
        let nano = read(&pcap(TsResolution::NanoSecond, DataLink::ETHERNET, &packets), Way::In).unwrap();
        assert_eq!((nano[0].0, nano[1].0), (1_000_000_005, 2_000_999_999));
    }

    #[test]
    fn what_is_wrong_names_file_and_packet() {
        let one = |packet| pcap(TsResolution::MicroSecond, DataLink::ETHERNET, &[(1, 0, 2, &[1, 2]), packet]);
        let cut = one((1, 0, 8, &[7; 8]));
        let long = LONGEST as u32 + 1;
        for (contents, expected) in [
            (vec![], "F: is no capture (it begins with: nothing); expected pcap or pcapng"),
            (vec![0x1F, 0x8B, 8], "F: is no capture (it begins with: 1f 8b 08); expected pcap or pcapng"),
            (
                cut[..20].to_vec(),
                "F: its head: is cut off by the end of the file, or garbled; expected all of it",
            ),
            (
                cut[..cut.len() - 1].to_vec(),
                "F: packet 2: is cut off by the end of the file, or garbled; expected all of it",
            ),
            (
                one((1, 0, 2, &[1; 3])),
                "F: packet 2: 3 bytes were captured of 2; expected no more than it has",
            ),
            (
                one((1, 1_000_000, 2, &[1; 2])),
                "F: packet 2: its time has 1000000000 ns of a second; expected less than a second",
            ),
            (one((1, 0, long, &[])), "F: packet 2: has 262145 bytes; expected 262144 at the most"),
            (
                pcap(TsResolution::MicroSecond, DataLink::LINUX_SLL, &[]),
                "F: the link layer is LINUX_SLL; expected ETHERNET, as tcpdump has it of one interface and not of \"any\"",
            ),
        ] {
            assert_eq!(read(&contents, Way::In), Err(expected.to_owned()));
        }
        let nowhere = Capture::open(Path::new("/nowhere"), "wan", &ports(), Way::In).err().unwrap();
        assert!(format!("{nowhere:#}").starts_with("/nowhere: "), "{nowhere:#}");
        let directory = Capture::open(Path::new("/"), "wan", &ports(), Way::In).err().unwrap();
        assert_eq!(directory.to_string(), "/: is no regular file; expected a capture");
    }

    fn interface(
        name: &str,
        options: &[InterfaceDescriptionOption<'static>],
    ) -> InterfaceDescriptionBlock<'static> {
        let name = InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned()));
        let options = [name].into_iter().chain(options.iter().cloned()).collect();
        InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options }
    }

    fn block(interface_id: u32, units: u64, flags: Option<u32>, byte: u8) -> EnhancedPacketBlock<'static> {
        let options = flags.map(EnhancedPacketOption::Flags).into_iter().collect();
        let timestamp = Duration::from_nanos(units);
        EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len: 2,
            data: Cow::Owned(vec![byte; 2]),
            options,
        }
    }

    #[test]
    fn pcapng_with_all_ports_in_a_file() {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        for interface in [
            interface("wan", &[InterfaceDescriptionOption::IfTsResol(9)]),
            interface("lan", &[]),
            interface(
                "eth0",
                &[InterfaceDescriptionOption::IfTsResol(0x81), InterfaceDescriptionOption::IfTsOffset(7)],
            ),
        ] {
            writer.write_pcapng_block(interface).unwrap();
        }
        for block in [
            block(0, 5, Some(INBOUND), 1),
            block(0, 6, Some(OUTBOUND), 2),
            block(1, 7, Some(INBOUND), 3),
            block(0, 8, None, 4),
            block(2, 9, Some(OUTBOUND), 5),
        ] {
            writer.write_pcapng_block(block).unwrap();
        }
        let file = writer.into_inner();
        let bytes =
            |way| read(&file, way).unwrap().iter().map(|(at, _, frame)| (*at, frame[0])).collect::<Vec<_>>();
        // Halves of a second, seven seconds later.
        let halves = 9 * NANOS / 2 + 7 * NANOS;
        assert_eq!(bytes(Way::In), [(5, 1), (8, 4), (halves, 5)]);
        assert_eq!(bytes(Way::Out), [(6, 2), (8, 4), (halves, 5)]);
    }

    #[test]
    fn pcapng_that_says_too_little() {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        writer.write_pcapng_block(interface("x", &[InterfaceDescriptionOption::IfTsResol(0)])).unwrap();
        let begun = writer.get_ref().clone();
        let with = |block: Block<'static>| {
            let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
            writer.write_pcapng_block(interface("x", &[InterfaceDescriptionOption::IfTsResol(0)])).unwrap();
            writer.write_block(&block).unwrap();
            read(&writer.into_inner(), Way::In)
        };
        assert_eq!(read(&begun, Way::In), Ok(vec![]));
        let simple = Block::SimplePacket(SimplePacketBlock { original_len: 2, data: Cow::Owned(vec![0; 2]) });
        assert!(with(simple).unwrap_err().starts_with("F: packet 1: has no time"));
        let year = with(Block::EnhancedPacket(block(0, u64::MAX, None, 1))).unwrap_err();
        assert!(year.starts_with("F: packet 1: its time is beyond the year 2500"), "{year}");
        assert!(read(&begun[..begun.len() - 1], Way::In).unwrap_err().starts_with("F: packet 1: is cut off"));
    }

    proptest! {
        /// Whatever is in a file, it is read or refused.
        #[test]
        fn garbled_files(
            is_pcapng in any::<bool>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            end in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut file = if is_pcapng {
                let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
                let resolution = InterfaceDescriptionOption::IfTsResol(9);
                writer.write_pcapng_block(interface("wan", &[resolution])).unwrap();
                for byte in 0..3 {
                    writer.write_pcapng_block(block(0, 1, Some(INBOUND), byte)).unwrap();
                }
                writer.into_inner()
            } else {
                let packets: [(u32, u32, u32, &[u8]); 2] = [(1, 2, 3, &[1; 3]), (2, 3, 90, &[2; 9])];
                pcap(TsResolution::NanoSecond, DataLink::ETHERNET, &packets)
            };
            let length = file.len();
            edits.into_iter().for_each(|(at, byte)| file[at.index(length)] = byte);
            file.truncate(end.map_or(length, |end| end.index(length)));
            if let Err(error) = read(&file, Way::In) {
                prop_assert!(error.starts_with("F: "), "{}", error);
            }
        }
    }
}
