//! The fields of a frame by their names, which are those of Wireshark: to say what a rewrite has changed, and where two frames differ.
//!
//! Written for people who look at differences, so it takes every frame, and what it does not know is `data`. The packet path has views of its
//! own ([`dataplane::wire`]), which are made to be fast and know only what it needs.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use serde::Serialize;

/// What a field is, as far as it is shown in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mac,
    Address,
    Number,
    Bytes,
}

use Kind::{Address, Bytes, Mac, Number};

/// Name, length, kind; one after the other.
type Layout = &'static [(&'static str, usize, Kind)];

const ETHERNET: Layout = &[("eth.dst", 6, Mac), ("eth.src", 6, Mac), ("eth.type", 2, Bytes)];
const VLAN: Layout = &[("vlan.tci", 2, Bytes), ("vlan.etype", 2, Bytes)];
const IPV4: Layout = &[
    ("ip.version", 1, Bytes),
    ("ip.dsfield", 1, Bytes),
    ("ip.len", 2, Number),
    ("ip.id", 2, Bytes),
    ("ip.flags", 2, Bytes),
    ("ip.ttl", 1, Number),
    ("ip.proto", 1, Number),
    ("ip.checksum", 2, Bytes),
    ("ip.src", 4, Address),
    ("ip.dst", 4, Address),
];
const IPV6: Layout = &[
    ("ipv6.flow", 4, Bytes),
    ("ipv6.plen", 2, Number),
    ("ipv6.nxt", 1, Number),
    ("ipv6.hlim", 1, Number),
    ("ipv6.src", 16, Address),
    ("ipv6.dst", 16, Address),
];
const FRAGMENT: Layout = &[
    ("ipv6.fraghdr.nxt", 1, Number),
    ("ipv6.fraghdr.reserved_octet", 1, Bytes),
    ("ipv6.fraghdr.offset", 2, Bytes),
    ("ipv6.fraghdr.ident", 4, Bytes),
];
const TCP: Layout = &[
    ("tcp.srcport", 2, Number),
    ("tcp.dstport", 2, Number),
    ("tcp.seq", 4, Number),
    ("tcp.ack", 4, Number),
    ("tcp.flags", 2, Bytes),
    ("tcp.window_size", 2, Number),
    ("tcp.checksum", 2, Bytes),
    ("tcp.urgent_pointer", 2, Number),
];
const UDP: Layout = &[
    ("udp.srcport", 2, Number),
    ("udp.dstport", 2, Number),
    ("udp.length", 2, Number),
    ("udp.checksum", 2, Bytes),
];
const SCTP: Layout = &[
    ("sctp.srcport", 2, Number),
    ("sctp.dstport", 2, Number),
    ("sctp.verification_tag", 4, Bytes),
    ("sctp.checksum", 4, Bytes),
];
const ICMP: Layout = &[
    ("icmp.type", 1, Number),
    ("icmp.code", 1, Number),
    ("icmp.checksum", 2, Bytes),
    ("icmp.rest", 4, Bytes),
];
const ICMPV6: Layout = &[
    ("icmpv6.type", 1, Number),
    ("icmpv6.code", 1, Number),
    ("icmpv6.checksum", 2, Bytes),
    ("icmpv6.rest", 4, Bytes),
];

const IPV4_TYPE: [u8; 2] = [0x08, 0x00];
const IPV6_TYPE: [u8; 2] = [0x86, 0xDD];
const VLAN_TYPES: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xA8]];

/// Bytes of a long field that are shown.
const FEW: usize = 8;

/// A field of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    /// What it is in: nothing, or a packet within the packet.
    within: &'static str,
    name: &'static str,
    place: Range<usize>,
    kind: Kind,
}

/// A field in which two frames differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name, as Wireshark has it.
    pub field: Cow<'static, str>,
    /// Where it is, from the beginning of the frame.
    pub at: usize,
    /// In the first frame.
    pub from: String,
    /// In the second one.
    pub to: String,
}

/// The fields in which the second frame is not the first one. Fields are compared by name, so that a header that is put before others is
/// not a change of all that follows.
pub fn changes(first: &[u8], second: &[u8]) -> Vec<Change> {
    let (old, new) = (fields(first), fields(second));
    let mut changes = Vec::new();
    if first.len() != second.len() {
        let (from, to) = (first.len().to_string(), second.len().to_string());
        changes.push(Change { field: Cow::Borrowed("frame.len"), at: 0, from, to });
    }
    for (index, field) in new.iter().enumerate() {
        let is_same = |other: &&Field| other.name == field.name && other.within == field.within;
        // Mostly it has the same place among all.
        let other = old.get(index).filter(is_same).or_else(|| old.iter().find(is_same));
        let Some(other) = other else { continue };
        let (from, to) = (&first[other.place.clone()], &second[field.place.clone()]);
        if from != to {
            let skipped = if field.kind == Bytes && to.len() > FEW {
                from.iter().zip(to).take_while(|(a, b)| a == b).count()
            } else {
                0
            };
            let [from, to] = [from, to].map(|bytes| field.kind.text(&bytes[skipped.min(bytes.len())..]));
            let name = match field.within {
                "" => Cow::Borrowed(field.name),
                within => Cow::Owned([within, field.name].concat()),
            };
            changes.push(Change { field: name, at: field.place.start + skipped, from, to });
        }
    }
    changes
}

/// All fields, in their order.
fn fields(frame: &[u8]) -> Vec<Field> {
    let mut walk = Walk { frame, at: 0, end: frame.len(), within: "", fields: Vec::with_capacity(32) };
    walk.ethernet();
    walk.fields
}

/// How far a frame has been taken apart.
struct Walk<'a> {
    frame: &'a [u8],
    at: usize,
    /// Where what is taken apart ends.
    end: usize,
    within: &'static str,
    fields: Vec<Field>,
}

impl Walk<'_> {
    fn ethernet(&mut self) {
        self.header(ETHERNET);
        while self.at >= 14 && VLAN_TYPES.iter().any(|known| self.behind(2) == known) && self.has(4) {
            self.header(VLAN);
        }
        if self.at >= 14 && self.behind(2) == IPV4_TYPE {
            self.ipv4();
        } else if self.at >= 14 && self.behind(2) == IPV6_TYPE {
            self.ipv6();
        } else {
            return self.rest("data");
        }
        self.within = "";
        self.end = self.frame.len();
        self.rest("eth.trailer");
    }

    fn ipv4(&mut self) {
        let begin = self.at;
        let Some(&[version, _, high, low, _, _, fragment, offset, _, protocol]) = self.ahead().first_chunk()
        else {
            return self.rest("data");
        };
        let header = usize::from(version & 15) * 4;
        if version >> 4 != 4 || header < 20 || !self.has(20) {
            return self.rest("data");
        }
        let total = usize::from(u16::from_be_bytes([high, low]));
        self.end = self.end.min(begin + total.max(header));
        self.header(IPV4);
        self.bytes("ip.options", header - 20);
        match (fragment & 0x1F, offset) {
            (0, 0) => self.payload(protocol),
            _ => self.rest("data"),
        }
    }

    fn ipv6(&mut self) {
        let begin = self.at;
        let Some(&[version, _, _, _, high, low, next, _]) = self.ahead().first_chunk() else {
            return self.rest("data");
        };
        if version >> 4 != 6 || !self.has(40) {
            return self.rest("data");
        }
        self.end = self.end.min(begin + 40 + usize::from(u16::from_be_bytes([high, low])));
        self.header(IPV6);
        self.extensions(next);
    }

    /// Extension headers, and what is behind them.
    fn extensions(&mut self, mut next: u8) {
        loop {
            let name = match next {
                0 => "ipv6.hopopts",
                43 => "ipv6.routing",
                60 => "ipv6.dstopts",
                44 => "",
                _ => return self.payload(next),
            };
            let Some(&[after, length, high, low]) = self.ahead().first_chunk() else {
                return self.rest("data");
            };
            next = after;
            if !name.is_empty() {
                self.bytes(name, (usize::from(length) + 1) * 8);
                continue;
            }
            self.header(FRAGMENT);
            if u16::from_be_bytes([high, low]) >> 3 != 0 {
                return self.rest("data");
            }
        }
    }

    /// What is behind the headers of IP.
    fn payload(&mut self, protocol: u8) {
        match protocol {
            6 => self.tcp(),
            17 => {
                self.header(UDP);
                self.rest("udp.payload");
            }
            132 => {
                self.header(SCTP);
                self.rest("sctp.chunks");
            }
            1 => self.icmp(),
            58 => self.icmpv6(),
            4 | 41 if self.within.is_empty() => {
                self.within = "inner ";
                if protocol == 4 { self.ipv4() } else { self.ipv6() }
            }
            _ => self.rest("data"),
        }
    }

    fn tcp(&mut self) {
        let header = self.ahead().get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
        self.header(TCP);
        self.bytes("tcp.options", header.saturating_sub(20));
        self.rest("tcp.payload");
    }

    fn icmp(&mut self) {
        let is_error = self.ahead().first().is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
        self.header(ICMP);
        if is_error && self.within.is_empty() {
            self.within = "quoted ";
            return self.ipv4();
        }
        self.rest("data");
    }

    fn icmpv6(&mut self) {
        let is_error = self.ahead().first().is_some_and(|kind| *kind < 128);
        self.header(ICMPV6);
        if is_error && self.within.is_empty() {
            self.within = "quoted ";
            return self.ipv6();
        }
        self.rest("data");
    }

    /// As much of a header as there is.
    fn header(&mut self, layout: Layout) {
        for &(name, length, kind) in layout {
            let length = length.min(self.end - self.at);
            self.push(name, length, kind);
        }
    }

    fn bytes(&mut self, name: &'static str, length: usize) {
        self.push(name, length.min(self.end - self.at), Bytes);
    }

    fn rest(&mut self, name: &'static str) {
        self.bytes(name, usize::MAX);
    }

    fn push(&mut self, name: &'static str, length: usize, kind: Kind) {
        if length > 0 {
            let place = self.at..self.at + length;
            self.fields.push(Field { within: self.within, name, place, kind });
            self.at += length;
        }
    }

    fn has(&self, length: usize) -> bool {
        self.end - self.at >= length
    }

    fn ahead(&self) -> &[u8] {
        &self.frame[self.at..self.end]
    }

    fn behind(&self, length: usize) -> &[u8] {
        &self.frame[self.at - length..self.at]
    }
}

impl Kind {
    fn text(self, bytes: &[u8]) -> String {
        match (self, bytes) {
            (Mac, _) => hex(bytes, Some(':')),
            (Address, &[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).to_string(),
            (Address, _) => <[u8; 16]>::try_from(bytes)
                .map_or_else(|_| hex(bytes, None), |address| Ipv6Addr::from(address).to_string()),
            (Number, [_] | [_, _] | [_, _, _, _]) => {
                bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)).to_string()
            }
            _ if bytes.len() > FEW => hex(&bytes[..FEW], None) + "...",
            _ => hex(bytes, None),
        }
    }
}

/// By hand, since most of the time that a line takes goes here.
fn hex(bytes: &[u8], separator: Option<char>) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(3 * bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        text.extend(separator.filter(|_| index > 0));
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use dataplane::service::Protocol;
    use dataplane::wire::icmp;
    use dataplane::wire::made::Made;
    use proptest::prelude::*;

    use super::*;

    fn frame(protocol: Protocol) -> Vec<u8> {
        let (source, destination) = ("198.51.100.7:40112".parse().unwrap(), "192.0.2.10:80".parse().unwrap());
        let made = Made { protocol, source, destination, flags: 2, ttl: 64, length: 60 };
        made.frame(&[2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2])
    }

    fn texts(first: &[u8], second: &[u8]) -> Vec<String> {
        let text = |Change { field, at, from, to }| format!("{at} {field}: {from} -> {to}");
        changes(first, second).into_iter().map(text).collect()
    }

    #[test]
    fn a_rewrite_in_words() {
        let before = frame(Protocol::Tcp);
        let mut after = before.clone();
        after[..6].copy_from_slice(&[2, 0, 10, 0, 0, 11]);
        after[22] = 63;
        after[30..34].copy_from_slice(&[10, 0, 0, 11]);
        after[37] = 90;
        assert_eq!(
            texts(&before, &after),
            [
                "0 eth.dst: 02:00:00:00:00:02 -> 02:00:0a:00:00:0b",
                "22 ip.ttl: 64 -> 63",
                "30 ip.dst: 192.0.2.10 -> 10.0.0.11",
                "36 tcp.dstport: 80 -> 90",
            ]
        );
        assert!(changes(&before, &before).is_empty());
    }

    #[test]
    fn what_is_within_and_what_is_longer() {
        let packet = &frame(Protocol::Udp)[14..];
        use dataplane::wire::version::Version;
        let error = icmp::error(1u32, 2, u32::PORT_UNREACHABLE, 0, packet);
        let before = [&[0; 12][..], &[8, 0], &error].concat();
        let mut after = before.clone();
        after[14 + 28 + 16] = 10;
        *after.last_mut().unwrap() = 9;
        assert_eq!(
            texts(&before, &after),
            ["58 quoted ip.dst: 192.0.2.10 -> 10.0.2.10", "101 quoted udp.payload: 00 -> 09"]
        );
        let before = frame(Protocol::Sctp);
        let mut after = before.clone();
        (after[37], after[45], after[46]) = (90, !before[45], 9);
        let [old, new] = [&before, &after].map(|frame| hex(&frame[42..46], None));
        let chunks = hex(&before[46..54], None);
        assert_eq!(
            texts(&before, &after),
            [
                "36 sctp.dstport: 80 -> 90".to_owned(),
                format!("42 sctp.checksum: {old} -> {new}"),
                format!("46 sctp.chunks: {chunks}... -> 09{}...", &chunks[2..]),
            ]
        );
        let mut tagged = frame(Protocol::Tcp);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(
            texts(&frame(Protocol::Tcp), &tagged),
            ["0 frame.len: 74 -> 78", "12 eth.type: 0800 -> 8100"]
        );
        let mut outer = before[..34].to_vec();
        outer[16..18].copy_from_slice(&80u16.to_be_bytes());
        outer[23] = 4;
        let encapsulated = [&outer[..], packet].concat();
        let changed = texts(&[&before[..14], packet].concat(), &encapsulated);
        assert_eq!(changed[0], "0 frame.len: 74 -> 94");
        assert!(changed.contains(&"23 ip.proto: 17 -> 4".to_owned()), "{changed:?}");
        assert!(!changed.iter().any(|change| change.contains("udp")), "{changed:?}");
    }

    #[test]
    fn a_rewrite_of_ipv6_behind_extensions() {
        let (source, destination) =
            ("[2001:db8:c::7]:40112".parse().unwrap(), "[2001:db8::10]:53".parse().unwrap());
        let made = Made { protocol: Protocol::Udp, source, destination, flags: 0, ttl: 64, length: 60 };
        let mut before = made.frame(&[2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2]);
        // Destination options, and the header of a first fragment.
        before.splice(54..54, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 9]);
        (before[19], before[20]) = (36, 60);
        let mut after = before.clone();
        (after[21], after[52], after[53]) = (63, 0x0A, 0x11);
        (after[59], after[69], after[73]) = (1, 8, 54);
        let expected = [
            "21 ipv6.hlim: 64 -> 63",
            "38 ipv6.dst: 2001:db8::10 -> 2001:db8::a11",
            "54 ipv6.dstopts: 2c00010400000000 -> 2c00010400010000",
            "66 ipv6.fraghdr.ident: 00000009 -> 00000008",
            "72 udp.dstport: 53 -> 54",
        ];
        assert_eq!(texts(&before, &after), expected);
        // Of a later one no port is told.
        (before[65], after[65]) = (9, 9);
        let changed = texts(&before, &after);
        assert!(changed[4].starts_with("73 data: 350014"), "{changed:?}");

        let quoted = &made.frame(&[2; 6], &[4; 6])[14..];
        use dataplane::wire::version::Version;
        let error = icmp::error(1u128, 2, u128::TOO_BIG, 1280, quoted);
        let before = [&[0; 12][..], &[0x86, 0xDD], &error].concat();
        let mut after = before.clone();
        (after[61], after[62 + 39], after[62 + 43]) = (1, 0x11, 54);
        let expected = [
            "58 icmpv6.rest: 00000500 -> 00000501",
            "86 quoted ipv6.dst: 2001:db8::10 -> 2001:db8::11",
            "104 quoted udp.dstport: 53 -> 54",
        ];
        assert_eq!(texts(&before, &after), expected);
    }

    proptest! {
        /// Whatever it is, it is taken apart without a gap, and one byte that differs is found in its place.
        #[test]
        fn every_byte_is_in_a_field(
            mut frame in prop::collection::vec(any::<u8>(), 0..120),
            kind in 0..6usize,
            protocol in prop::sample::select(&[0u8, 1, 4, 6, 17, 41, 43, 44, 58, 60, 132][..]),
            at in any::<prop::sample::Index>(),
        ) {
            if frame.len() > 24 && kind > 3 {
                frame[12..15].copy_from_slice(&[0x86, 0xDD, 0x60]);
                frame[20] = protocol;
            } else if frame.len() > 24 && kind > 0 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = protocol;
            }
            let fields = fields(&frame);
            let mut end = 0;
            for field in &fields {
                prop_assert_eq!(field.place.start, end);
                end = field.place.end;
            }
            prop_assert_eq!(end, frame.len());
            if !frame.is_empty() {
                let mut other = frame.clone();
                // Not one by which it would be taken apart otherwise.
                let at = at.index(frame.len());
                if !(12..24).contains(&at) && at < 30 {
                    other[at] ^= 1;
                    prop_assert_eq!(changes(&frame, &other).len(), 1);
                }
            }
        }
    }
}
