//! Packets as the model reads and writes them: the header's fields by their offsets in RFC 791, 8200, 768 and 9293, and every checksum
//! summed anew over all that it covers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sctp;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ESP: u8 = 50;
pub const AH: u8 = 51;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

/// Extension headers that a packet has at the most, and bytes of them.
const MOST_EXTENSIONS: usize = 5;
const LONGEST_CHAIN: usize = 256;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// A packet's bytes from the IP header to its end, and where its parts are.
#[derive(Clone, Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Where TCP, UDP or ICMP begins.
    pub at: usize,
    pub fragment: Option<Fragment>,
    /// IPv6: the sender has listed routers that it has still to visit.
    pub is_source_routed: bool,
}

/// Which part of a datagram it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Header,
    Checksum,
}

/// What follows an Ethernet header, with what may stand behind the packet cut off.
pub fn parse(bytes: &[u8], is_six: bool) -> Result<Packet, Malformed> {
    let length =
        if is_six { length_of_six(bytes) } else { length_of_four(bytes) }.ok_or(Malformed::Header)?;
    let bytes = bytes.get(..length).ok_or(Malformed::Header)?;
    if !is_six && sum(&bytes[..header_of_four(bytes)]) != 0xFFFF {
        return Err(Malformed::Checksum);
    }
    parse_start(bytes, is_six).ok_or(Malformed::Header)
}

/// As much of a packet as there is, as an ICMP error quotes it; lengths are not believed.
pub fn parse_start(bytes: &[u8], is_six: bool) -> Option<Packet> {
    if is_six { six(bytes) } else { four(bytes) }
}

fn header_of_four(bytes: &[u8]) -> usize {
    usize::from(bytes[0] & 15) * 4
}

fn length_of_four(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < 20 || bytes[0] >> 4 != 4 {
        return None;
    }
    let (header, total) = (header_of_four(bytes), usize::from(word(bytes, 2)));
    (header >= 20 && total >= header).then_some(total)
}

fn length_of_six(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= 40 && bytes[0] >> 4 == 6).then(|| 40 + usize::from(word(bytes, 4)))
}

fn four(bytes: &[u8]) -> Option<Packet> {
    if bytes.len() < 20 || bytes[0] >> 4 != 4 || !(20..=bytes.len()).contains(&header_of_four(bytes)) {
        return None;
    }
    let (id, place) = (word(bytes, 4), word(bytes, 6));
    let fragment =
        Fragment { id: id.into(), offset: usize::from(place & 0x1FFF) * 8, more: place & 0x2000 != 0 };
    Some(Packet {
        source: Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[12..16]).ok()?).into(),
        destination: Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).ok()?).into(),
        protocol: bytes[9],
        at: header_of_four(bytes),
        fragment: (fragment.offset > 0 || fragment.more).then_some(fragment),
        is_source_routed: false,
        bytes: bytes.to_vec(),
    })
}

fn six(bytes: &[u8]) -> Option<Packet> {
    if bytes.len() < 40 || bytes[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut at) = (bytes[6], 40);
    let (mut fragment, mut is_source_routed) = (None, false);
    // Extension headers, RFC 8200 section 4. What stands behind a later fragment's header is not one.
    let mut count = 0;
    while matches!(protocol, 0 | 43 | 44 | 60) {
        count += 1;
        // One header of a kind, and 60 twice, is all that RFC 8200 recommends; a fragment's fragment there is none of.
        if count > MOST_EXTENSIONS || protocol == 44 && fragment.is_some() {
            return None;
        }
        let header = bytes.get(at..at + 8)?;
        let length = if protocol == 44 { 8 } else { 8 + usize::from(header[1]) * 8 };
        if protocol == 44 {
            let place = word(header, 2);
            let id = u32::from_be_bytes(header[4..8].try_into().ok()?);
            let found = Fragment { id, offset: usize::from(place & 0xFFF8), more: place & 1 != 0 };
            // An atomic fragment is none (RFC 6946).
            fragment = (found.offset > 0 || found.more).then_some(found);
        }
        is_source_routed |= protocol == 43 && header[3] > 0;
        protocol = header[0];
        at += length;
        if at > bytes.len() || at - 40 > LONGEST_CHAIN {
            return None;
        }
        if fragment.is_some_and(|fragment| fragment.offset > 0) {
            break;
        }
    }
    Some(Packet {
        source: Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[8..24]).ok()?).into(),
        destination: Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[24..40]).ok()?).into(),
        protocol,
        at,
        fragment,
        is_source_routed,
        bytes: bytes.to_vec(),
    })
}

impl Packet {
    pub fn is_six(&self) -> bool {
        self.source.is_ipv6()
    }

    /// What it carries.
    pub fn segment(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub fn source_port(&self) -> u16 {
        word(self.segment(), 0)
    }

    pub fn destination_port(&self) -> u16 {
        word(self.segment(), 2)
    }

    /// Of TCP.
    pub fn flags(&self) -> u8 {
        self.segment()[13]
    }

    /// What it says of its connection: the flags of TCP, the event of SCTP.
    pub fn says(&self) -> u8 {
        match self.protocol {
            TCP => self.flags(),
            SCTP => sctp::event_of(self.segment()),
            _ => 0,
        }
    }

    pub fn hops(&self) -> u8 {
        self.bytes[if self.is_six() { 7 } else { 8 }]
    }

    /// IPv4 options, or hop-by-hop options of IPv6: the routers on the way are to look at it.
    pub fn is_for_routers(&self) -> bool {
        if self.is_six() { self.bytes[6] == 0 } else { header_of_four(&self.bytes) > 20 }
    }

    /// IPv4 without "don't fragment".
    pub fn may_be_fragmented(&self) -> bool {
        !self.is_six() && self.bytes[6] & 0x40 == 0
    }

    /// Another port of SCTP, and a checksum that is as wrong as it was. What is quoted of a packet may be less than what is summed; the
    /// rest is the same before and after, so it may be anything.
    fn set_sctp_port(&mut self, at: usize, port: u16) {
        let at_length = if self.is_six() { 4 } else { 2 };
        let total = usize::from(word(&self.bytes, at_length)) + if self.is_six() { 40 } else { 0 };
        let length = total.saturating_sub(self.at).max(at + 2);
        let sum = |packet: &Packet| {
            let mut whole = packet.segment().to_vec();
            whole.resize(length, 0);
            sctp::checksum(&whole)
        };
        let before = sum(self);
        let at = self.at + at;
        self.bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        let after = sum(self);
        // Of a checksum that is quoted in part, the words that are there.
        let end = self.at + (self.segment().len() & !1);
        let checksum = self.bytes[self.at..end].iter_mut().skip(8);
        for (byte, change) in checksum.zip(std::iter::zip(before, after)) {
            *byte ^= change.0 ^ change.1;
        }
    }

    /// One hop further, if it has one left.
    pub fn spend_hop(&mut self) {
        let at = if self.is_six() { 7 } else { 8 };
        self.bytes[at] = self.bytes[at].saturating_sub(1);
        self.sum_header(0);
    }

    /// With another source (or destination) address and port; `port` is `None` where the ports are not in this packet.
    pub fn readdress(&mut self, end: End, address: IpAddr, port: Option<u16>) {
        let header_defect = self.header_defect();
        let has_checksum = self.segment().len() >= checksum_at(self.protocol) + 2;
        let is_summed = port.is_some() && self.protocol != SCTP;
        let defect = is_summed.then(|| if has_checksum { self.defect() } else { None });
        let first = match (self.is_six(), end) {
            (false, End::Source) => 12,
            (false, End::Destination) => 16,
            (true, End::Source) => 8,
            (true, End::Destination) => 24,
        };
        match (address, end) {
            (IpAddr::V4(four), _) => self.bytes[first..first + 4].copy_from_slice(&four.octets()),
            (IpAddr::V6(six), _) => self.bytes[first..first + 16].copy_from_slice(&six.octets()),
        }
        match end {
            End::Source => self.source = address,
            End::Destination => self.destination = address,
        }
        if let (Some(port), SCTP) = (port, self.protocol) {
            self.set_sctp_port(if end == End::Source { 0 } else { 2 }, port);
        } else if let (Some(port), Some(defect)) = (port, defect) {
            let at = self.at + if end == End::Source { 0 } else { 2 };
            self.bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
            self.sum_segment(defect);
        }
        self.sum_header(header_defect);
    }

    /// An ICMP echo, or the reply to one, with another identifier.
    pub fn identify(&mut self, id: u16) {
        let defect = self.message_defect();
        let at = self.at + 4;
        self.bytes[at..at + 2].copy_from_slice(&id.to_be_bytes());
        self.sum_message(defect);
    }

    /// Of TCP.
    pub fn sequence(&self) -> u32 {
        long(self.segment(), 4)
    }

    /// Of TCP.
    pub fn acknowledged(&self) -> u32 {
        long(self.segment(), 8)
    }

    /// Whether a segment of TCP has more than a header.
    pub fn has_data(&self) -> bool {
        self.segment().len() > self.header()
    }

    /// What a segment of TCP has behind its header.
    pub fn data(&self) -> &[u8] {
        &self.segment()[self.header()..]
    }

    /// Other data of the same length.
    pub fn set_data(&mut self, data: &[u8]) {
        let header = self.header();
        self.edit(|segment| segment[header..].copy_from_slice(data));
    }

    /// Of TCP.
    pub fn set_sequence(&mut self, sequence: u32) {
        self.edit(|segment| segment[4..8].copy_from_slice(&sequence.to_be_bytes()));
    }

    /// Changes all that a segment of TCP acknowledges, also what it does selectively (RFC 2018).
    pub fn acknowledge(&mut self, change: impl Fn(u32) -> u32) {
        let blocks = self.options().into_iter().filter(|option| option.0 == 5);
        let edges =
            blocks.flat_map(|(_, begin, end)| (begin..).step_by(4).take_while(move |at| at + 4 <= end));
        let edges: Vec<usize> = edges.collect();
        self.edit(|segment| {
            for at in edges.into_iter().chain([8]) {
                let number = change(long(segment, at));
                segment[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
        });
    }

    /// Changes the maximum segment size that a SYN tells (RFC 9293, 3.7.1).
    pub fn change_size(&mut self, change: impl Fn(u16) -> u16) {
        let size = self.options().into_iter().find(|&(kind, begin, end)| kind == 2 && end - begin == 2);
        let Some((_, at, _)) = size else { return };
        self.edit(|segment| {
            let size = change(word(segment, at));
            segment[at..at + 2].copy_from_slice(&size.to_be_bytes());
        });
    }

    /// Puts data in front of that of a segment of TCP.
    pub fn insert(&mut self, data: &[u8]) {
        let defect = self.defect();
        let at = self.at + self.header();
        self.bytes.splice(at..at, data.iter().copied());
        let at_length = if self.is_six() { 4 } else { 2 };
        let length = word(&self.bytes, at_length) + data.len() as u16;
        self.bytes[at_length..at_length + 2].copy_from_slice(&length.to_be_bytes());
        self.sum_header(0);
        self.sum_segment(defect);
    }

    /// Length of a TCP header.
    fn header(&self) -> usize {
        usize::from(self.segment()[12] >> 4) * 4
    }

    /// Of TCP, as far as they make sense: kind, and where what follows begins and ends in the segment.
    fn options(&self) -> Vec<(u8, usize, usize)> {
        let (segment, end) = (self.segment(), self.header());
        let (mut options, mut at) = (Vec::new(), 20);
        while at + 1 < end && segment[at] != 0 {
            let length = if segment[at] == 1 { 1 } else { usize::from(segment[at + 1]) };
            if length == 0 || at + length > end || length == 1 && segment[at] != 1 {
                break;
            }
            options.push((segment[at], at + length.min(2), at + length));
            at += length;
        }
        options
    }

    /// Changes the segment, and leaves its checksum as wrong as it was.
    fn edit(&mut self, edit: impl FnOnce(&mut [u8])) {
        let defect = self.defect();
        edit(&mut self.bytes[self.at..]);
        self.sum_segment(defect);
    }

    /// Writes the checksum of an ICMP message, as wrong as that.
    pub fn sum_message(&mut self, defect: u16) {
        let at = self.at + 2;
        self.bytes[at..at + 2].fill(0);
        let sum = 0xFFFF - add(0xFFFF - self.message_defect(), defect);
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// By how much the checksum of an ICMP message is wrong.
    pub fn message_defect(&self) -> u16 {
        0xFFFF - if self.is_six() { self.sum_of_segment() } else { sum(self.segment()) }
    }

    /// By how much the checksum of the segment is wrong; 0 if it is right, `None` if it has none (UDP).
    fn defect(&self) -> Option<u16> {
        if self.protocol == UDP && word(self.segment(), 6) == 0 {
            return None;
        }
        Some(0xFFFF - self.sum_of_segment())
    }

    /// Writes the segment's checksum: summed anew, and as wrong as it was (RFC 1624: a translator must not mend what was damaged).
    fn sum_segment(&mut self, defect: Option<u16>) {
        let Some(defect) = defect else { return };
        let at = self.at + checksum_at(self.protocol);
        self.bytes[at..at + 2].fill(0);
        let mut checksum = 0xFFFF - add(self.sum_of_segment(), defect);
        if self.protocol == UDP && checksum == 0 {
            checksum = 0xFFFF;
        }
        self.bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    fn sum_of_segment(&self) -> u16 {
        sum_with_pseudo_header(self.source, self.destination, self.protocol, self.segment())
    }

    /// By how much the checksum of the IP header is wrong, which only that of a quoted one may be.
    fn header_defect(&self) -> u16 {
        if self.is_six() { 0 } else { 0xFFFF - sum(&self.bytes[..header_of_four(&self.bytes)]) }
    }

    fn sum_header(&mut self, defect: u16) {
        if !self.is_six() {
            self.bytes[10..12].fill(0);
            let sum = 0xFFFF - add(sum(&self.bytes[..header_of_four(&self.bytes)]), defect);
            self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// One of a packet's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Where the checksum stands in a segment of TCP, UDP or ICMP.
pub fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

/// The sum that a checksum is the complement of, RFC 1071.
pub fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum, pair| add(sum, u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
}

pub fn sum_with_pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut covered = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(four) => covered.extend(four.octets()),
            IpAddr::V6(six) => covered.extend(six.octets()),
        }
    }
    covered.extend((segment.len() as u32).to_be_bytes());
    covered.extend([0, 0, 0, protocol]);
    covered.extend(segment);
    sum(&covered)
}

/// In ones' complement.
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}
