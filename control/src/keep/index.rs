//! What has to be known of a table to go on with it, as a small text beside it.
//!
//! ```text
//! RVS connection table
//! layout 1
//! boot 4f0c2c0e-...                            stamps count from the start of the machine
//! table table-9f86d081884c7d65                 the file
//! connections 1048576
//! key 6c62272e07bb0142 62b821756295c58d        of the hash
//! tsc-per-tick 650000000                       of the stamps
//! snat snat-5feceb66ffc86f38 65536 6c62272e07bb0142 62b821756295c58d 192.0.2.50 192.0.2.51
//! dest 7 tcp/192.0.2.10:80 10.0.0.11:8080 nat 1
//! checksum 9ae16a3b2f90404f                    SipHash-1-3 of all before this line
//! ```
//!
//! A pool of source NAT is its file, for how many mappings that is, the key of its hash, and its addresses. A dest is its number in words, service, server, mode and the last weight that was not 0; of a mark's service (`mark/10`) also the protocol and address by which its
//! connections came, if it is not that of templates (`tcp/192.0.2.10`). The layout says how the
//! rest is to be read, so it is read first and by itself; whatever else is wrong, the checksum finds.

use std::fmt::{self, Display, Write};
use std::hash::Hasher;
use std::net::Ipv4Addr;
use std::str::{FromStr, SplitAsciiWhitespace};

use anyhow::{Context, Result, ensure};
use dataplane::service::Mode;
use dataplane::table::{DestId, HashKey, LAYOUT};
use foldhash::HashSet;
use siphasher::sip::SipHasher13;

use super::pools::KeptPool;
use crate::ids::{Face, Member, ServerKey, ServiceKey};

/// Connections that a table can be made for: its slots are counted in 32 bits.
const LARGEST: usize = 1 << 30;

const TITLE: &str = "RVS connection table";

/// What has to be known of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// The boot in which its stamps mean something.
    pub boot: String,
    /// The name of its file.
    pub table: String,
    /// For how many connections it is made.
    pub connections: usize,
    /// The hash by which its words have their places.
    pub key: HashKey,
    /// How much the time stamp counter goes on in a tick of its stamps.
    pub tsc_per_tick: u64,
    /// Whose mappings of source NAT lie beside it.
    pub pools: Vec<KeptPool>,
    /// Who its words' dests are.
    pub members: Vec<Member>,
}

impl Index {
    /// Reads it, with zeros behind it. Errors say why it does not do.
    pub fn parse(bytes: &[u8]) -> Result<Index> {
        let text = std::str::from_utf8(bytes).ok().context("the index is no text")?.trim_end_matches('\0');
        let mut lines = text.lines();
        ensure!(lines.next() == Some(TITLE), "the index is not one");
        let layout: u32 = Line::of(lines.next(), "layout")?.only()?;
        ensure!(layout == LAYOUT, "another build made it: its layout is {layout}; expected {LAYOUT}");
        let (before, checksum) = text.rsplit_once("checksum ").context("the index is cut off")?;
        ensure!(checksum == format!("{:016x}\n", sum(before)), "the index is damaged: its checksum is wrong");
        let boot = Line::of(lines.next(), "boot")?.only()?;
        let table = Line::of(lines.next(), "table")?.only()?;
        let connections = Line::of(lines.next(), "connections")?.only()?;
        ensure!(
            connections <= LARGEST,
            "the index has a table of {connections} connections; expected {LARGEST} at most"
        );
        let mut key = Line::of(lines.next(), "key")?;
        let key = HashKey { blind: key.hex()?, factor: key.hex()? };
        let tsc_per_tick = Line::of(lines.next(), "tsc-per-tick")?.only()?;
        let rest = lines.take_while(|line| !line.starts_with("checksum"));
        let (pools, dests): (Vec<&str>, Vec<&str>) = rest.partition(|line| line.starts_with("snat "));
        let pools =
            pools.into_iter().map(|line| pool(Line::of(Some(line), "snat")?)).collect::<Result<_>>()?;
        let dests = dests.into_iter().map(|line| member(Line::of(Some(line), "dest")?));
        let members: Vec<Member> = dests.collect::<Result<_>>()?;
        let numbers: HashSet<DestId> = members.iter().map(|member| member.id).collect();
        ensure!(numbers.len() == members.len(), "the index has a number twice");
        Ok(Index { boot, table, connections, key, tsc_per_tick, pools, members })
    }
}

impl Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Index { boot, table, connections, key, tsc_per_tick, pools, members } = self;
        let mut text = format!(
            "{TITLE}\nlayout {LAYOUT}\nboot {boot}\ntable {table}\nconnections {connections}\n\
             key {:016x} {:016x}\ntsc-per-tick {tsc_per_tick}\n",
            key.blind, key.factor
        );
        for KeptPool { file, mappings, key, addresses } in pools {
            write!(text, "snat {file} {mappings} {:016x} {:016x}", key.blind, key.factor)?;
            addresses.iter().try_for_each(|&address| write!(text, " {}", Ipv4Addr::from(address)))?;
            writeln!(text)?;
        }
        for Member { id, service, server, face, last_weight } in members {
            let (id, ServerKey { address, mode }) = (id.index(), server);
            write!(text, "dest {id} {service} {address} {mode} {last_weight}")?;
            match face {
                Some(face) => writeln!(text, " {face}")?,
                None => writeln!(text)?,
            }
        }
        writeln!(f, "{text}checksum {:016x}", sum(&text))
    }
}

fn pool(mut line: Line<'_>) -> Result<KeptPool> {
    let (file, mappings) = (line.word()?.to_owned(), line.next()?);
    ensure!(mappings <= LARGEST, "the index has {mappings} mappings; expected {LARGEST} at most");
    let key = HashKey { blind: line.hex()?, factor: line.hex()? };
    let address = |word: &str| word.parse().map(|address: Ipv4Addr| address.into());
    let addresses =
        line.words.map(address).collect::<Result<_, _>>().context("the index has no address here")?;
    Ok(KeptPool { file, mappings, key, addresses })
}

fn member(mut line: Line<'_>) -> Result<Member> {
    let id = DestId::new(line.next()?).context("the index has a number that no dest has")?;
    let service = ServiceKey::from_str(line.word()?).map_err(anyhow::Error::msg)?;
    let address = line.next()?;
    let mode = Mode::from_name(line.word()?).context("the index has a mode that there is not")?;
    let server = ServerKey { address, mode };
    let last_weight = line.next()?;
    let face = line.words.next().map(Face::from_str).transpose().map_err(anyhow::Error::msg)?;
    Ok(Member { id, service, server, face, last_weight })
}

fn sum(text: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// The words of a line behind the first, which says what it is.
struct Line<'a> {
    name: &'static str,
    words: SplitAsciiWhitespace<'a>,
}

impl<'a> Line<'a> {
    fn of(line: Option<&'a str>, name: &'static str) -> Result<Line<'a>> {
        let mut words = line.unwrap_or_default().split_ascii_whitespace();
        ensure!(words.next() == Some(name), "the index does not say its {name}");
        Ok(Line { name, words })
    }

    fn word(&mut self) -> Result<&'a str> {
        self.words.next().with_context(|| format!("the index does not say all of a {}", self.name))
    }

    fn next<T: FromStr>(&mut self) -> Result<T> {
        let (word, name) = (self.word()?, self.name);
        word.parse().ok().with_context(|| format!("the index has a {name} that is none: {word:?}"))
    }

    fn only<T: FromStr>(mut self) -> Result<T> {
        self.next()
    }

    fn hex(&mut self) -> Result<u64> {
        let word = self.word()?;
        u64::from_str_radix(word, 16).ok().with_context(|| format!("the index has no number here: {word:?}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use dataplane::service::Protocol;
    use proptest::prelude::*;

    use super::*;

    /// An index with so many dests.
    pub fn example(dests: u32) -> Index {
        let member = |number| {
            let (service, server) = match number % 2 {
                1 => ("udp/192.0.2.10:53", "10.0.0.11:5353"),
                _ => ("tcp/[2001:db8::10]:80", "[2001:db8:1::11]:8080"),
            };
            let (service, face) = match number % 5 {
                3 => ("mark/10", Some(Face { address: [192, 0, 2, 10].into(), protocol: Protocol::Tcp })),
                _ => (service, None),
            };
            Member {
                id: DestId::new(number).unwrap(),
                service: service.parse().unwrap(),
                server: ServerKey {
                    address: server.parse().unwrap(),
                    mode: Mode::ALL[number as usize % Mode::ALL.len()],
                },
                face,
                last_weight: number * 3,
            }
        };
        Index {
            boot: "4f0c2c0e-3ad7-4f53-9d5a-5f3e5a9d8c11".to_owned(),
            table: "table-00000000deadbeef".to_owned(),
            connections: 1 << 20,
            key: HashKey { blind: 0, factor: u64::MAX },
            tsc_per_tick: 650_000_000,
            pools: vec![KeptPool {
                file: "snat-00000000deadbeef".to_owned(),
                mappings: 1024,
                key: HashKey { blind: 7, factor: 9 },
                addresses: vec![0xC000_0232, 0xC000_0233],
            }],
            members: (1..=dests).map(member).collect(),
        }
    }

    fn on_a_page(index: &Index) -> Vec<u8> {
        let mut bytes = index.to_string().into_bytes();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for dests in [0, 1, 3, 1000] {
            assert_eq!(Index::parse(&on_a_page(&example(dests))).unwrap(), example(dests));
        }
    }

    #[test]
    fn another_layout_is_told_from_damage() {
        let says = |from: &str, to: &str| {
            let text = example(1).to_string().replace(from, to);
            format!("{:#}", Index::parse(text.as_bytes()).unwrap_err())
        };
        let expected = format!("another build made it: its layout is 77; expected {LAYOUT}");
        assert_eq!(says(&format!("layout {LAYOUT}"), "layout 77"), expected);
        assert_eq!(says("dest 1", "dest 2"), "the index is damaged: its checksum is wrong");
        assert_eq!(says("checksum", "sum"), "the index is cut off");
        assert_eq!(says(TITLE, "Something else"), "the index is not one");
    }

    #[test]
    fn a_table_that_there_cannot_be() {
        let text = Index { connections: LARGEST + 1, ..example(0) }.to_string();
        let error = Index::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "the index has a table of 1073741825 connections; expected 1073741824 at most");
    }

    #[test]
    fn a_number_is_given_once() {
        let mut index = example(2);
        index.members[1].id = index.members[0].id;
        let error = Index::parse(index.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "the index has a number twice");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_bit_that_is_wrong_anywhere_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = on_a_page(&example(5));
            bytes[at.index(4096)] ^= 1u8 << bit;
            prop_assert!(Index::parse(&bytes).is_err());
        }

        #[test]
        fn rubbish_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000), keep in 0usize..300) {
            let mut mixed = on_a_page(&example(5));
            mixed.truncate(keep);
            mixed.extend(bytes);
            prop_assert!(Index::parse(&mixed).is_err());
        }
    }
}
