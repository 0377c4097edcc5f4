//! What an operator has flushed is forgotten by the peer, whatever the wire does.

use super::*;

fn filter() -> Filter {
    Filter { client: Some([198, 51, 100, 7].into()), ..Filter::default() }
}

fn together() -> Wire {
    let mut wire = Wire::new();
    wire.run(50 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    wire
}

#[test]
fn it_is_told_at_once_and_once() {
    let mut wire = together();
    wire.peers[0].forget(wire.now, filter());
    wire.run(2 * MS);
    assert_eq!(wire.routers[1].forgets, [(filter(), 0)]);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.routers[1].forgets.len(), 1);
    assert!(wire.routers[0].forgets.is_empty());
}

#[test]
fn what_is_lost_is_told_again_with_the_time_that_has_passed() {
    let mut wire = together();
    wire.peers[0].forget(wire.now, filter());
    for _ in 0..300 {
        wire.speak();
        wire.under_way.iter_mut().for_each(VecDeque::clear);
    }
    wire.run(Duration::from_millis(600));
    let [(told, age)] = wire.routers[1].forgets[..] else { panic!("{:?}", wire.routers[1].forgets) };
    assert_eq!(told, filter());
    assert!((2..=5).contains(&age), "{age} ticks");
}

#[test]
fn a_peer_that_was_away_hears_of_it_before_it_tells_of_anything() {
    let mut wire = together();
    for step in 0..1500 {
        wire.speak();
        wire.under_way.iter_mut().for_each(VecDeque::clear);
        if step == 1400 {
            assert_eq!(wire.standings(), [Standing::Away; 2]);
            wire.peers[0].forget(wire.now, filter());
        }
    }
    wire.routers[1].set(5, 1, State::Established);
    while wire.routers[0].tellings == 0 {
        wire.run(2 * MS);
    }
    assert_eq!(wire.routers[1].forgets.len(), 1);
    // Also one that starts anew, which others may tell of it.
    wire.restart(1, 500);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.routers[1].forgets.len(), 1);
}
