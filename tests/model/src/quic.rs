//! QUIC connection ids that name servers, as draft-ietf-quic-load-balancers-21 writes them and reads them, and the ids that datagrams are to (RFC 8999).

use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Block};

/// How servers write who they are into the ids that they give out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its number, in an id's first three bits.
    pub number: u8,
    /// Bytes of the server's id.
    pub server_id: usize,
    /// Bytes that are somebody's choice.
    pub nonce: usize,
    /// The key, if the two are encrypted.
    pub key: Option<[u8; 16]>,
}

impl Config {
    /// A connection id, whose first byte has these bits left over.
    pub fn write(&self, server_id: &[u8], nonce: &[u8], rest: u8) -> Vec<u8> {
        let block = [server_id, nonce].concat();
        let block = match &self.key {
            None => block,
            Some(key) if block.len() == 16 => {
                let mut block = Block::clone_from_slice(&block);
                Aes128::new(key.into()).encrypt_block(&mut block);
                block.to_vec()
            }
            Some(key) => four_passes(key, &block, [1, 2, 3, 4]),
        };
        [&[self.number << 5 | rest & 0x1F], &block[..]].concat()
    }

    /// The server's id in a connection id, if that is one of this configuration and long enough.
    pub fn read(&self, id: &[u8]) -> Option<Vec<u8>> {
        if id.first()? >> 5 != self.number {
            return None;
        }
        let block = id.get(1..=self.server_id + self.nonce)?;
        let block = match &self.key {
            None => block.to_vec(),
            Some(key) if block.len() == 16 => {
                let mut block = Block::clone_from_slice(block);
                Aes128::new(key.into()).decrypt_block(&mut block);
                block.to_vec()
            }
            Some(key) => four_passes(key, block, [4, 3, 2, 1]),
        };
        Some(block[..self.server_id].to_vec())
    }
}

/// The id that a datagram with this payload is to. That of a short header is as long as who has made it knows, so it may be all that follows.
pub fn destination(payload: &[u8]) -> Option<&[u8]> {
    if payload.first()? & 0x80 == 0 {
        return Some(&payload[1..]);
    }
    let length = usize::from(*payload.get(5)?);
    payload.get(6..6 + length)
}

/// A payload to this id, in a packet with a long header, which says its length, or with a short one.
pub fn payload(id: &[u8], said: Option<usize>) -> Vec<u8> {
    match said {
        Some(length) => [&[0xC0, 0, 0, 0, 1, length as u8], id, &[0]].concat(),
        None => [&[0x40], id].concat(),
    }
}

/// Section 5.4.2, by half bytes, of which each half has as many as there are bytes. Odd passes change the right half by the left one, even ones the left
/// half by the right one; backwards they undo it.
fn four_passes(key: &[u8; 16], block: &[u8], passes: [u8; 4]) -> Vec<u8> {
    let digits: Vec<u8> = block.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
    let (left, right) = digits.split_at(block.len());
    let (mut left, mut right) = (left.to_vec(), right.to_vec());
    // The half that is not whole bytes has a zero at its inner end.
    let is_odd = block.len() % 2 == 1;
    let zero = &[0u8][..usize::from(is_odd)];
    for pass in passes {
        let from = if pass % 2 == 1 { [&left, zero].concat() } else { [zero, &right].concat() };
        let mut expanded: Vec<u8> = from.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        expanded.resize(14, 0);
        expanded.extend([block.len() as u8, pass]);
        let mut mask = Block::clone_from_slice(&expanded);
        Aes128::new(key.into()).encrypt_block(&mut mask);
        let mask = mask.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        match pass % 2 {
            1 => {
                right.iter_mut().zip(mask.skip(usize::from(is_odd))).for_each(|(digit, mask)| *digit ^= mask)
            }
            _ => left.iter_mut().zip(mask).for_each(|(digit, mask)| *digit ^= mask),
        }
    }
    [left, right].concat().chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    const KEY: &str = "8f95f09245765f80256934e50c66207f";

    /// Of the draft's appendix B and section 5.4.2: server id, nonce, key, connection id.
    const VECTORS: [(&str, &str, &str, &str); 7] = [
        ("c4605e", "4504cc4f", "", "07c4605e4504cc4f"),
        ("350d28b420", "3487d970", "", "20350d28b4203487d970"),
        ("ed793a", "ee080dbf", KEY, "0720b1d07b359d3c"),
        ("ed793a51d49b8f5fab65", "ee080dbf48", KEY, "2fcc381bc74cb4fbad2823a3d1f8fed2"),
        ("ed793a51d49b8f5f", "ee080dbf48c0d1e5", KEY, "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
        ("ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", KEY, "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"),
        ("31441a", "9c69c275", "fdf726a9893ec05c0632d3956680baf0", "0767947d29be054a"),
    ];

    #[test]
    fn examples_of_the_draft() {
        for (server_id, nonce, key, id) in VECTORS {
            let (server_id, nonce, id) = (hex(server_id), hex(nonce), hex(id));
            let key = (!key.is_empty()).then(|| hex(key).try_into().unwrap());
            let config = Config { number: id[0] >> 5, server_id: server_id.len(), nonce: nonce.len(), key };
            assert_eq!(config.write(&server_id, &nonce, id[0]), id);
            assert_eq!(config.read(&id), Some(server_id));
            for said in [None, Some(id.len())] {
                assert_eq!(destination(&payload(&id, said)).unwrap(), id);
            }
        }
    }
}
