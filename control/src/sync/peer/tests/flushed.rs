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

#[test]
fn nothing_is_told_until_the_peer_has_carried_out_the_order() {
    let mut wire = together();
    wire.routers[1].is_sweeping = true;
    wire.peers[0].forget(wire.now, filter());
    wire.change(0, 1, 1, State::Established);
    wire.peers[0].missed();
    wire.run(Duration::from_secs(3));
    assert_eq!((wire.routers[1].tellings, wire.routers[1].forgets.len()), (0, 1));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    wire.routers[1].is_sweeping = false;
    wire.run(200 * MS);
    assert_eq!(wire.routers[1].known(), wire.routers[0].known());
    assert_eq!(wire.routers[1].tellings_after, [1, 0], "it has itself kept what it tells");
}

#[test]
fn nothing_is_told_while_connections_are_being_removed_here() {
    let mut wire = together();
    wire.routers[0].is_flushing = true;
    wire.change(0, 1, 1, State::Established);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.routers[1].tellings, 0);
    wire.routers[0].is_flushing = false;
    wire.run(200 * MS);
    assert_eq!(wire.routers[1].known().len(), 1);
}

#[test]
fn what_a_peer_tells_before_it_has_carried_out_an_order_or_was_given_one_is_told_apart() {
    let mut wire = together();
    wire.routers[1].is_sweeping = true;
    // The one that is told, and by somebody who has not come to an end.
    wire.peers[0].forget(wire.now, filter());
    wire.change(1, 1, 1, State::Established);
    wire.run(200 * MS);
    assert_eq!(wire.routers[0].tellings_after, [0, 1]);
    wire.routers[1].is_sweeping = false;
    wire.run(200 * MS);
    wire.change(1, 3, 1, State::Established);
    wire.run(200 * MS);
    assert_eq!(wire.routers[0].tellings_after, [1, 1]);

    // What was on its way when the order was given comes after it.
    wire.change(0, 2, 1, State::Established);
    while wire.peers[0].counts().connections_sent == 0 {
        wire.speak();
    }
    wire.peers[0].forget(wire.now, filter());
    wire.speak();
    wire.under_way[1].make_contiguous().reverse();
    wire.run(200 * MS);
    assert_eq!(wire.routers[1].forgets.len(), 2);
    assert_eq!(wire.routers[1].tellings_after, [0, 1]);
}

#[test]
fn both_may_flush_at_once_and_orders_end_whatever_is_lost() {
    let mut wire = together();
    for router in 0..2 {
        wire.peers[router].forget(wire.now, filter());
        wire.change(router, router, 1, State::Established);
    }
    for round in 0..100 {
        wire.speak();
        // Each direction loses in turn.
        wire.under_way[round / 25 % 2].clear();
        wire.deliver_all();
    }
    wire.run(Duration::from_secs(2));
    assert_eq!(wire.routers[0].known().len(), 2);
    assert_eq!(wire.routers[0].known(), wire.routers[1].known());
}

#[test]
fn an_old_order_is_not_told_to_one_that_comes_back() {
    let mut wire = together();
    wire.peers[0].forget(wire.now, filter());
    wire.run(50 * MS);
    wire.restart(1, 500);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.routers[1].forgets.len(), 1, "not old yet");
    wire.restart(1, 700);
    wire.now += Duration::from_secs(3600);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert!(wire.routers[1].forgets.is_empty());
}
