//! Just enough of Ethernet, ARP, IPv4, ICMP, TCP and UDP to check what a router did, and to make what it should
//! refuse; of IPv6, what it takes to make packets.
//!
//! Written apart from the router's own parser on purpose: a misreading of an RFC must not be made twice in the
//! same way.  Checksums are always computed over everything (RFC 1071), never updated.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;

/// IPv4's ethertype.
pub const IPV4: u16 = 0x0800;
/// IPv6's ethertype.
pub const IPV6: u16 = 0x86dd;
/// ARP's ethertype.
pub const ARP: u16 = 0x0806;

/// TCP's flag bits.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// A MAC address.
pub type Mac = [u8; 6];

/// A frame as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Nanoseconds since the epoch.
    pub at: u64,
    /// The bytes from the destination MAC on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The destination MAC.
    pub fn destination_mac(&self) -> Mac {
        self.mac(0)
    }

    /// The source MAC.
    pub fn source_mac(&self) -> Mac {
        self.mac(6)
    }

    fn mac(&self, at: usize) -> Mac {
        self.bytes.get(at..at + 6).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
    }

    /// The ethertype.
    pub fn ethertype(&self) -> u16 {
        word(&self.bytes, 12).unwrap_or(0)
    }

    /// The IPv4 packet in it, if it is one with all its bytes.
    pub fn ipv4(&self) -> Option<Ipv4<'_>> {
        (self.ethertype() == IPV4).then(|| Ipv4::parse(&self.bytes[ETHERNET..])).flatten()
    }

    /// The TCP segment in it.
    pub fn tcp(&self) -> Option<Tcp<'_>> {
        let ip = self.ipv4()?;
        (ip.protocol() == 6 && ip.payload().len() >= 20).then_some(Tcp { ip })
    }

    /// The UDP datagram in it.
    pub fn udp(&self) -> Option<Udp<'_>> {
        let ip = self.ipv4()?;
        (ip.protocol() == 17 && ip.payload().len() >= 8).then_some(Udp { ip })
    }

    /// The ARP packet for IPv4 over Ethernet in it.
    pub fn arp(&self) -> Option<Arp> {
        let body = self.bytes.get(ETHERNET..ETHERNET + 28).filter(|_| self.ethertype() == ARP)?;
        Some(Arp {
            operation: word(body, 6)?,
            sender_mac: body[8..14].try_into().ok()?,
            sender: address(body, 14)?,
            target: address(body, 24)?,
        })
    }

    /// Whether the bytes of an address stand anywhere in it, as address or inside something else.
    pub fn mentions(&self, address: impl Into<IpAddr>) -> bool {
        let octets = octets(address.into());
        self.bytes.windows(octets.len()).any(|window| window == octets)
    }
}

/// An ARP packet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 = request, 2 = reply.
    pub operation: u16,
    /// Who says it.
    pub sender_mac: Mac,
    /// The sender's address.
    pub sender: Ipv4Addr,
    /// Whose MAC is asked for.
    pub target: Ipv4Addr,
}

/// An IPv4 packet, complete (RFC 791).
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    /// The packet at the start of `bytes`; padding after it is left out.
    pub fn parse(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let header = usize::from(bytes.first()? & 0x0f) * 4;
        let total = usize::from(word(bytes, 2)?);
        let sound = bytes[0] >> 4 == 4 && header >= 20 && header <= total && total <= bytes.len();
        sound.then(|| Ipv4(&bytes[..total]))
    }

    fn header_length(&self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// Length of header and payload, as the header says it.
    pub fn total_length(&self) -> usize {
        self.0.len()
    }

    /// The identification field.
    pub fn identification(&self) -> u16 {
        word(self.0, 4).unwrap_or(0)
    }

    /// Time to live.
    pub fn ttl(&self) -> u8 {
        self.0[8]
    }

    /// The protocol number.
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// The source address.
    pub fn source(&self) -> Ipv4Addr {
        address(self.0, 12).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The destination address.
    pub fn destination(&self) -> Ipv4Addr {
        address(self.0, 16).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// What follows the header.
    pub fn payload(&self) -> &'a [u8] {
        &self.0[self.header_length()..]
    }

    /// Whether the header's checksum is right, and the transport's if it is TCP, UDP or ICMP.
    pub fn checksums_are_right(&self) -> bool {
        let payload = self.payload();
        let transport = match self.protocol() {
            // A UDP checksum of zero means that there is none (RFC 768).
            17 if word(payload, 6) == Some(0) => true,
            6 | 17 => {
                let (source, destination) = (self.source().into(), self.destination().into());
                pseudo_sum(source, destination, self.protocol(), payload) == 0xffff
            }
            1 => sum(payload) == 0xffff,
            _ => true,
        };
        sum(&self.0[..self.header_length()]) == 0xffff && transport
    }
}

/// A TCP segment (RFC 9293).
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    ip: Ipv4<'a>,
}

impl<'a> Tcp<'a> {
    /// The packet that carries it.
    pub fn ip(&self) -> Ipv4<'a> {
        self.ip
    }

    /// From where.
    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.source(), word(self.ip.payload(), 0).unwrap_or(0))
    }

    /// To where.
    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.destination(), word(self.ip.payload(), 2).unwrap_or(0))
    }

    /// The flag bits.
    pub fn flags(&self) -> u8 {
        self.ip.payload()[13]
    }

    /// The segment without ports and checksum: what translation must leave alone.
    pub fn untranslated(&self) -> Vec<u8> {
        let mut bytes = self.ip.payload()[4..].to_vec();
        bytes[12..14].fill(0);
        bytes
    }

    /// The data it carries.
    pub fn data(&self) -> &'a [u8] {
        let segment = self.ip.payload();
        segment.get(usize::from(segment[12] >> 4) * 4..).unwrap_or_default()
    }
}

/// A UDP datagram (RFC 768).
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    ip: Ipv4<'a>,
}

impl<'a> Udp<'a> {
    /// The packet that carries it.
    pub fn ip(&self) -> Ipv4<'a> {
        self.ip
    }

    /// From where.
    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.source(), word(self.ip.payload(), 0).unwrap_or(0))
    }

    /// To where.
    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.destination(), word(self.ip.payload(), 2).unwrap_or(0))
    }

    /// The data it carries.
    pub fn data(&self) -> &'a [u8] {
        &self.ip.payload()[8..]
    }
}

/// A frame under construction; every field can be given a wrong value, checksums are right unless spoilt.
#[derive(Clone, Debug)]
pub struct Craft {
    /// Destination MAC.
    pub to_mac: Mac,
    /// Source MAC.
    pub from_mac: Mac,
    /// Ethertype.
    pub ethertype: u16,
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub destination: SocketAddr,
    /// 6, 17, 1 or anything.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Version and header length byte, if it shall not be right.
    pub version_and_length: Option<u8>,
    /// Total length, if it shall not be right.
    pub total_length: Option<u16>,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP data offset in words, if it shall not be right.
    pub data_offset: Option<u8>,
    /// UDP length, if it shall not be right.
    pub udp_length: Option<u16>,
    /// What is added to the right IPv4 header checksum.
    pub spoil_header: u16,
    /// What is added to the right transport checksum.
    pub spoil_transport: u16,
    /// The data at the end.
    pub data: Vec<u8>,
}

impl Craft {
    /// A TCP segment with SYN.
    pub fn syn(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Craft {
        let (source, destination) = (source.into(), destination.into());
        Craft {
            to_mac: [0; 6],
            from_mac: [0; 6],
            ethertype: if source.is_ipv4() { IPV4 } else { IPV6 },
            source,
            destination,
            protocol: 6,
            ttl: 64,
            version_and_length: None,
            total_length: None,
            fragment: 0,
            options: vec![],
            flags: flag::SYN,
            sequence: 1,
            data_offset: None,
            udp_length: None,
            spoil_header: 0,
            spoil_transport: 0,
            data: vec![],
        }
    }

    /// A UDP datagram.
    pub fn udp(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>, data: &[u8]) -> Craft {
        Craft { protocol: 17, data: data.to_vec(), ..Craft::syn(source, destination) }
    }

    /// An ICMP echo request.
    pub fn ping(source: Ipv4Addr, destination: Ipv4Addr) -> Craft {
        let (source, destination) = (SocketAddrV4::new(source, 0), SocketAddrV4::new(destination, 0));
        Craft { protocol: 1, data: b"echo".to_vec(), ..Craft::syn(source, destination) }
    }

    /// From and to which MAC.
    pub fn between(self, from_mac: Mac, to_mac: Mac) -> Craft {
        Craft { from_mac, to_mac, ..self }
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        frame.extend(self.ethertype.to_be_bytes());
        let payload = self.transport();
        frame.extend(if self.source.is_ipv4() {
            self.ipv4_header(payload.len())
        } else {
            self.ipv6_header(payload.len())
        });
        frame.extend(payload);
        frame
    }

    fn ipv4_header(&self, payload: usize) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = self.total_length.unwrap_or((header + payload) as u16);
        let mut ip = vec![self.version_and_length.unwrap_or(0x40 | (header / 4) as u8), 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol, 0, 0]);
        ip.extend(octets(self.source.ip()));
        ip.extend(octets(self.destination.ip()));
        ip.extend(&self.options);
        let checksum = (!sum(&ip)).wrapping_add(self.spoil_header);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    }

    fn ipv6_header(&self, payload: usize) -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((payload as u16).to_be_bytes());
        ip.extend([self.protocol, self.ttl]);
        ip.extend(octets(self.source.ip()));
        ip.extend(octets(self.destination.ip()));
        ip
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match self.protocol {
            6 => {
                bytes.extend(self.source.port().to_be_bytes());
                bytes.extend(self.destination.port().to_be_bytes());
                bytes.extend(self.sequence.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend([self.data_offset.unwrap_or(5) << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            17 => {
                bytes.extend(self.source.port().to_be_bytes());
                bytes.extend(self.destination.port().to_be_bytes());
                bytes.extend(self.udp_length.unwrap_or(8 + self.data.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            1 => {
                bytes.extend([8, 0, 0, 0, 0x77, 0x01, 0, 1]);
                2
            }
            _ => return self.data.clone(),
        };
        bytes.extend(&self.data);
        let sum = match self.protocol {
            1 => sum(&bytes),
            protocol => pseudo_sum(self.source.ip(), self.destination.ip(), protocol, &bytes),
        };
        let checksum = match !sum {
            // Zero would say that there is no checksum (RFC 768).
            0 if self.protocol == 17 => 0xffff,
            checksum => checksum,
        };
        let checksum = checksum.wrapping_add(self.spoil_transport);
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// The fragments of a frame without IPv4 options, with so many bytes of its packet each at the most, under an identification.
pub fn fragments(frame: &[u8], size: usize, identification: u16) -> Vec<Vec<u8>> {
    const HEADERS: usize = ETHERNET + 20;
    let (headers, data) = frame.split_at(HEADERS);
    let size = size / 8 * 8;
    let fragment = |(index, piece): (usize, &[u8])| {
        let mut frame = [headers, piece].concat();
        let more = if (index + 1) * size < data.len() { 0x2000 } else { 0 };
        let place = (index * size / 8) as u16 | more;
        let mut put = |at: usize, value: u16| {
            frame[ETHERNET + at..ETHERNET + at + 2].copy_from_slice(&value.to_be_bytes());
        };
        put(2, 20 + piece.len() as u16);
        put(4, identification);
        put(6, place);
        put(10, 0);
        let checksum = !sum(&frame[ETHERNET..HEADERS]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
        frame
    };
    data.chunks(size).enumerate().map(fragment).collect()
}

/// As [`fragments`], of a frame of IPv6 without extension headers (RFC 8200, 4.5).
pub fn ipv6_fragments(frame: &[u8], size: usize, identification: u32) -> Vec<Vec<u8>> {
    const FRAGMENT: u8 = 44;
    let (headers, data) = frame.split_at(ETHERNET + 40);
    let size = (size - 8) / 8 * 8;
    let fragment = |(index, piece): (usize, &[u8])| {
        let more = u16::from((index + 1) * size < data.len());
        let mut frame = headers.to_vec();
        let upper = std::mem::replace(&mut frame[ETHERNET + 6], FRAGMENT);
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
        frame.extend([upper, 0]);
        frame.extend(((index * size) as u16 | more).to_be_bytes());
        frame.extend(identification.to_be_bytes());
        frame.extend(piece);
        frame
    };
    data.chunks(size).enumerate().map(fragment).collect()
}

/// The MAC that the harness gives to the interface with this address.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0, a, b, c, d]
}

/// A MAC as people write it.
pub fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The pseudo-headers of both families have the same sum: of the addresses, the protocol and the length.
fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(36 + segment.len());
    bytes.extend(octets(source));
    bytes.extend(octets(destination));
    bytes.extend([0, protocol]);
    bytes.extend((segment.len() as u16).to_be_bytes());
    bytes.extend(segment);
    sum(&bytes)
}

/// The ones' complement sum of RFC 1071; 0xffff over anything that includes its own right checksum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> (SocketAddrV4, SocketAddrV4) {
        ("192.0.2.100:40000".parse().unwrap(), "192.0.2.10:80".parse().unwrap())
    }

    #[test]
    fn what_is_crafted_reads_back_with_right_checksums() {
        let (client, vip) = addresses();
        for data in [&b""[..], b"odd", b"even"] {
            let craft = Craft { data: data.to_vec(), ..Craft::syn(client, vip) };
            let frame = Frame { at: 0, bytes: craft.build() };
            let tcp = frame.tcp().unwrap();
            assert_eq!((tcp.source(), tcp.destination(), tcp.data()), (client, vip, data));
            assert!(tcp.ip().checksums_are_right());
            let frame = Frame { at: 0, bytes: Craft::udp(client, vip, data).build() };
            assert!(frame.udp().unwrap().ip().checksums_are_right());
        }
    }

    #[test]
    fn a_spoilt_checksum_is_seen() {
        let (client, vip) = addresses();
        for craft in [
            Craft { spoil_header: 1, ..Craft::syn(client, vip) },
            Craft { spoil_transport: 1, ..Craft::syn(client, vip) },
            Craft { spoil_transport: 1, ..Craft::udp(client, vip, b"x") },
        ] {
            let frame = Frame { at: 0, bytes: craft.build() };
            assert!(!frame.ipv4().unwrap().checksums_are_right());
        }
    }

    #[test]
    fn a_known_header_has_its_known_checksum() {
        // The worked example of RFC 1071's readers: 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(sum(&header), 0xffff);
    }
}
