//! Random sequences of packets: the data path does what the model says.

use std::cell::RefCell;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use rvs_model::sequence::sequences;
use rvs_model::{Tally, compare};

/// How many, if nobody asks for more; some twenty seconds.
const CASES: u32 = 20_000;

/// What packets of services meet in every mode, so often that no seed misses it.
const IN_EVERY_MODE: [&str; 23] = [
    "bad_ip_checksum",
    "bad_ip_header",
    "bad_transport_header",
    "forward",
    "fragment",
    "hold",
    "icmp",
    "martian",
    "multicast",
    "no_connection",
    "no_server",
    "no_service",
    "not_ip",
    "other_host",
    "other_protocol",
    "rate_limited",
    "route",
    "runt",
    "source_denied",
    "source_limited",
    "too_big",
    "ttl_expired",
    "vlan",
];

/// What they meet in one, or because of something else that is special about them.
const IN_ONE: [(&str, &str); 83] = [
    ("all_ports", "forward"),
    ("all_ports", "hold"),
    ("all_ports", "icmp_error"),
    ("all_ports", "no_local_port"),
    ("all_ports", "no_service"),
    ("at_risk", "forward"),
    ("at_risk", "hold"),
    ("at_risk", "no_connection"),
    ("at_risk", "no_neighbour"),
    ("at_risk", "no_server"),
    ("at_risk", "source_denied"),
    ("at_risk", "too_big"),
    ("at_risk", "unresolved"),
    ("dr", "no_neighbour"),
    ("ftp", "forward"),
    ("ftp", "no_connection"),
    ("ftp", "no_service"),
    ("fullnat", "icmp_error"),
    ("fullnat", "no_local_port"),
    ("fullnat", "server_reply"),
    ("fullnat", "unresolved"),
    ("gate", "forward"),
    ("gate", "icmp_error"),
    ("gate", "no_server"),
    ("gate", "server_reply"),
    ("gate", "syn_flood"),
    ("here", "forward"),
    ("here", "hold"),
    ("here", "local"),
    ("here", "no_connection"),
    ("here", "ttl_expired"),
    ("in", "forward"),
    ("in", "hold"),
    ("in", "icmp_error"),
    ("in", "no_service"),
    ("ipsec", "forward"),
    ("ipsec", "other_protocol"),
    ("ipsec", "ttl_expired"),
    ("mark", "forward"),
    ("mark", "hold"),
    ("mark", "icmp_error"),
    ("mark", "no_service"),
    ("mark", "server_reply"),
    ("nat", "icmp_error"),
    ("nat", "server_reply"),
    ("nat", "unresolved"),
    ("proxy", "bad_transport_header"),
    ("proxy", "forward"),
    ("proxy", "no_local_port"),
    ("quic", "forward"),
    ("quic", "hold"),
    ("quic", "icmp_error"),
    ("quic", "no_local_port"),
    ("quic", "no_server"),
    ("quic", "rate_limited"),
    ("quic", "source_denied"),
    ("quic", "too_big"),
    ("quic", "unresolved"),
    ("sctp", "forward"),
    ("sctp", "icmp_error"),
    ("sctp", "no_connection"),
    ("sctp", "sctp_fragment"),
    ("snat", "fragment"),
    ("snat", "fragment_orphan"),
    ("snat", "fragment_overlap"),
    ("snat", "hold"),
    ("snat", "icmp"),
    ("snat", "no_service"),
    ("snat", "route"),
    ("snat", "snat_none"),
    ("snat", "too_big"),
    ("snat", "ttl_expired"),
    ("snat", "unresolved"),
    ("tagged network", "forward"),
    ("tagged network", "hold"),
    ("tagged network", "vlan"),
    ("tunnel", "unresolved"),
    ("tunnel of six", "forward"),
    ("tunnel of six", "to_fragment"),
    ("tunnel of six", "too_big"),
    ("tunnel across", "forward"),
    ("tunnel across", "to_fragment"),
    ("tunnel across", "too_big"),
];

/// The kinds and fates that a default run must meet, or it proves less than it seems to.
fn expected() -> impl Iterator<Item = (&'static str, &'static str)> {
    let in_every = |fate| ["nat", "dr", "tunnel", "fullnat"].map(|mode| (mode, fate));
    IN_EVERY_MODE.into_iter().flat_map(in_every).chain(IN_ONE)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn sequences_go_as_the_model_says() {
    let seed = number("RVS_SEED", 0x5EED);
    let cases = number("PROPTEST_CASES", CASES.into()) as u32;
    let config = Config { cases, max_shrink_iters: 100_000, failure_persistence: None, ..Config::default() };
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let tally = RefCell::new(Tally::new());
    let result = runner.run(&sequences(), |sequence| {
        compare(&sequence, &mut tally.borrow_mut()).map_err(proptest::test_runner::TestCaseError::fail)
    });
    if let Err(TestError::Fail(why, sequence)) = result {
        let services: Vec<String> = sequence.services.iter().map(|service| format!("{service:?}")).collect();
        let steps: Vec<String> = sequence.steps.iter().map(|step| format!("{step:?}")).collect();
        panic!("RVS_SEED={seed}: {why}\nservices:\n{}\nsteps:\n{}", services.join(",\n"), steps.join(",\n"));
    }
    let tally = tally.borrow();
    println!("{tally:?}");
    if cases >= CASES {
        let not_met: Vec<_> =
            expected().filter(|met| tally.get(met).copied().unwrap_or_default() == 0).collect();
        assert!(not_met.is_empty(), "RVS_SEED={seed}: sequences do not meet {not_met:?} any more");
    }
}
