//! lblc and lblcr against a plain model: maps without an end, and IPVS' rules in the order of its source.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600 * 4;

fn to(destination: u32, hours: u64) -> Flow {
    Flow { destination, now: Tick(hours * HOUR), ..flow("198.51.100.7", 1) }
}

fn load(server: &Candidate, active: u32) {
    (0..active).for_each(|_| server.gauge.enter(State::Established));
}

#[test]
fn lblc_stays_until_it_is_overloaded_and_somebody_is_idle() {
    let list = servers(&[2, 2]);
    let lblc = picker(Scheduler::Lblc, &[], &list);
    let pick = |address, hours| lblc.pick(&to(address, hours)).map(DestId::index);
    assert_eq!(pick(1, 0), Some(2), "the newest, as with wlc");
    load(&list[1], 2);
    assert_eq!((pick(1, 0), pick(2, 0)), (Some(2), Some(1)), "it stays; another address goes elsewhere");
    load(&list[0], 1);
    load(&list[1], 7);
    assert_eq!(pick(1, 0), Some(2), "overloaded, but nobody has less than half its weight");
    list[0].gauge.leave(State::Established);
    assert_eq!(pick(1, 0), Some(1), "now somebody has");
    load(&list[0], 2);
    assert_eq!((pick(1, 0), pick(1, 20), pick(1, 43)), (Some(1), Some(1), Some(1)), "and that is kept");
    load(&list[0], 20);
    (0..9).for_each(|_| list[1].gauge.leave(State::Established));
    load(&list[1], 1);
    assert_eq!(pick(1, 70), Some(2), "but not for more than a day");
    let without = picker(Scheduler::Lblc, &[], &list[..1]);
    assert_eq!(without.pick(&to(1, 70)).map(DestId::index), Some(1));
    assert_eq!(letters(&picker(Scheduler::Lblc, &[], &servers(&[0, 0])), 1), "-");
}

#[test]
fn what_is_known_outlives_a_snapshot_and_is_not_moved_by_a_question() {
    let (list, kept) = (servers(&[1, 1, 1]), Kept::default());
    let new = |kind| Picker::new(kind, &[], &list, &kept, 0);
    let first = new(Scheduler::Lblc).pick(&to(7, 0));
    load(&list[first.unwrap().index() - 1], 1);
    assert_eq!(new(Scheduler::Lblc).pick(&to(7, 0)), first);
    let copy = new(Scheduler::Lblc).rehearsal(|_| None);
    let (here, there) = (new(Scheduler::Lblc), copy.pick(&to(8, 0)));
    assert!(there.is_some() && there != first);
    load(&list[there.unwrap().index() - 1], 2);
    assert!(
        matches!(here.reason(&to(8, 0), &|_| true), Reason::Load { active: 0, of: 3, .. }),
        "nobody has asked for it"
    );
    assert_ne!(here.pick(&to(8, 0)), there);
}

#[test]
fn lblcr_takes_the_least_loaded_of_a_set_that_grows_and_shrinks() {
    let list = servers(&[2, 2, 2]);
    let lblcr = picker(Scheduler::Lblcr, &[], &list);
    let pick = |hours| lblcr.pick(&to(1, hours)).map(DestId::index);
    assert_eq!(pick(0), Some(3));
    load(&list[2], 3);
    assert_eq!(pick(0), Some(2), "overloaded: another one joins");
    load(&list[1], 4);
    assert_eq!(pick(0), Some(1), "and another one, since the least loaded is");
    load(&list[0], 2);
    assert_eq!(pick(0), Some(1), "the least of the set");
    (0..4).for_each(|_| list[1].gauge.leave(State::Established));
    assert_eq!((pick(12), pick(24)), (Some(2), Some(2)));
    // A day after the last change the most loaded leaves: the third.
    assert_eq!(pick(25), Some(2));
    (0..3).for_each(|_| list[2].gauge.leave(State::Established));
    load(&list[1], 1);
    assert_eq!(pick(25), Some(2), "it would have been the third");
}

#[test]
fn many_addresses_push_out_those_that_nobody_asks_for() {
    let list = servers(&[1, 1]);
    let lblc = picker(Scheduler::Lblc, &[], &list);
    let asked = |address, seconds| lblc.pick(&Flow { now: Tick(u64::from(seconds) * 4), ..to(address, 0) });
    let (first, second) = (asked(0xFFFF_0000, 0), asked(0xFFFF_0001, 0));
    assert_eq!(first, second);
    load(&list[first.unwrap().index() - 1], 1);
    for number in 1..10_000 {
        asked(number, 2 * number);
        assert_eq!(asked(0xFFFF_0000, 2 * number + 1), first, "{number}: it is asked for again and again");
    }
    assert_ne!(asked(0xFFFF_0001, 20_000), second);
}

/// What an address has.
#[derive(Default)]
struct Known {
    last: u64,
    changed: u64,
    set: Vec<usize>,
}

/// IPVS' rules.
fn expected(
    known: &mut BTreeMap<u32, Known>,
    list: &[Candidate],
    is_set: bool,
    address: u32,
    hours: u64,
) -> usize {
    let cost = |n: usize| f64::from(overhead(&list[n].gauge) as u32) / f64::from(list[n].weight);
    let active = |n: usize| list[n].gauge.get().0;
    let overloaded = |n: usize| {
        active(n) > list[n].weight && (0..list.len()).any(|other| active(other) * 2 < list[other].weight)
    };
    known.retain(|_, known| hours - known.last <= 24);
    let entry = known.entry(address).or_insert_with(|| Known { changed: hours, ..Known::default() });
    entry.last = hours;
    if is_set && entry.set.len() > 1 && hours - entry.changed > 24 {
        let most = *entry.set.iter().max_by(|a, b| cost(**a).total_cmp(&cost(**b))).unwrap();
        entry.set.retain(|&n| n != most);
        entry.changed = hours;
    }
    let least = entry.set.iter().copied().min_by(|a, b| cost(*a).total_cmp(&cost(*b)));
    if let Some(least) = least.filter(|&n| !overloaded(n)) {
        return least;
    }
    let wlc = (0..list.len()).rev().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap();
    if !is_set {
        entry.set.clear();
    }
    if !entry.set.contains(&wlc) {
        entry.set.push(wlc);
        entry.changed = hours;
    }
    wlc
}

proptest! {
    #[test]
    fn agrees_with_the_plain_model(
        is_set in any::<bool>(),
        // Connections that begin or end at a server, or one that is asked for.
        steps in prop::collection::vec((0_u32..6, 0_usize..4, 0_u64..9), 1..200),
    ) {
        // No two costs are equal for long, so that the order within a set does not matter.
        let list = servers(&[3, 5, 7, 11]);
        for (server, extra) in list.iter().zip([1, 2, 3, 5]) {
            (0..extra).for_each(|_| server.gauge.enter(State::TimeWait));
        }
        let kind = if is_set { Scheduler::Lblcr } else { Scheduler::Lblc };
        let picker = picker(kind, &[], &list);
        let (mut known, mut hours, mut open) = (BTreeMap::new(), 0, [0_u32; 4]);
        for (address, server, what) in steps {
            match what {
                0..4 => {
                    load(&list[server], what as u32 + 1);
                    open[server] += what as u32 + 1;
                }
                4 => {
                    (0..open[server]).for_each(|_| list[server].gauge.leave(State::Established));
                    open[server] = 0;
                }
                5 => hours += 7,
                _ => {
                    let found = picker.pick(&to(1 + address, hours)).unwrap().index() - 1;
                    prop_assert_eq!(found, expected(&mut known, &list, is_set, 1 + address, hours));
                }
            }
        }
    }
}
