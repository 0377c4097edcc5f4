//! What one router notes goes on in another one.

use super::*;
use crate::changes::Changes;
use crate::engine::express;
use crate::engine::resolve::Path;
use crate::table::{Client, FLAG_REPLIED, Word};

impl Rig {
    fn noting(self) -> (Rig, Arc<Changes>) {
        let changes = Arc::new(Changes::default());
        (Rig { engine: self.engine.noting(Some(changes.clone())), ..self }, changes)
    }

    fn adopt(&self, word: Word, age: u32, slack: u32) -> Adopted {
        let (client, state, flags) = (word.client().socket().into(), word.state(), word.flags());
        let Some(dest) = DestId::new(word.dest_number() as u32) else { return Adopted::Stale };
        let news = News { client, dest, virtual_port: 0, state, flags, age, slack, local: None };
        adopt(&self.engine.table, &self.snapshot, self.now, &news)
    }
}

/// The connections that have been noted, as they are.
fn noted(rig: &Rig, changes: &Changes) -> Vec<Word> {
    std::iter::from_fn(|| changes.take()).filter_map(|slot| rig.engine.table.connection(slot)).collect()
}

fn established(rig: &Rig) {
    rig.push(WAN, &mut from_client(SYN));
    rig.push(LAN, &mut from_server(1, SYN | ACK));
    rig.push(WAN, &mut from_client(ACK));
}

fn word(server: u32, state: State) -> Word {
    let client = socket(CLIENT);
    let client = Client::new((*client.ip()).into(), client.port());
    Word::new(client, DestId::new(server).unwrap()).with_state(state)
}

#[test]
fn each_change_that_a_peer_should_know_is_noted() {
    let (rig, changes) = Rig::new(Protocol::Tcp, Mode::Nat, &[1]).noting();
    rig.push(WAN, &mut from_client(SYN));
    rig.push(LAN, &mut from_server(1, SYN | ACK));
    assert_eq!(noted(&rig, &changes), []);
    rig.push(WAN, &mut from_client(ACK));
    assert_eq!(
        noted(&rig, &changes).iter().map(|word| word.state()).collect::<Vec<_>>(),
        [State::Established]
    );
    for _ in 0..5 {
        rig.push(WAN, &mut from_client(ACK));
    }
    assert_eq!(noted(&rig, &changes), [], "nothing has changed");
    rig.push(LAN, &mut from_server(1, FIN | ACK));
    assert_eq!(noted(&rig, &changes)[0].state(), State::FinWait);
}

#[test]
fn a_udp_connection_is_noted_when_it_is_answered() {
    let (rig, changes) = Rig::new(Protocol::Udp, Mode::Nat, &[1]).noting();
    rig.push(WAN, &mut packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0));
    assert_eq!(noted(&rig, &changes), []);
    rig.push(LAN, &mut packet(Protocol::Udp, LAN_MAC, "10.0.0.1:8080", CLIENT, 0));
    assert_eq!(noted(&rig, &changes)[0].flags(), FLAG_REPLIED);
}

#[test]
fn a_udp_connection_by_direct_routing_is_noted_when_its_client_goes_on() {
    let (mut rig, changes) = Rig::new(Protocol::Udp, Mode::Dr, &[1]).noting();
    let push = |rig: &Rig| {
        rig.push(WAN, &mut packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0));
        noted(rig, &changes).len()
    };
    assert_eq!([push(&rig), push(&rig)], [0, 0], "of one moment");
    rig.now.0 += 3;
    assert_eq!(push(&rig), 0);
    rig.now.0 += 1;
    assert_eq!([push(&rig), push(&rig)], [1, 0], "a second later");
    rig.now.0 += 100;
    assert_eq!(push(&rig), 0, "nothing has changed");
}

#[test]
fn only_with_direct_routing_a_udp_connection_without_answers_leaves_the_short_way_to_be_renewed() {
    for (mode, is_short) in [(Mode::Nat, true), (Mode::Dr, false)] {
        let mut rig = Rig::new(Protocol::Udp, mode, &[1]);
        rig.push(WAN, &mut packet(Protocol::Udp, WAN_MAC, CLIENT, VIP, 0));
        rig.now.0 += 8;
        let path = Path::new(&rig.engine, &rig.snapshot, rig.now);
        let entry = || rig.engine.table.entries(0..rig.engine.table.buckets()).next().unwrap();
        let (slot, word) = entry();
        assert_eq!(express::renew(&path, slot, word).is_some(), is_short, "{mode:?}");
        assert_eq!(entry().1.age(rig.now) == 0, is_short, "{mode:?}");
        let (slot, word) = entry();
        let answered = word.with_flags(FLAG_REPLIED);
        rig.engine.table.replace(slot, word, answered).unwrap();
        assert!(express::renew(&path, slot, answered).is_some(), "{mode:?}, with an answer");
    }
}

#[test]
fn a_connection_goes_on_in_a_router_that_has_only_been_told_of_it() {
    // Both have two servers; round robin would give the next connection to another one.
    let (old, changes) = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 0]).noting();
    established(&old);
    let new = Rig::new(Protocol::Tcp, Mode::Nat, &[0, 1]);
    for word in noted(&old, &changes) {
        assert_eq!(new.adopt(word, word.age(old.now), 0), Adopted::New);
        assert_eq!(new.adopt(word, word.age(old.now), 0), Adopted::Known, "told twice");
    }
    assert_eq!(new.live(1), (1, 0));
    let mut request = from_client(ACK);
    assert_eq!(new.push(WAN, &mut request), Verdict::Forward(LAN));
    assert_eq!(request, expect(Protocol::Tcp, (server_mac(1), LAN_MAC), CLIENT, "10.0.0.1:8080", ACK));
    assert_eq!(new.push(LAN, &mut from_server(1, ACK)), Verdict::Forward(WAN));
    assert_eq!(new.push(LAN, &mut from_server(1, FIN | ACK)), Verdict::Forward(WAN));
    assert_eq!(new.live(1), (0, 1), "and ends there");
}

#[test]
fn of_two_words_the_fresher_counts() {
    let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
    assert_eq!(rig.adopt(word(1, State::Established), 40, 0), Adopted::New);
    assert_eq!(rig.adopt(word(1, State::FinWait), 42, 0), Adopted::Known, "older");
    assert_eq!(rig.adopt(word(1, State::FinWait), 41, 1), Adopted::Changed, "not too old for news");
    assert_eq!((rig.live(1), rig.live(2)), ((0, 1), (0, 0)));
    assert_eq!(rig.adopt(word(2, State::Established), 0, 0), Adopted::Changed, "another server");
    assert_eq!((rig.live(1), rig.live(2)), ((0, 0), (1, 0)));
    rig.wait(10);
    assert_eq!(rig.adopt(word(2, State::Established), 0, 0), Adopted::Changed, "seen there later");
    assert_eq!(rig.connections().len(), 1);
    assert_eq!(rig.live(2), (1, 0));
}

#[test]
fn of_two_words_of_one_moment_the_same_counts_in_both_routers() {
    let pairs = [
        [(1, State::Established), (2, State::Established)],
        [(1, State::FinWait), (1, State::Established)],
        [(1, State::FinWait), (1, State::CloseWait)],
        [(1, State::TimeWait), (2, State::FinWait)],
    ];
    for [one, other] in pairs {
        for late in [0, 1] {
            let heard = |first: (u32, State), then: (u32, State)| {
                let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1, 1]);
                assert_eq!(rig.adopt(word(first.0, first.1), 40, 0), Adopted::New);
                rig.adopt(word(then.0, then.1), 40 - late, 0);
                rig.connections()
            };
            assert_eq!(heard(one, other), heard(other, one), "{one:?} and {other:?}, {late} ticks late");
        }
    }
}

#[test]
fn what_is_over_or_of_nobody_is_not_adopted() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    assert_eq!(rig.adopt(word(9, State::Established), 0, 0), Adopted::Stale);
    assert_eq!(rig.adopt(word(1, State::Close), 45, 0), Adopted::Stale, "after ten seconds");
    assert_eq!(rig.adopt(word(1, State::Established), u32::MAX, 0), Adopted::Stale);
    assert_eq!((rig.connections().len(), rig.live(1)), (0, (0, 0)));
}

#[test]
fn no_connection_is_adopted_twice_or_miscounted_while_packets_of_it_pass() {
    let rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
    for round in 0..50u16 {
        let from = format!("198.51.100.7:{}", 1000 + round);
        rig.push(WAN, &mut packet(Protocol::Tcp, WAN_MAC, &from, VIP, SYN));
        let client = Client::new(0xC633_6407, 1000 + round);
        let told = Word::new(client, DestId::new(1).unwrap()).with_state(State::Established);
        assert_eq!(rig.adopt(told, 0, 8), Adopted::Changed);
        rig.push(LAN, &mut packet(Protocol::Tcp, LAN_MAC, "10.0.0.1:8080", &from, FIN | ACK));
    }
    assert_eq!((rig.connections().len(), rig.live(1)), (50, (0, 50)));
}

#[test]
fn a_connection_with_a_long_timeout_does_not_become_younger_by_being_told() {
    const HEALING: u64 = 240;
    let long = |late: u64| {
        let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
        rig.spec.timeouts.0[State::Established as usize] = 4 * 3600;
        rig.publish();
        rig.now.0 += late;
        rig
    };
    for late in [0, 1, 100, 255] {
        let mut routers = [long(0), long(late)];
        assert_eq!(routers[0].adopt(word(1, State::Established), 0, 0), Adopted::New);
        for round in 1..=200 {
            for [from, to] in [[0, 1], [1, 0]] {
                let told = routers[from].engine.table.words(0..routers[from].engine.table.buckets()).next();
                let told = told.unwrap();
                routers[to].adopt(told, told.age(routers[from].now), 0);
            }
            for router in &mut routers {
                router.now.0 += HEALING;
                let known = router.engine.table.words(0..router.engine.table.buckets()).next().unwrap();
                let age = u64::from(known.age(router.now));
                let passed = round * HEALING;
                assert!(
                    age <= passed && passed - age <= 3 * 256,
                    "{age} of {passed} ticks, {late} ticks late"
                );
            }
        }
    }
}

#[test]
fn what_has_ended_in_one_router_does_not_end_what_has_begun_anew_in_the_other() {
    let heard = |first: State, then: State| {
        let mut rig = Rig::new(Protocol::Tcp, Mode::Nat, &[1]);
        rig.spec.timeouts.0[State::Established as usize] = 4 * 3600;
        rig.publish();
        assert_eq!(rig.adopt(word(1, first), 0, 0), Adopted::New);
        rig.adopt(word(1, then), 20, 0);
        rig.connections()[0].2
    };
    assert_eq!(heard(State::Established, State::TimeWait), State::Established);
    assert_eq!(heard(State::TimeWait, State::Established), State::Established);
}
