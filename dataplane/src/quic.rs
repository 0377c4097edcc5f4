//! QUIC connections by their own ids: a server writes into the connection ids that it gives out which server it is, and
//! datagrams find it by that when the client's address has changed (draft-ietf-quic-load-balancers-21).
//!
//! ```text
//!   3 bits    which of up to seven configurations
//!   5 bits    the id's length, or anything
//!   1..15     server id     \  together 5..19 bytes; encrypted if the configuration has a key
//!   4..18     nonce         /
//! ```
//!
//! An id that leads to no server here is unroutable: its datagram goes to a server that its client has a connection with, and a new client's is scheduled.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::str::FromStr;

use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Block};

use crate::key::{KeyHasher, WideKey};
use crate::table::DestId;

/// Configurations that the first byte can name; the number after them says that an id is unroutable.
pub const CONFIGS: usize = 7;
/// Bytes of server id and nonce together, at the least and at the most.
pub const BYTES: std::ops::RangeInclusive<usize> = 5..=19;
/// Bytes of a nonce, at the least.
pub const NONCE: usize = 4;

/// How servers write their ids into connection ids.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Which configuration this is, below [`CONFIGS`].
    pub number: u8,
    /// Bytes of a server id: one at the least.
    pub server_id: usize,
    /// Bytes of the nonce: [`NONCE`] at the least; with the server id as many as [`BYTES`] says.
    pub nonce: usize,
    /// The key, if the two are encrypted.
    pub key: Option<[u8; 16]>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { number, server_id, nonce, key } = self;
        let key = if key.is_some() { "a key" } else { "no key" };
        write!(f, "{number}: {server_id} + {nonce} bytes, {key}")
    }
}

/// What a server writes into the connection ids that it gives out: 1 to 15 bytes. As text, two hexadecimal digits a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServerId {
    number: u128,
    length: u8,
}

impl ServerId {
    /// The id of these bytes, if there are neither too few nor too many.
    pub fn new(bytes: &[u8]) -> Option<ServerId> {
        let number = bytes.iter().fold(0, |number, &byte| number << 8 | u128::from(byte));
        (1..=15).contains(&bytes.len()).then_some(ServerId { number, length: bytes.len() as u8 })
    }

    /// How many bytes.
    pub fn length(self) -> usize {
        self.length.into()
    }

    fn key(self) -> WideKey {
        WideKey { address: self.number, rest: self.length.into() }
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:01$x}", self.number, 2 * self.length())
    }
}

impl FromStr for ServerId {
    type Err = String;

    fn from_str(text: &str) -> Result<ServerId, String> {
        let wrong = || format!("{text:?} is not 2 to 30 hexadecimal digits, two for each byte");
        if text.len() % 2 == 1 || text.len() > 30 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
        Ok(ServerId { number, length: text.len() as u8 / 2 })
    }
}

/// Which server a connection id of a service names.
#[derive(Clone, Default)]
pub struct Ids {
    readers: [Option<Reader>; CONFIGS],
    servers: HashMap<WideKey, DestId, BuildHasherDefault<KeyHasher>>,
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let configs = self.readers.iter().flatten().map(|reader| &reader.config);
        f.debug_list().entries(configs).finish()
    }
}

impl Ids {
    /// Those of a service with these configurations and servers. A server id belongs to every configuration of its length.
    pub fn new(
        configs: &[Config],
        servers: impl IntoIterator<Item = (ServerId, DestId)>,
    ) -> Option<Box<Ids>> {
        if configs.is_empty() {
            return None;
        }
        let mut ids = Ids::default();
        for config in configs {
            if let Some(reader) = ids.readers.get_mut(usize::from(config.number)) {
                *reader = Some(Reader::new(config.clone()));
            }
        }
        ids.servers.extend(servers.into_iter().map(|(id, dest)| (id.key(), dest)));
        Some(Box::new(ids))
    }

    /// The server that a datagram with this payload is for, if it says so. Only what is the same in all versions of QUIC
    /// is looked at (RFC 8999).
    #[inline]
    pub fn route(&self, payload: &[u8]) -> Option<DestId> {
        let id = destination(payload)?;
        let reader = self.readers.get(usize::from(id.first()? >> 5))?.as_ref()?;
        let server_id = reader.server_id(id.get(1..)?)?;
        self.servers.get(&server_id.key()).copied()
    }
}

/// The destination connection id at a payload's beginning. Where its length is not said, which is in a short header, as far as there is anything.
fn destination(payload: &[u8]) -> Option<&[u8]> {
    const LONG: u8 = 0x80;
    // Of a long header: the first byte, a version, and the id's length.
    match payload.first()? & LONG {
        0 => payload.get(1..),
        _ => payload.get(6..6 + usize::from(*payload.get(5)?)),
    }
}

/// A configuration, ready to read ids.
#[derive(Clone)]
struct Reader {
    config: Config,
    cipher: Option<Aes128>,
}

impl Reader {
    fn new(config: Config) -> Reader {
        let cipher = config.key.map(|key| Aes128::new(&key.into()));
        Reader { config, cipher }
    }

    /// The server id in a connection id without its first byte; `None` if it is too short.
    fn server_id(&self, id: &[u8]) -> Option<ServerId> {
        let mut bytes = [0; *BYTES.end()];
        let length = self.config.server_id + self.config.nonce;
        let block = bytes.get_mut(..length)?;
        block.copy_from_slice(id.get(..length)?);
        match &self.cipher {
            None => {}
            Some(cipher) if length == 16 => cipher.decrypt_block(Block::from_mut_slice(block)),
            Some(cipher) => self.decrypt(cipher, block),
        }
        ServerId::new(bytes.get(..self.config.server_id)?)
    }

    /// Four rounds of Feistel's, backwards; the last one only if the server id is not all in the left half.
    fn decrypt(&self, cipher: &Aes128, block: &mut [u8]) {
        let length = block.len();
        let half = length.div_ceil(2);
        // Of a byte in the middle each half has one digit, and zero in the place of the other.
        let (clear_left, clear_right) = if length % 2 == 1 { (0xF0, 0x0F) } else { (0xFF, 0xFF) };
        let (mut left, mut right) = ([0; 16], [0; 16]);
        left[..half].copy_from_slice(&block[..half]);
        right[..half].copy_from_slice(&block[length - half..]);
        left[half - 1] &= clear_left;
        right[0] &= clear_right;

        let round = |pass: u8, from: &[u8; 16], to: &mut [u8; 16]| {
            let mut mask = *from;
            (mask[14], mask[15]) = (length as u8, pass);
            cipher.encrypt_block((&mut mask).into());
            to[..half].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        };
        round(4, &right, &mut left);
        left[half - 1] &= clear_left;
        round(3, &left, &mut right);
        right[0] &= clear_right;
        round(2, &right, &mut left);
        left[half - 1] &= clear_left;
        if self.config.server_id > length / 2 {
            round(1, &left, &mut right);
            right[0] &= clear_right;
        }
        block[..half].copy_from_slice(&left[..half]);
        block[half..].copy_from_slice(&right[2 * half - length..half]);
        if length % 2 == 1 {
            block[half - 1] |= right[0];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn named((id, dest): (&[u8], DestId)) -> (ServerId, DestId) {
        (ServerId::new(id).unwrap(), dest)
    }

    #[test]
    fn server_ids_as_text() {
        for text in ["00", "ed793a", "000001", "0102030405060708090a0b0c0d0e0f"] {
            assert_eq!(text.parse::<ServerId>().unwrap().to_string(), text);
        }
        assert_eq!("ED".parse(), ServerId::new(&[0xED]).ok_or(String::new()));
        for text in ["", "e", "+1", "0x", "ed793", "0102030405060708090a0b0c0d0e0f10"] {
            assert!(text.parse::<ServerId>().is_err(), "{text}");
        }
    }

    const KEY: &str = "8f95f09245765f80256934e50c66207f";

    /// The draft's examples (appendix B, and section 5.4.2): configuration, server id, nonce, key, connection id. In the last one of
    /// the appendix the connection id's first byte names configuration 0, other than the text beside it.
    const VECTORS: [(u8, &str, &str, &str, &str); 7] = [
        (0, "c4605e", "4504cc4f", "", "07c4605e4504cc4f"),
        (1, "350d28b420", "3487d970", "", "20350d28b4203487d970"),
        (0, "ed793a", "ee080dbf", KEY, "0720b1d07b359d3c"),
        (1, "ed793a51d49b8f5fab65", "ee080dbf48", KEY, "2fcc381bc74cb4fbad2823a3d1f8fed2"),
        (2, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", KEY, "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
        (0, "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", KEY, "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
        (0, "31441a", "9c69c275", "fdf726a9893ec05c0632d3956680baf0", "0767947d29be054a"),
    ];

    #[test]
    fn examples_of_the_draft() {
        for (number, server_id, nonce, key, cid) in VECTORS {
            let (server_id, nonce, cid) = (hex(server_id), hex(nonce), hex(cid));
            let key = (!key.is_empty()).then(|| hex(key).try_into().unwrap());
            let config = Config { number, server_id: server_id.len(), nonce: nonce.len(), key };
            let (dest, other) = (DestId::new(7).unwrap(), DestId::new(8).unwrap());
            let mut another = server_id.clone();
            another[0] ^= 1;
            let servers = [(&server_id[..], dest), (&another[..], other)].map(named);
            let ids = Ids::new(std::slice::from_ref(&config), servers).unwrap();

            let short = [&[0x40], &cid[..], b"and more"].concat();
            assert_eq!(ids.route(&short), Some(dest), "{config:?}");
            let long = [&[0xC0, 0, 0, 0, 1, cid.len() as u8], &cid[..], b"\x00and more"].concat();
            assert_eq!(ids.route(&long), Some(dest), "{config:?}");

            assert_eq!(ids.route(&short[..cid.len()]), None, "it is cut off");
            let lying = [&[0xC0, 0, 0, 0, 1, cid.len() as u8 - 1], &cid[..]].concat();
            assert_eq!(ids.route(&lying), None, "it is said to be shorter");
            let mut changed = short.clone();
            changed[1] ^= 0x20;
            assert_eq!(ids.route(&changed), None, "another configuration");
            let ids = Ids::new(&[config], [named((&another[..], other))]).unwrap();
            assert_eq!(ids.route(&short), None, "nobody has this id");
        }
    }

    #[test]
    fn what_is_no_quic_is_unroutable() {
        let config = Config { number: 0, server_id: 1, nonce: 4, key: None };
        let ids = Ids::new(&[config], [named((&[0][..], DestId::new(1).unwrap()))]).unwrap();
        for payload in [&[][..], &[0], &[0x80], &[0x80, 0, 0, 0, 1, 20, 0], &[0, 0xE0, 0, 0, 0, 0, 0]] {
            assert_eq!(ids.route(payload), None, "{payload:?}");
        }
        assert!(ids.route(&[0; 7]).is_some());
    }

    #[test]
    fn ids_of_two_lengths_are_two() {
        let config = |number, server_id| Config { number, server_id, nonce: 4, key: None };
        let (one, two) = (DestId::new(1).unwrap(), DestId::new(2).unwrap());
        let servers = [(&[5][..], one), (&[0, 5][..], two)].map(named);
        let ids = Ids::new(&[config(0, 1), config(1, 2)], servers).unwrap();
        assert_eq!(ids.route(&[0, 0x00, 5, 0, 0, 0, 0]), Some(one));
        assert_eq!(ids.route(&[0, 0x20, 0, 5, 0, 0, 0, 0]), Some(two));
        assert_eq!(ids.route(&[0, 0x20, 5, 0, 0, 0, 0, 0]), None);
    }
}
