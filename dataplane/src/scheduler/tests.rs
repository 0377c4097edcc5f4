//! The conformance vectors that IPVS users can check against, and what no vector covers.

mod flows;
mod local;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::*;
use crate::clock::Tick;
use crate::service::{Protocol, State};

fn address(text: &str) -> u32 {
    text.parse::<Ipv4Addr>().unwrap().into()
}

/// Servers 10.0.0.1:80, 10.0.0.2:80, ... with these weights, in the order of the configuration.
fn servers(weights: &[u32]) -> Vec<Candidate> {
    weights
        .iter()
        .zip(1..)
        .map(|(&weight, number)| Candidate {
            dest: DestId::new(number).unwrap(),
            address: (Ipv4Addr::from(address("10.0.0.0") + number), 80).into(),
            weight,
            last_weight: weight,
            gauge: Arc::default(),
        })
        .collect()
}

fn picker(kind: Scheduler, flags: &[SchedulerFlag], servers: &[Candidate]) -> Picker {
    Picker::new(kind, flags, servers, &Kept::default(), FLOW_KEY)
}

fn flow(source: &str, source_port: u16) -> Flow {
    numbered(address(source), source_port)
}

fn numbered(source: u32, source_port: u16) -> Flow {
    let (destination_port, protocol) = (80, Protocol::Tcp);
    let (destination, now) = (0xC000_020A, Tick(0));
    Flow { source, source_port, destination, destination_port, protocol, wide: None, now }
}

/// The first picks as letters: A is the first server of the configuration.
fn letters(picker: &Picker, n: usize) -> String {
    let any = flow("198.51.100.7", 1);
    let letter = |_| picker.pick(&any).map_or('-', |dest| (b'@' + dest.index() as u8) as char);
    (0..n).map(letter).collect()
}

#[test]
fn rr_goes_round_newest_first() {
    assert_eq!(letters(&picker(Scheduler::Rr, &[], &servers(&[1, 5, 1])), 7), "CBACBAC");
}

#[test]
fn rr_and_wrr_skip_weight_zero() {
    assert_eq!(letters(&picker(Scheduler::Rr, &[], &servers(&[1, 0, 1])), 4), "CACA");
    assert_eq!(letters(&picker(Scheduler::Wrr, &[], &servers(&[2, 0, 1])), 4), "CAAC");
    assert_eq!(letters(&picker(Scheduler::Wrr, &[], &servers(&[0, 0])), 2), "--");
}

#[test]
fn wrr_follows_the_vectors_of_ipvs() {
    let sequence = letters(&picker(Scheduler::Wrr, &[], &servers(&[4, 3, 2])), 21);
    assert_eq!(sequence, ["CBA", "ABACBACBA", "ABACBACBA"].concat());
    assert_eq!(letters(&picker(Scheduler::Wrr, &[], &servers(&[3, 1])), 8), "BAAABAAA");
}

#[test]
fn wrr_any_period_has_each_server_by_weight() {
    let sequence = letters(&picker(Scheduler::Wrr, &[], &servers(&[4, 3, 2])), 90).into_bytes();
    for window in sequence.windows(9) {
        let count = |letter| window.iter().filter(|&&l| l == letter).count();
        assert_eq!((count(b'A'), count(b'B'), count(b'C')), (4, 3, 2));
    }
}

/// The plain algorithm, step by step, against the compiled levels.
#[test]
fn wrr_levels_equal_the_step_by_step_algorithm() {
    for weights in [&[6, 4, 2, 6][..], &[7, 1, 3], &[5], &[65535, 65534, 1], &[10, 0, 20, 30, 20]] {
        let list = servers(weights);
        let compiled = picker(Scheduler::Wrr, &[], &list);
        let step = weights.iter().fold(0, |divisor, &weight| gcd(divisor, weight));
        let greatest = *weights.iter().max().unwrap();
        let mut threshold = step; // the pass over everybody comes first
        let mut expected = Vec::new();
        while expected.len() < 5_000 {
            let pass = list.iter().rev().filter(|s| s.weight >= threshold && s.weight > 0);
            expected.extend(pass.map(|s| s.dest));
            threshold = if threshold == step { greatest } else { threshold - step };
        }
        let any = flow("198.51.100.7", 1);
        for (n, dest) in expected.into_iter().enumerate() {
            assert_eq!(compiled.pick(&any), Some(dest), "{weights:?}, pick {n}");
        }
    }
}

#[test]
fn round_robin_is_exact_over_workers_and_reloads() {
    let kept = Kept::default();
    let list = servers(&[1, 1, 1]);
    let any = flow("198.51.100.7", 1);
    let mut picked = HashMap::new();
    for _ in 0..90 {
        // A new snapshot now and then, all with one cursor.
        let picker = Picker::new(Scheduler::Rr, &[], &list, &kept, FLOW_KEY);
        *picked.entry(picker.pick(&any)).or_insert(0) += 1;
    }
    assert!(picked.values().all(|&count| count == 30), "{picked:?}");
}

#[test]
fn wlc_weighs_active_connections_256_times() {
    let list = servers(&[1, 1]);
    for _ in 0..257 {
        list[0].gauge.enter(State::TimeWait); // A: 257 inactive, overhead 257
    }
    list[1].gauge.enter(State::Established); // B: 1 active, overhead 257: a tie, and B is newer
    let wlc = picker(Scheduler::Wlc, &[], &list);
    assert_eq!(letters(&wlc, 1), "B");
    list[0].gauge.leave(State::TimeWait);
    assert_eq!(letters(&wlc, 1), "A");
}

#[test]
fn wlc_divides_by_weight_and_lc_does_not() {
    let list = servers(&[3, 1]);
    (0..2).for_each(|_| list[0].gauge.enter(State::Established));
    list[1].gauge.enter(State::Established);
    assert_eq!(letters(&picker(Scheduler::Wlc, &[], &list), 1), "A");
    assert_eq!(letters(&picker(Scheduler::Lc, &[], &list), 1), "B");
}

#[test]
fn sed_and_nq_differ_on_an_idle_slow_server() {
    let list = servers(&[10, 1]);
    list[0].gauge.enter(State::Established); // A: (1+1)/10, B: (0+1)/1
    assert_eq!(letters(&picker(Scheduler::Sed, &[], &list), 1), "A");
    assert_eq!(letters(&picker(Scheduler::Nq, &[], &list), 1), "B");
}

#[test]
fn least_schedulers_have_nobody_when_all_are_quiesced() {
    for kind in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        assert_eq!(letters(&picker(kind, &[], &servers(&[0, 0])), 1), "-");
        assert_eq!(letters(&picker(kind, &[], &[]), 1), "-");
    }
}

#[test]
fn sh_follows_the_vectors_of_ipvs() {
    let vectors = [
        ("198.51.100.7", 171, 'A'),
        ("198.51.100.8", 12, 'B'),
        ("198.51.100.9", 110, 'B'),
        ("203.0.113.1", 50, 'B'),
        ("10.0.0.1", 39, 'A'),
    ];
    let sh = picker(Scheduler::Sh, &[], &servers(&[1, 1]));
    for (source, bucket, letter) in vectors {
        assert_eq!(hashed::bucket(address(source), 0, 0), bucket);
        assert_eq!(
            sh.pick(&flow(source, 40112)).unwrap().index(),
            letter as usize - '@' as usize,
            "{source}"
        );
    }
    let sh_port = picker(Scheduler::Sh, &[SchedulerFlag::ShPort], &servers(&[1, 1]));
    for (source, bucket, letter) in
        [("198.51.100.7", 22, 'B'), ("198.51.100.8", 120, 'B'), ("203.0.113.1", 157, 'A')]
    {
        assert_eq!(hashed::bucket(address(source), 40112, 0), bucket);
        assert_eq!(sh_port.pick(&flow(source, 40112)).unwrap().index(), letter as usize - '@' as usize);
    }
    let weighted = picker(Scheduler::Sh, &[], &servers(&[3, 1]));
    for (source, letter) in
        [("198.51.100.7", 'A'), ("198.51.100.8", 'B'), ("198.51.100.9", 'A'), ("203.0.113.1", 'A')]
    {
        assert_eq!(weighted.pick(&flow(source, 1)).unwrap().index(), letter as usize - '@' as usize);
    }
}

#[test]
fn sh_refuses_the_clients_of_a_quiesced_server_unless_it_may_fall_back() {
    let list = servers(&[0, 1]);
    let client = flow("198.51.100.7", 1); // A's client
    assert_eq!(picker(Scheduler::Sh, &[], &list).pick(&client), None);
    let fallback = picker(Scheduler::Sh, &[SchedulerFlag::ShFallback], &list);
    assert_eq!(fallback.pick(&client), Some(list[1].dest));
    let nobody = picker(Scheduler::Sh, &[SchedulerFlag::ShFallback], &servers(&[0, 0]));
    assert_eq!(nobody.pick(&client), None);
}

#[test]
fn dh_looks_at_the_virtual_address_only() {
    let dh = picker(Scheduler::Dh, &[], &servers(&[1, 9, 1]));
    let first = dh.pick(&flow("198.51.100.7", 1));
    for source in ["198.51.100.8", "10.0.0.1", "203.0.113.9"] {
        assert_eq!(dh.pick(&flow(source, 4711)), first);
    }
    assert_eq!(letters(&picker(Scheduler::Dh, &[], &[]), 1), "-");
}

#[test]
fn mh_follows_the_vectors_of_ipvs() {
    let list = servers(&[1, 1, 1]);
    let mh = picker(Scheduler::Mh, &[], &list);
    for (source, row, server) in [
        ("198.51.100.7", 924, 1),
        ("198.51.100.8", 3802, 3),
        ("198.51.100.9", 667, 1),
        ("203.0.113.1", 1505, 3),
    ] {
        assert_eq!(mh::row(address(source), 0, 0), row);
        assert_eq!(mh.pick(&flow(source, 5)).unwrap().index(), server, "{source}");
    }
}

#[test]
fn mh_shares_are_even_and_a_lost_server_moves_few_rows() {
    let list = servers(&[1, 1, 1]);
    let rows = |servers: &[Candidate]| -> Vec<u32> {
        // One client address for each row: enough addresses hit all of them.
        let mh = picker(Scheduler::Mh, &[], servers);
        let mut owners = vec![0; mh::ROWS];
        for client in 0..200_000u32 {
            owners[mh::row(client, 0, 0)] = mh.pick(&numbered(client, 0)).unwrap().index() as u32;
        }
        owners
    };
    let before = rows(&list);
    let share = |n| before.iter().filter(|&&owner| owner == n).count();
    assert_eq!((share(1), share(2), share(3)), (1364, 1364, 1365));
    let after = rows(&[list[0].clone(), list[2].clone()]);
    let moved = before.iter().zip(&after).filter(|(before, after)| **before != 2 && before != after).count();
    assert_eq!(moved, 4, "of the other 2729 rows");
}

#[test]
fn mh_rows_of_a_server_that_grows_come_into_use_one_after_the_other() {
    let pick = |servers: &[Candidate]| -> Vec<Option<usize>> {
        let mh = picker(Scheduler::Mh, &[SchedulerFlag::MhPort], servers);
        (0..3000).map(|port| mh.pick(&flow("198.51.100.7", port)).map(|dest| dest.index())).collect()
    };
    let list = servers(&[8, 8, 8]);
    let (mut before, all) = (pick(&list[..2]), pick(&list));
    let mut shares = Vec::new();
    for weight in 1..=7 {
        let mut growing = list.clone();
        growing[2].weight = weight;
        let now = pick(&growing);
        let moved = before.iter().zip(&now).zip(&all).filter(|((before, now), _)| before != now);
        assert!(moved.clone().all(|((_, now), at_last)| *now == Some(3) && *at_last == Some(3)));
        shares.push(now.iter().filter(|met| **met == Some(3)).count() / 100);
        before = now;
    }
    assert_eq!(shares, [1, 2, 3, 4, 6, 7, 8]);
    // When it has grown up there are the few that always move.
    let moved = before.iter().zip(&all).filter(|(before, all)| before != all && **all != Some(3)).count();
    assert!(moved <= 5, "{moved}");
    // Where all grow there is nobody to leave rows to.
    let mut growing = list.clone();
    growing.iter_mut().for_each(|server| server.weight = 2);
    assert!(pick(&growing) == all);
}

#[test]
fn mh_quiesced_server_and_fallback() {
    let list = servers(&[0, 1]);
    let nobody = picker(Scheduler::Mh, &[], &servers(&[0, 0]));
    assert_eq!(letters(&nobody, 1), "-");
    assert_eq!(letters(&picker(Scheduler::Mh, &[], &list), 3), "BBB", "A was never in the table");
    let mut quiesced = servers(&[1, 1, 1]);
    quiesced[0].weight = 0;
    let clients = [flow("198.51.100.7", 1), flow("198.51.100.8", 1)]; // of A and of C
    let refusing = picker(Scheduler::Mh, &[], &quiesced);
    assert_eq!(clients.map(|client| refusing.pick(&client)), [None, Some(quiesced[2].dest)]);
    let falling_back = picker(Scheduler::Mh, &[SchedulerFlag::MhFallback], &quiesced);
    assert!(clients.iter().all(|client| falling_back.pick(client).is_some_and(|d| d != quiesced[0].dest)));
}

#[test]
fn fo_stays_with_the_heaviest() {
    let list = servers(&[2, 5, 5, 0]);
    list[2].gauge.enter(State::Established);
    // Of the two of weight 5 the newer one.
    assert_eq!(letters(&picker(Scheduler::Fo, &[], &list), 3), "CCC");
    assert_eq!(letters(&picker(Scheduler::Fo, &[], &servers(&[0])), 1), "-");
}

#[test]
fn ovf_goes_on_to_the_next_when_one_has_more_active_connections_than_its_weight() {
    let list = servers(&[1, 2, 0]);
    let ovf = picker(Scheduler::Ovf, &[], &list);
    let any = flow("198.51.100.7", 1);
    let begun: String = std::iter::from_fn(|| {
        let dest = ovf.pick(&any)?;
        list[dest.index() - 1].gauge.enter(State::Established);
        Some((b'@' + dest.index() as u8) as char)
    })
    .collect();
    assert_eq!(begun, "BBBAA", "each one more than its weight, then nobody");
    (0..9).for_each(|_| list[0].gauge.enter(State::TimeWait));
    list[1].gauge.change(false);
    assert_eq!(letters(&ovf, 2), "BB", "inactive ones do not count");
}

#[test]
fn twos_draws_by_weight_and_takes_the_less_loaded() {
    let list = servers(&[1, 2, 0, 3]);
    let twos = picker(Scheduler::Twos, &[], &list);
    let share = |letter, drawn: &str| drawn.matches(letter).count() as f64 / drawn.len() as f64;
    // Nobody has any: whom the first lot names, of 0 to 6. The newest has 0 to 3.
    let drawn = letters(&twos, 70_000);
    for (letter, lots) in [('A', 1.0), ('B', 2.0), ('D', 4.0)] {
        assert!((share(letter, &drawn) - lots / 7.0).abs() < 0.01, "{letter}: {}", share(letter, &drawn));
    }
    assert_eq!(share('C', &drawn), 0.0);
    // D is drawn alone by both lots, or another one is less loaded.
    list[3].gauge.enter(State::Established);
    let drawn = letters(&twos, 70_000);
    assert!((share('D', &drawn) - 16.0 / 49.0).abs() < 0.01, "{}", share('D', &drawn));
    assert_eq!(letters(&picker(Scheduler::Twos, &[], &servers(&[0, 0])), 2), "--");
}

#[test]
fn twos_keeps_the_loads_nearly_even() {
    let list = servers(&[1, 1, 2, 4]);
    let twos = picker(Scheduler::Twos, &[], &list);
    let any = flow("198.51.100.7", 1);
    for _ in 0..8_000 {
        let dest = twos.pick(&any).unwrap();
        list[dest.index() - 1].gauge.enter(State::Established);
    }
    for (server, fair) in list.iter().zip([1_000, 1_000, 2_000, 4_000]) {
        let (active, _) = server.gauge.get();
        assert!(active.abs_diff(fair) <= fair / 50, "{active} of {fair}");
    }
}

/// Every scheduler, with the flags by which the hashing ones look for others.
fn every_scheduler() -> Vec<(Scheduler, Vec<SchedulerFlag>)> {
    let flags = |kind| {
        let of_kind = |flag: &&SchedulerFlag| flag.scheduler() == kind;
        SchedulerFlag::ALL.iter().filter(of_kind).copied().collect()
    };
    Scheduler::ALL.iter().map(|&kind| (kind, flags(kind))).collect()
}

#[test]
fn a_server_that_is_not_free_is_passed_over_whatever_the_scheduler() {
    let flow = |n: u32| Flow { destination: n, ..numbered(n.wrapping_mul(0x9E37_79B9), n as u16) };
    for (kind, flags) in every_scheduler() {
        let list = servers(&[40_000, 3, 2]);
        let picker = Picker::new(kind, &flags, &list, &Kept::default(), FLOW_KEY);
        let full = DestId::new(1).unwrap();
        let picked = |is_free: &dyn Fn(DestId) -> bool| -> Vec<Option<DestId>> {
            (0..600).map(|n| picker.pick_free(|| flow(n), &|id| is_free(id))).collect()
        };
        for (n, dest) in picked(&|id| id != full).into_iter().enumerate() {
            // Without a fallback the clients of its rows wait for it.
            let refuses = kind == Scheduler::Dh;
            assert!(
                dest.is_some_and(|dest| dest != full) || refuses && dest.is_none(),
                "{kind} {n}: {dest:?}"
            );
        }
        assert_eq!(picked(&|_| false), [None; 600], "{kind}");
        let reason = picker.reason(&flow(7), &|_| true);
        assert_ne!(reason, Reason::Nobody, "{kind}");
    }
}

#[test]
fn without_one_server_wrr_is_that_of_the_others() {
    for (weights, full) in
        [([10, 1, 1], 1), ([100, 10, 3], 1), ([3, 65535, 2], 2), ([4, 3, 2], 3), ([4, 3, 2], 2)]
    {
        let picker = picker(Scheduler::Wrr, &[], &servers(&weights));
        let mut counts = [0u32; 3];
        for _ in 0..5_200 {
            let dest = picker.pick_free(|| flow("198.51.100.7", 1), &|id| id.index() != full).unwrap();
            counts[dest.index() - 1] += 1;
        }
        let sum: u32 = (0..3).filter(|n| n + 1 != full).map(|n| weights[n]).sum();
        for n in (0..3).filter(|n| n + 1 != full) {
            let share = 5_200 * weights[n] / sum;
            assert!(counts[n].abs_diff(share) <= share / 5, "{weights:?} without {full}: {counts:?}");
        }
    }
}

#[test]
fn turns_of_a_server_that_is_not_free_are_shared_by_all_others() {
    let picker = Picker::new(Scheduler::Rr, &[], &servers(&[1, 1, 1, 1]), &Kept::default(), FLOW_KEY);
    let mut counts = HashMap::new();
    for _ in 0..300 {
        let dest = picker.pick_free(|| flow("198.51.100.7", 1), &|id| id.index() != 2).unwrap();
        *counts.entry(dest.index()).or_insert(0) += 1;
    }
    assert_eq!(counts, HashMap::from([(1, 100), (3, 100), (4, 100)]));
}
