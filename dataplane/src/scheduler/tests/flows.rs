//! The schedulers that look at the whole 5-tuple: shares, what moves when servers change, and that all routers agree.

use std::net::SocketAddr;

use super::super::flow::of_server;
use super::super::rendezvous::cost;
use super::*;

/// Both for which all routers pick the same server.
const AGREEING: [Scheduler; 2] = [Scheduler::Maglev, Scheduler::Rendezvous];

/// Weights with nothing in common, and such that differ much.
const WEIGHTS: [&[u32]; 4] = [&[1, 1], &[1, 2, 3, 4, 10], &[7, 100, 30, 1000], &[1; 40]];

/// Neighbouring clients with neighbouring ports, as behind a NAT or in a load generator.
fn neighbours() -> impl Iterator<Item = Flow> {
    (0..40_000).map(|n| numbered(0x0A00_0000 + n / 16, 1024 + (n % 16) as u16))
}

/// Whom each of the neighbours meets, by the server's number.
fn meet(kind: Scheduler, servers: &[Candidate]) -> Vec<usize> {
    let picker = picker(kind, &[], servers);
    neighbours().map(|flow| picker.pick(&flow).unwrap().index()).collect()
}

fn without(servers: &[Candidate], number: usize) -> Vec<Candidate> {
    servers.iter().filter(|server| server.dest.index() != number).cloned().collect()
}

/// How many of the flows changed servers though theirs was not this one.
fn moved_needlessly(before: &[usize], after: &[usize], gone: usize) -> usize {
    before.iter().zip(after).filter(|(before, after)| **before != gone && before != after).count()
}

/// Chi-squared over the servers within five standard deviations.
fn assert_shares(kind: Scheduler, met: &[usize], weights: &[u32]) {
    let sum: f64 = weights.iter().copied().map(f64::from).sum();
    let excess = |(&weight, number): (&u32, usize)| {
        let expected = met.len() as f64 * f64::from(weight) / sum;
        let count = met.iter().filter(|server| **server == number).count() as f64;
        (count - expected).powi(2) / expected
    };
    let chi: f64 = weights.iter().zip(1..).filter(|(weight, _)| **weight > 0).map(excess).sum();
    let freedom = (weights.iter().filter(|weight| **weight > 0).count() - 1) as f64;
    let most = freedom + 5.0 * (2.0 * freedom).sqrt();
    assert!(chi <= most, "{kind} {weights:?}: chi-squared {chi}, expected about {freedom}");
}

#[test]
fn shares_follow_the_weights() {
    for weights in WEIGHTS {
        // Of idle servers p2c takes the first draw.
        for kind in [Scheduler::Maglev, Scheduler::Rendezvous, Scheduler::P2c] {
            assert_shares(kind, &meet(kind, &servers(weights)), weights);
        }
    }
}

#[test]
fn a_server_that_goes_takes_its_own_flows_along_and_of_the_others_hardly_any() {
    for weights in WEIGHTS {
        let list = servers(weights);
        for gone in [1, weights.len()] {
            for (kind, most) in AGREEING.into_iter().zip([0.01, 0.0]) {
                let (before, after) = (meet(kind, &list), meet(kind, &without(&list, gone)));
                let moved = moved_needlessly(&before, &after, gone);
                let most = before.len() as f64 * most;
                assert!(moved as f64 <= most, "{kind} {weights:?} without {gone}: {moved} moved");

                let left: Vec<u32> = weights
                    .iter()
                    .zip(1..)
                    .map(|(weight, number)| if number == gone { 0 } else { *weight })
                    .collect();
                assert_shares(kind, &after, &left);
                // One of weight 0 is as one that is not there, also if it had a weight before.
                let mut quiesced = list.clone();
                quiesced[gone - 1].weight = 0;
                assert!(meet(kind, &quiesced) == after, "{kind} {weights:?} without {gone}");
            }
        }
    }
}

#[test]
fn routers_with_other_ids_and_another_order_agree() {
    for weights in WEIGHTS {
        let list = servers(weights);
        let mut other: Vec<Candidate> = list.iter().rev().cloned().collect();
        other.iter_mut().zip(1000..).for_each(|(server, id)| server.dest = DestId::new(id).unwrap());
        for kind in AGREEING {
            let addresses = |servers: &[Candidate]| -> Vec<SocketAddr> {
                let picker = picker(kind, &[], servers);
                let address = |dest| servers.iter().find(|server| server.dest == dest).unwrap().address;
                neighbours().map(|flow| address(picker.pick(&flow).unwrap())).collect()
            };
            assert!(addresses(&list) == addresses(&other), "{kind} {weights:?}");
        }
    }
}

#[test]
fn flows_of_a_full_server_go_to_the_others_by_weight_and_nobody_else_moves() {
    let weights = [4, 3, 2, 1];
    let list = servers(&weights);
    for kind in AGREEING {
        let picker = picker(kind, &[], &list);
        let met = |is_free: &dyn Fn(DestId) -> bool| -> Vec<usize> {
            neighbours().map(|flow| picker.pick_free(|| flow, &|id| is_free(id)).unwrap().index()).collect()
        };
        let (before, after) = (met(&|_| true), met(&|id| id.index() != 2));
        assert_eq!(moved_needlessly(&before, &after, 2), 0, "{kind}");
        let fled: Vec<usize> =
            before.iter().zip(&after).filter(|(before, _)| **before == 2).map(|(_, after)| *after).collect();
        assert_shares(kind, &fled, &[4, 0, 2, 1]);
        // To the last one.
        assert!(met(&|id| id.index() == 4).iter().all(|server| *server == 4), "{kind}");
    }
}

#[test]
fn flows_move_to_a_server_that_grows_and_nowhere_else() {
    for kind in AGREEING {
        let list = servers(&[8, 8, 8]);
        let mut before = meet(kind, &list[..2]);
        let mut share = 0;
        for weight in 1..8 {
            let mut growing = list.clone();
            growing[2].weight = weight;
            let now = meet(kind, &growing);
            assert_eq!(
                before.iter().zip(&now).filter(|(was, is)| was != is && **is != 3).count(),
                0,
                "{kind}"
            );
            let its = now.iter().filter(|server| **server == 3).count();
            assert!(its > share + now.len() / 40, "{kind} {weight}: {its} after {share}");
            (before, share) = (now, its);
        }
    }
}

/// What the same servers are called, and which service it is, makes no other table.
#[test]
fn a_table_lasts_until_servers_or_weights_change() {
    let kept = Kept::default();
    let maglev = |servers: &[Candidate]| match Picker::new(Scheduler::Maglev, &[], servers, &kept, FLOW_KEY) {
        Picker::Maglev(maglev) => maglev,
        other => panic!("{other:?}"),
    };
    let list = servers(&[1, 2, 3]);
    let first = maglev(&list);
    let mut renumbered = list.clone();
    renumbered[1].dest = DestId::new(9).unwrap();
    renumbered.reverse();
    assert!(first.shares_table(&maglev(&renumbered)));
    let mut quiesced = list.clone();
    quiesced[0].weight = 0;
    let second = maglev(&quiesced);
    assert!(!first.shares_table(&second));
    assert!(second.shares_table(&maglev(&quiesced[1..])), "it was not in the table");
    let mut heavier = list.clone();
    (heavier[0].weight, heavier[0].last_weight) = (4, 4);
    assert!(!first.shares_table(&maglev(&heavier)));
}

#[test]
fn a_hash_is_the_same_on_every_machine_and_sees_all_of_the_5_tuple() {
    let four = flow("198.51.100.7", 40112);
    let client = 0x2001_0db8_0000_0000_0000_0000_0000_0007;
    let service = 0x2001_0db8_0000_0000_0000_0000_0000_0010;
    let six = Flow { wide: Some([client, service]), ..four };
    let others = [
        Flow { source: four.source + 1, ..four },
        Flow { source_port: 40113, ..four },
        Flow { destination: four.destination + 1, ..four },
        Flow { destination_port: 81, ..four },
        Flow { protocol: Protocol::Udp, ..four },
        six,
        Flow { wide: Some([service, client]), ..four },
        // These fold into the same 32 bits.
        Flow { wide: Some([client ^ (1 << 100 | 1 << 36), service]), ..four },
        Flow { wide: Some([client, service ^ (1 << 100 | 1 << 36)]), ..four },
    ];
    let mut hashes: Vec<u64> = others.iter().chain([&four]).map(|flow| flow.hash(FLOW_KEY)).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), others.len() + 1);
    // Computed by another program.
    assert_eq!([four.hash(FLOW_KEY), six.hash(FLOW_KEY)], [1304743653715875445, 16403808290536330332]);
    let servers = ["10.0.0.1:80", "[2001:db8::1]:80"].map(|server| of_server(server.parse().unwrap()));
    assert_eq!(servers, [9377656071005205592, 16141450103837248433]);
}

#[test]
fn a_cost_is_the_logarithm_within_its_bounds_and_never_rises() {
    const ONE: u64 = 1 << 32;
    // The lowest bit always counts as set.
    assert_eq!([0, 1, 1 << 63, u64::MAX].map(cost), [64 * ONE, 64 * ONE, ONE, 1]);
    assert_eq!([3, 0xB504_F333_F9DE_6485].map(cost), [268_070_544_839, 2_147_484_526]);
    let mut last = u64::MAX;
    for n in 0..=1_000_000u64 {
        let hash = (n * (u64::MAX / 1_000_000)) | 1;
        let (is, exact) = (cost(hash), -(hash as f64 / 2f64.powi(64)).log2());
        let error = (is as f64 / ONE as f64 - exact).abs();
        assert!(is <= last && error < 3e-6 && error <= exact * 3e-3 + 1e-9, "{hash:#x}: {is}, {exact}");
        last = is;
    }
}

#[test]
fn p2c_compares_two_different_servers() {
    let kept = Kept::default();
    let list = servers(&[9, 1]);
    let p2c = Picker::new(Scheduler::P2c, &[], &list, &kept, FLOW_KEY);
    (0..9).for_each(|_| list[0].gauge.enter(State::Established));
    // 9 for a weight of 9, and none for one of 1: both are always drawn.
    assert!(neighbours().all(|flow| p2c.pick(&flow) == Some(list[1].dest)));
    (0..2).for_each(|_| list[1].gauge.enter(State::Established));
    assert!(neighbours().all(|flow| p2c.pick(&flow) == Some(list[0].dest)));
    assert_eq!(kept.cursor.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing is shared");
    let reason = p2c.reason(&flow("198.51.100.7", 1), &|_| true);
    assert_eq!(reason, Reason::Load { active: 9, inactive: 0, weight: 9, of: 2 });
    assert_eq!(letters(&picker(Scheduler::P2c, &[], &servers(&[0, 5, 0])), 2), "BB");
    assert_eq!(letters(&picker(Scheduler::P2c, &[], &servers(&[0, 0])), 1), "-");
}

#[test]
fn p2c_keeps_the_loads_nearly_even() {
    let list = servers(&[1, 1, 2, 4, 4, 4]);
    let p2c = picker(Scheduler::P2c, &[], &list);
    for flow in neighbours().take(16_000) {
        list[p2c.pick(&flow).unwrap().index() - 1].gauge.enter(State::Established);
    }
    for server in &list {
        let ((active, _), fair) = (server.gauge.get(), 1_000 * server.weight);
        assert!(active.abs_diff(fair) <= fair / 50, "{active} of {fair}");
    }
}

#[test]
fn reasons_are_those_of_the_pick() {
    let list = servers(&[1, 1, 6]);
    let any = flow("198.51.100.7", 1);
    let maglev = picker(Scheduler::Maglev, &[], &list);
    let owner = maglev.pick(&any).unwrap();
    let Reason::Row { row, rows, owner: its } = maglev.reason(&any, &|id| id != owner) else { panic!() };
    assert!((row, rows, its) == ((any.hash(FLOW_KEY) % 65537) as usize, 65537, owner));
    let rendezvous = picker(Scheduler::Rendezvous, &[], &list);
    let winner = rendezvous.pick(&any).unwrap().index();
    let weight = list[winner - 1].weight;
    assert_eq!(rendezvous.reason(&any, &|_| true), Reason::Score { weight, of: 3 });
    for kind in AGREEING {
        assert_eq!(picker(kind, &[], &servers(&[0])).reason(&any, &|_| true), Reason::Nobody);
    }
}

#[test]
fn a_secret_deals_flows_anew() {
    let list = servers(&[1, 1, 1, 1]);
    for kind in [Scheduler::Maglev, Scheduler::Rendezvous, Scheduler::P2c] {
        let picks = |key| {
            let picker = Picker::new(kind, &[], &list, &Kept::default(), key);
            (0..400u16).map(|port| picker.pick(&flow("198.51.100.7", port))).collect::<Vec<_>>()
        };
        let (public, secret) = (picks(FLOW_KEY), picks(7));
        assert_eq!(secret, picks(7), "{kind}");
        let same = public.iter().zip(&secret).filter(|(one, other)| one == other).count();
        assert!((60..140).contains(&same), "{kind}: {same} of 400 by chance");
    }
}
