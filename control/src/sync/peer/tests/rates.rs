//! What an event costs on the wire, and how long it takes, when there are few.

use super::*;

/// IP's and UDP's headers.
const HEADERS: u64 = 28;
/// Long enough for chance to even out where there are few.
const SECONDS: u64 = 20;

fn together() -> Wire {
    let mut wire = Wire::new();
    wire.routers.iter_mut().for_each(|router| router.slots = vec![None; 1 << 14]);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    wire
}

/// Bytes of all that both have sent so far.
fn sent(wire: &Wire) -> u64 {
    wire.peers.iter().map(|peer| peer.counts().sent_bytes + HEADERS * peer.counts().sent).sum()
}

/// When clients come, who know nothing of each other, so many a second.
fn arrivals(a_second: u32) -> impl Iterator<Item = Duration> {
    let mut random = 1u64;
    let gap = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::from_secs_f64(-uniform.ln() / f64::from(a_second))
    };
    let gaps = std::iter::repeat_with(gap);
    gaps.scan(Duration::ZERO, |now, gap| {
        *now += gap;
        Some(*now)
    })
}

/// Bytes a second while clients come, and how many have come.
fn spent(arrivals: impl Iterator<Item = Duration>) -> (f64, u32) {
    let mut wire = together();
    let (before, began) = (sent(&wire), wire.now);
    let (mut arrivals, mut events) = (arrivals.peekable(), 0);
    while wire.now < began + Duration::from_secs(SECONDS) {
        while arrivals.next_if(|&at| began + at <= wire.now).is_some() {
            wire.change(0, events as usize, events % 5, State::Established);
            events += 1;
        }
        wire.speak();
        wire.deliver_all();
    }
    let spent = sent(&wire) - before;
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.routers[1].known().len() as u32, events);
    assert_eq!(wire.peers[0].counts().lost, 0);
    (spent as f64 / SECONDS as f64, events)
}

#[test]
fn an_event_costs_64_bytes_at_the_most() {
    let (idle, _) = spent(std::iter::empty());
    println!("idle: {idle} bytes a second");
    for a_second in [1, 10, 50, 200, 550] {
        let (spent, events) = spent(arrivals(a_second));
        let [all, more] = [spent, spent - idle].map(|bytes| bytes * SECONDS as f64 / f64::from(events));
        println!("{a_second} a second: {all:.1} bytes an event, {more:.1} more than none");
        assert!(more <= 64.0, "{a_second} a second: {more:.1} bytes more than none");
    }
}

#[test]
fn a_change_is_told_at_once() {
    let mut wire = together();
    let known = |wire: &mut Wire, time: Duration| {
        wire.run(time);
        wire.routers[1].known().len()
    };
    wire.change(0, 0, 1, State::Established);
    assert_eq!(known(&mut wire, 2 * MS), 1);
    // Before the end nothing waits, however much there is.
    (1..1001).for_each(|slot| wire.change(0, slot, 1, State::Established));
    wire.peers[0].hurry();
    assert_eq!(known(&mut wire, 2 * MS), 1001);
    wire.change(0, 1001, 1, State::Established);
    assert_eq!(known(&mut wire, 2 * MS), 1002, "nor what comes after that");
}

#[test]
fn a_gap_that_a_datagram_without_anything_shows_is_said_at_once() {
    let mut wire = together();
    wire.change(0, 0, 1, State::Established);
    while wire.peers[0].counts().connections_sent == 0 {
        wire.speak();
        wire.under_way.iter_mut().for_each(VecDeque::clear);
    }
    // What the first says next is said without anything to tell.
    while wire.under_way[1].is_empty() {
        wire.speak();
        wire.under_way[0].clear();
    }
    assert_eq!(wire.peers[0].counts().connections_sent, 1);
    wire.deliver_all();
    wire.speak();
    assert_eq!(wire.under_way[0].len(), 1);
}

#[test]
fn a_change_whose_datagram_is_lost_is_known_well_within_a_second() {
    let mut wire = together();
    wire.change(0, 0, 1, State::Established);
    let began = wire.now;
    while wire.peers[0].counts().connections_sent == 0 {
        wire.speak();
        wire.under_way.iter_mut().for_each(VecDeque::clear);
    }
    while wire.routers[1].known().is_empty() {
        wire.run(2 * MS);
    }
    let took = wire.now - began;
    // The wait for others, for the peer's word, and the way.
    assert!(took < 600 * MS, "{took:?}");
    assert_eq!(wire.peers[0].counts().connections_retold, 1);
}
