//! Limits of new connections, and a full table.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::admission::{Kept, Limit, Rate};

const LIMIT: Limit =
    Limit { rate: None, source_rate: None, source_connections: None, half_open: None, source_prefix: 24 };

/// A rig with this limit, and what it goes by.
fn limited(limit: Limit) -> (Rig, Kept) {
    let (mut rig, mut kept) = (Rig::new(Protocol::Tcp, Mode::Nat, &[1]), Kept::default());
    limit_to(&mut rig, &mut kept, Some(limit));
    (rig, kept)
}

fn limit_to(rig: &mut Rig, kept: &mut Kept, limit: Option<Limit>) {
    rig.spec.limiter = kept.limiter(limit, [1, 2]);
    rig.publish();
}

fn from(client: &str, flags: u8) -> Vec<u8> {
    packet(Protocol::Tcp, WAN_MAC, client, VIP, flags)
}

const IN: Verdict = Verdict::Forward(LAN);
const LIMITED: Verdict = Verdict::Drop(Drop::SourceLimited);

/// Puts another server in the place of the one there is, which is in `removed` then.
fn replace_server(rig: &mut Rig, removed: &mut Vec<(DestId, Removed)>) {
    let old = rig.spec.dests.remove(0).id;
    removed.push((old, Removed { limiter: rig.spec.limiter.clone(), gauge: None }));
    let id = DestId::new(old.index() as u32 + 1).unwrap();
    rig.spec.dests.push(DestSpec::new(id, socket(&format!("10.0.0.{}:8080", 1 + id.index() % 9))));
    rig.generation += 1;
    rig.snapshot = compile(rig.generation, std::slice::from_ref(&rig.spec), removed.clone());
}

fn sweep(rig: &Rig) {
    rig.engine.sweep(&rig.snapshot, rig.now, 0..rig.engine.table.buckets());
}

/// Establishes a client's connection and resets it: it is there for ten seconds more.
fn end(rig: &Rig, client: &str) {
    for flags in [ACK, RST] {
        assert_eq!(rig.push(WAN, &mut from(client, flags)), IN);
    }
}

#[test]
fn beyond_the_rate_nothing_begins_and_all_else_goes_on() {
    let rate = Some(Rate::new(4, 2));
    let (mut rig, _) = limited(Limit { rate, ..LIMIT });
    let syn = |n: u32| from(&format!("198.51.100.{n}:40112"), SYN);
    let begun = [1, 2, 3].map(|n| rig.push(WAN, &mut syn(n)));
    assert_eq!(begun, [IN, IN, Verdict::Drop(Drop::RateLimited)]);
    assert_eq!(rig.push(WAN, &mut syn(1)), IN, "again");
    assert_eq!(rig.push(WAN, &mut from("198.51.100.2:40112", ACK)), IN);
    rig.now.0 += 1;
    assert_eq!([3, 4].map(|n| rig.push(WAN, &mut syn(n))), [IN, Verdict::Drop(Drop::RateLimited)]);
    rig.now.0 += 1;
    let asked = explain(&rig.snapshot, &rig.engine.table, rig.now, WAN, &syn(4)).unwrap();
    assert_eq!((asked.verdict, rig.push(WAN, &mut syn(4))), (IN, IN), "to ask costs nothing");
    let asked = explain(&rig.snapshot, &rig.engine.table, rig.now, WAN, &syn(5)).unwrap();
    assert_eq!(asked.verdict, Verdict::Drop(Drop::RateLimited));
}

#[test]
fn a_source_has_so_many_connections_and_another_when_one_has_ended() {
    let (mut rig, _) = limited(Limit { source_connections: Some(2), ..LIMIT });
    let (first, second, third) = ("198.51.100.1:1", "198.51.100.2:1", "198.51.100.3:1");
    assert_eq!([first, second, third].map(|client| rig.push(WAN, &mut from(client, SYN))), [IN, IN, LIMITED]);
    assert_eq!(rig.push(WAN, &mut from("198.51.101.1:1", SYN)), IN, "another source");
    assert_eq!(rig.push(WAN, &mut from(first, SYN)), IN, "it has begun");
    end(&rig, first);
    sweep(&rig);
    assert_eq!(rig.push(WAN, &mut from(third, SYN)), LIMITED, "it is there for ten seconds more");
    rig.wait(12);
    sweep(&rig);
    assert_eq!(rig.push(WAN, &mut from(third, SYN)), IN);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.4:1", SYN)), LIMITED);
    // In the place of one that is over, by the client itself.
    end(&rig, third);
    assert_eq!(rig.push(WAN, &mut from(third, SYN)), IN);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.4:1", SYN)), LIMITED);
}

#[test]
fn what_a_removed_server_had_does_not_count_for_ever() {
    let (mut rig, _) = limited(Limit { source_connections: Some(2), ..LIMIT });
    let clients = ["198.51.100.1:1", "198.51.100.2:1"];
    assert_eq!(clients.map(|client| rig.push(WAN, &mut from(client, SYN))), [IN; 2]);
    replace_server(&mut rig, &mut Vec::new());
    assert_eq!(rig.push(WAN, &mut from("198.51.100.3:1", SYN)), LIMITED, "they are there still");
    sweep(&rig);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.3:1", SYN)), IN);
}

#[test]
fn a_sweep_counts_what_was_there_before() {
    let (mut rig, mut kept) = limited(LIMIT);
    let clients = ["198.51.100.1:1", "198.51.100.2:1"];
    assert_eq!(clients.map(|client| rig.push(WAN, &mut from(client, SYN))), [IN; 2]);
    let limit = Some(Limit { source_connections: Some(3), ..LIMIT });
    for _ in 0..3 {
        limit_to(&mut rig, &mut kept, limit);
        sweep(&rig);
    }
    assert_eq!(rig.push(WAN, &mut from("198.51.100.3:1", SYN)), IN);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.4:1", SYN)), LIMITED);
    // Without the limit, and with it once more.
    limit_to(&mut rig, &mut kept, None);
    end(&rig, clients[0]);
    rig.wait(12);
    sweep(&rig);
    limit_to(&mut rig, &mut kept, limit);
    sweep(&rig);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.4:1", SYN)), IN);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.5:1", SYN)), LIMITED);
    assert_eq!(rig.connections().len(), 3);
}

proptest! {
    /// However full the table and whatever is tried: the connections that count never are more than the limit, and a source without any gets one.
    #[test]
    fn counts_are_right_after_anything(
        steps in prop::collection::vec((0_u32..3, 0_u32..40, 0_usize..6), 1..300),
    ) {
        let (mut rig, mut kept) = limited(Limit { source_connections: Some(8), ..LIMIT });
        let mut removed = Vec::new();
        for (network, host, what) in steps {
            let client = format!("198.51.{network}.{host}:40112");
            match what {
                0 | 1 => drop(rig.push(WAN, &mut from(&client, SYN))),
                2 => drop(rig.push(WAN, &mut from(&client, ACK))),
                3 => drop(rig.push(WAN, &mut from(&client, RST))),
                4 => replace_server(&mut rig, &mut removed),
                _ => {
                    rig.wait(u64::from(host) / 4);
                    sweep(&rig);
                }
            }
            for network in 0..3 {
                let of = |socket: &SocketAddrV4| socket.ip().octets()[2] == network;
                let open = rig.connections().iter().filter(|(client, ..)| of(client)).count();
                prop_assert!(open <= 8, "{} of network {}", open, network);
            }
        }
        // When all are gone nothing is counted any more.
        rig.wait(3600);
        sweep(&rig);
        limit_to(&mut rig, &mut kept, Some(Limit { source_connections: Some(1), ..LIMIT }));
        for network in 0..3 {
            prop_assert_eq!(rig.push(WAN, &mut from(&format!("198.51.{network}.1:40112"), SYN)), IN);
        }
    }

    /// A flood of SYNs takes the places of what never was established and of what has ended, and of nobody else.
    #[test]
    fn a_flood_pushes_out_no_established_connection(
        good in prop::collection::btree_set(0_u32..5000, 1..100),
        flood in prop::collection::vec(0_u32..100_000, 0..400),
    ) {
        let rig = Rig::new(Protocol::Tcp, Mode::Dr, &[1]);
        let client = |n: u32| format!("198.18.{}.{}:{}", n >> 8 & 255, n & 255, 1000 + (n >> 16));
        let syn = |n: u32| rig.push(WAN, &mut from(&client(n), SYN));
        let mut established = BTreeSet::new();
        for &n in &good {
            if syn(n) == IN && rig.push(WAN, &mut from(&client(n), ACK)) == IN {
                established.insert(client(n));
            }
        }
        let mut full = false;
        for n in flood {
            full |= syn(5000 + n) == Verdict::Drop(Drop::TableFull);
        }
        let kept: BTreeSet<String> = rig
            .connections()
            .into_iter()
            .filter(|(_, _, state)| *state == State::Established)
            .map(|(client, ..)| client.to_string())
            .collect();
        prop_assert_eq!(&kept, &established);
        // There is no room only where all sixteen places of a flow are of such.
        prop_assert!(!full || established.len() >= 16);
    }
}
