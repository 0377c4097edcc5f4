//! The one line of an FTP control connection in which address translation has to change something: the reply 227, by which a server says
//! where it listens (RFC 959).
//!
//! PORT and EPRT (RFC 2428) name the client, whom servers behind NAT see as it is; 229 names a port alone, which stays. And 227 is
//! prose around six numbers, of which clients must not expect more than that (RFC 1123, 4.1.2.6). So the prose gives way to another
//! address, or is filled up with blanks: the stream keeps its length, and nobody has to remember that it was changed. What is sent
//! again is changed again, to the same.

use super::checksum::{self, Delta, mend};
use super::proxy::header_length;
use super::transport::TCP_CHECKSUM;

/// The port of control connections.
pub const CONTROL: u16 = 21;
/// The port from which servers open data connections.
pub const DATA: u16 = 20;

/// A longer line is none that is meant well.
const LONGEST: usize = 128;
/// What it begins with, and what has to be left of it.
const CODE: &[u8] = b"227 ";

/// Has a server's segment say that this is where it listens, if it says so of its own address. A segment that is not this one line, and
/// all of it, stays as it is; so does one that names another host, which a server has no business to. Whether it is such a reply, and says
/// something else after all.
pub fn announce(segment: &mut [u8], server: u32, instead: u32) -> bool {
    let Some(header) = header_length(segment) else { return false };
    let Some(line) = segment.get_mut(header..) else { return false };
    let before = checksum::sum(line);
    if replace(line, server, instead) {
        let delta = Delta::word(before, checksum::sum(line));
        mend(segment, TCP_CHECKSUM, delta);
        return false;
    }
    line.starts_with(CODE) && address(line, instead).is_none()
}

fn replace(line: &mut [u8], server: u32, instead: u32) -> bool {
    let Some((open, comma)) = address(line, server) else { return false };
    let mut text = [0; 15];
    let length = write(&mut text, instead);
    let Some(start) = comma.checked_sub(length + 1).filter(|start| *start >= CODE.len()) else {
        return false;
    };
    if start > open {
        line[open..start].fill(b' ');
    }
    line[start] = b'(';
    line[start + 1..comma].copy_from_slice(&text[..length]);
    true
}

/// Where the bracket before this address is, and the comma behind it.
fn address(line: &[u8], server: u32) -> Option<(usize, usize)> {
    let prose = line.strip_suffix(b"\r\n").filter(|prose| prose.len() <= LONGEST)?;
    let is_one = prose.starts_with(CODE) && !prose.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    let open = prose.iter().position(|&byte| byte == b'(').filter(|_| is_one)?;
    let mut octets = [0; 6];
    let (mut count, mut at, mut comma) = (0, open + 1, 0);
    let mut end = b',';
    while end == b',' {
        let digits = prose[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number =
            (1..=3).contains(&digits).then(|| std::str::from_utf8(&prose[at..at + digits]).ok())??;
        *octets.get_mut(count)? = number.parse::<u8>().ok()?;
        count += 1;
        at += digits + 1;
        end = *prose.get(at - 1)?;
        if count == 4 {
            comma = at - 1;
        }
    }
    let is_whole = count == 6 && end == b')';
    (is_whole && octets[..4] == server.to_be_bytes()).then_some((open, comma))
}

/// Writes an address as FTP does, and says how long it is.
fn write(text: &mut [u8; 15], address: u32) -> usize {
    let mut at = 0;
    let mut put = |byte| {
        text[at] = byte;
        at += 1;
    };
    for (index, octet) in address.to_be_bytes().into_iter().enumerate() {
        if index > 0 {
            put(b',');
        }
        if octet >= 100 {
            put(b'0' + octet / 100);
        }
        if octet >= 10 {
            put(b'0' + octet / 10 % 10);
        }
        put(b'0' + octet % 10);
    }
    at
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SERVER: u32 = 0x0A00_000B;
    const VIP: u32 = 0xC000_020A;

    /// A segment with this data, whose sum is right (without a pseudo-header, which does not change).
    fn segment(data: &[u8]) -> Vec<u8> {
        let mut segment =
            vec![0, 21, 0x9C, 0xB0, 0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, 0x18, 0xFA, 0xF0, 0, 0, 0, 0];
        segment.extend(data);
        let sum = !checksum::sum(&segment);
        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    fn said(line: &str, server: u32, instead: u32) -> String {
        let mut segment = segment(line.as_bytes());
        let is_left = announce(&mut segment, server, instead);
        assert_eq!(checksum::sum(&segment), 0xFFFF);
        let said = String::from_utf8(segment[20..].to_vec()).unwrap();
        assert_eq!(is_left, line.starts_with("227 ") && said == line, "{line:?}");
        said
    }

    #[test]
    fn the_prose_gives_way() {
        for (line, expected) in [
            (
                "227 Entering Passive Mode (10,0,0,11,4,1).\r\n",
                "227 Entering Passive Mode(192,0,2,10,4,1).\r\n",
            ),
            ("227 x(10,0,0,11,200,13)\r\n", "227 (192,0,2,10,200,13)\r\n"),
        ] {
            assert_eq!(said(line, SERVER, VIP), expected);
        }
        assert_eq!(
            said("227 Entering Passive Mode (192,0,2,10,4,1).\r\n", VIP, 0x0100_0001),
            "227 Entering Passive Mode    (1,0,0,1,4,1).\r\n"
        );
    }

    #[test]
    fn what_is_no_such_line_stays() {
        for line in [
            "227 Entering Passive Mode (10,0,0,12,4,1).\r\n",
            "227 Entering Passive Mode (10,0,0,11,4,256).\r\n",
            "227 Entering Passive Mode (10,0,0,11,4,1,1).\r\n",
            "227 Entering Passive Mode (10,0,0,11,4).\r\n",
            "227 Entering Passive Mode (10,0,0,11,4,1",
            "227 Entering Passive Mode (10,0,0,11,4,1).\n",
            "227 Entering Passive Mode (10,0,0,011,4,+1).\r\n",
            "227 Entering Passive Mode (10,0,0,0011,4,1).\r\n",
            "227 Entering\r\n227 (10,0,0,11,4,1).\r\n",
            "227-Entering Passive Mode (10,0,0,11,4,1).\r\n",
            "229 Entering Extended Passive Mode (|||1025|)\r\n",
            "227 (10,0,0,11,4,1)\r\n",
            "227 (\r\n",
            "",
        ] {
            assert_eq!(said(line, SERVER, VIP), line);
        }
        let own = "227 Entering Passive Mode (192,0,2,10,4,1).\r\n";
        assert!(!announce(&mut segment(own.as_bytes()), SERVER, VIP), "the server says so by itself");
        let long = format!("227 {:>129}(10,0,0,11,4,1)\r\n", "");
        assert_eq!(said(&long, SERVER, VIP), long);
    }

    proptest! {
        #[test]
        fn any_address_becomes_any_other(from in any::<u32>(), to in any::<u32>(), port in any::<(u8, u8)>(), prose in "[a-z ]{8,40}") {
            let six = |address: u32| {
                let [a, b, c, d] = Ipv4Addr::from(address).octets();
                format!("({a},{b},{c},{d},{},{}).", port.0, port.1)
            };
            let line = format!("227 {prose}{}\r\n", six(from));
            prop_assume!(from != to);
            let changed = said(&line, from, to);
            prop_assert!(changed.starts_with("227 ") && changed.ends_with(&format!("{}\r\n", six(to))), "{changed:?}");
            prop_assert_eq!(changed.len(), line.len());
        }

        #[test]
        fn no_bytes_are_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 18..80), text in "227 [(0-9,)\r\n]{0,40}\r\n") {
            announce(&mut bytes, SERVER, VIP);
            announce(&mut segment(text.as_bytes()), SERVER, VIP);
        }
    }
}
