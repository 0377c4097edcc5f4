//! The fuzz targets on stable, for a bounded time: the committed corpus, then what proptest makes of it and of nothing.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p rvs-fuzz` goes on for longer. `make fuzz` is
//! better at finding things, since it sees which input goes where.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

fn files(directory: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn contents(directory: &str) -> Vec<Vec<u8>> {
    files(directory).iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One of these, with some bytes changed and perhaps cut off.
fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let end = prop::option::weighted(0.2, any::<prop::sample::Index>());
    (prop::sample::select(seeds), edits, end).prop_map(|(mut bytes, edits, end)| {
        if !bytes.is_empty() {
            let length = bytes.len();
            edits.into_iter().for_each(|(at, byte)| bytes[at.index(length)] = byte);
            bytes.truncate(end.map_or(length, |end| end.index(length)));
        }
        bytes
    })
}

fn anything(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..longest)
}

#[test]
fn the_corpus() {
    contents("corpus/packet").iter().for_each(|data| rvs_fuzz::packet(data));
    contents("corpus/sequence").iter().for_each(|data| rvs_fuzz::sequence(data));
    contents("corpus/modes").iter().for_each(|data| rvs_fuzz::modes(data));
    contents("corpus/config").iter().for_each(|data| rvs_fuzz::config(data));
    contents("../../configs").iter().for_each(|data| rvs_fuzz::config(data));
    contents("../../configs/ipv6").iter().for_each(|data| rvs_fuzz::config(data));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), ..ProptestConfig::default() })]

    #[test]
    fn packets(data in prop_oneof![3 => mutated(contents("corpus/packet")), 1 => anything(100)]) {
        rvs_fuzz::packet(&data);
    }

    #[test]
    fn sequences(data in prop_oneof![1 => mutated(contents("corpus/sequence")), 3 => anything(400)]) {
        rvs_fuzz::sequence(&data);
    }

    #[test]
    fn modes(data in prop_oneof![1 => mutated(contents("corpus/modes")), 3 => anything(400)]) {
        rvs_fuzz::modes(&data);
    }

    #[test]
    fn configs(data in prop_oneof![1 => mutated(contents("corpus/config")), 1 => mutated(contents("../../configs"))]) {
        rvs_fuzz::config(&data);
    }
}
