//! A gate that is shut to a flood of SYNs.

use proptest::prelude::*;

use super::*;
use crate::admission::{Kept, Limit, Rate};

const SCHEDULERS: [Scheduler; 6] =
    [Scheduler::Rr, Scheduler::Wlc, Scheduler::Sh, Scheduler::Mh, Scheduler::Maglev, Scheduler::P2c];
const RATE: u32 = 40;

/// A rig of three servers whose gate is shut by forty handshakes that are half done, and what goes by it.
pub(super) fn gated(mode: Mode, scheduler: Scheduler) -> (Rig, Kept) {
    let (mut rig, mut kept) = (Rig::new(Protocol::Tcp, mode, &[1, 1, 1]), Kept::default());
    rig.engine = Engine::new(0, Arc::new(Table::new(4096, HashKey { blind: 1, factor: 3 })), Arc::default());
    let half_open = Some(Rate::new(RATE, RATE));
    let limit =
        Limit { rate: None, source_rate: None, source_connections: None, half_open, source_prefix: 32 };
    rig.spec.limiter = kept.limiter(Some(limit), [1, 2]);
    rig.spec.scheduler = scheduler;
    rig.publish();
    (rig, kept)
}

/// The n-th of those who never answer.
fn stranger(n: u32) -> String {
    format!("203.0.113.{}:{}", n % 250, 1024 + n)
}

fn from(client: &str, flags: u8) -> Vec<u8> {
    packet(Protocol::Tcp, WAN_MAC, client, VIP, flags)
}

/// Sends so many SYNs, no two from one client; how many servers they go to.
pub(super) fn flood(rig: &Rig, count: u32) -> usize {
    let mut servers = BTreeSet::new();
    for n in 0..count {
        let mut syn = from(&stranger(n), SYN);
        if rig.push(WAN, &mut syn) == Verdict::Forward(LAN) {
            servers.insert(syn[..6].to_vec());
        }
    }
    servers.len()
}

fn flood_of(rig: &Rig) -> crate::admission::Flood {
    rig.spec.limiter.as_ref().unwrap().flood(rig.now).unwrap()
}

/// The number of the server that a packet is sent to.
fn server_of(frame: &[u8]) -> u32 {
    frame[5].into()
}

#[test]
fn a_flood_leaves_no_more_words_than_the_rate_and_who_answers_gets_through() {
    for scheduler in SCHEDULERS {
        let (rig, _kept) = gated(Mode::Nat, scheduler);
        let servers = flood(&rig, 1000);
        assert!(servers == 3, "{scheduler:?}: {servers}");
        assert_eq!(rig.connections().len(), RATE as usize, "{scheduler:?}");
        assert_eq!((flood_of(&rig).shut, flood_of(&rig).syns), (true, 960));

        for n in 0..20 {
            let client = format!("198.51.100.{n}:40112");
            let mut syn = from(&client, SYN);
            assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
            let server = server_of(&syn);
            let reply =
                |flags| packet(Protocol::Tcp, LAN_MAC, &format!("10.0.0.{server}:8080"), &client, flags);
            let mut answer = reply(SYN | ACK);
            assert_eq!(rig.push(LAN, &mut answer), Verdict::Forward(WAN), "{scheduler:?}");
            assert_eq!(answer, expect(Protocol::Tcp, (CLIENT_MAC, WAN_MAC), VIP, &client, SYN | ACK));
            let mut wrong = packet(
                Protocol::Tcp,
                LAN_MAC,
                &format!("10.0.0.{}:8080", server % 3 + 1),
                &client,
                SYN | ACK,
            );
            assert!(matches!(rig.push(LAN, &mut wrong), Verdict::Punt(_)), "not the one that was asked");
            assert_eq!(rig.connections().len() as u32, RATE + n, "no word yet");
            let mut ack = from(&client, ACK);
            assert_eq!(rig.push(WAN, &mut ack), Verdict::Forward(LAN));
            assert_eq!(server_of(&ack), server, "{scheduler:?}");
            assert_eq!(rig.push(LAN, &mut reply(ACK)), Verdict::Forward(WAN));
            let known = (socket(&client), server as usize, State::Established);
            assert!(rig.connections().contains(&known), "{scheduler:?}");
        }
    }
}

#[test]
fn it_opens_after_the_flood_and_ends_of_handshakes_are_taken_a_while_longer() {
    let (mut rig, _kept) = gated(Mode::Dr, Scheduler::Wlc);
    assert_eq!(rig.push(WAN, &mut from_client(ACK)), Verdict::Punt(Punt::NoConnection), "no flood yet");
    flood(&rig, 200);
    let mut syn = from_client(SYN);
    rig.push(WAN, &mut syn);
    let words = rig.connections().len();
    rig.wait(1);
    assert!(!flood_of(&rig).shut);
    let mut reset = from_client(RST);
    assert_eq!(rig.push(WAN, &mut reset), Verdict::Forward(LAN), "its server may forget it");
    assert_eq!((server_of(&reset), rig.connections().len()), (server_of(&syn), words));
    let mut ack = from_client(ACK);
    assert_eq!(rig.push(WAN, &mut ack), Verdict::Forward(LAN));
    assert_eq!((server_of(&ack), rig.connections().len()), (server_of(&syn), words + 1));
    assert_eq!(rig.push(WAN, &mut from("198.51.100.8:9", SYN)), Verdict::Forward(LAN));
    assert_eq!(rig.connections().len(), words + 2, "as ever");
    rig.wait(16);
    assert_eq!(rig.push(WAN, &mut from("198.51.100.9:9", ACK)), Verdict::Punt(Punt::NoConnection));
}

#[test]
fn a_flood_of_acknowledgements_is_limited_by_name() {
    let (rig, _kept) = gated(Mode::Dr, Scheduler::Maglev);
    flood(&rig, 100);
    let late = |n: u32| rig.push(WAN, &mut from(&format!("198.51.100.{}:{}", n % 250, 1024 + n), ACK));
    let refused = (0..500).filter(|&n| late(n) == Verdict::Drop(Drop::SynFlood)).count();
    assert_eq!((refused, rig.connections().len()), (460, 2 * RATE as usize));
}

#[test]
fn data_connections_of_ftp_are_nobodys_under_a_flood_either() {
    let (rig, _kept) = gated(Mode::Dr, Scheduler::Maglev);
    flood(&rig, 100);
    for flags in [SYN, SYN | ACK, ACK, RST] {
        assert_eq!(rig.push(WAN, &mut from("198.51.100.9:20", flags)), Verdict::Punt(Punt::NoConnection));
    }
}

#[test]
fn clients_that_answer_never_shut_it() {
    let (rig, _kept) = gated(Mode::Nat, Scheduler::Rr);
    for n in 0..500 {
        assert_eq!(rig.push(WAN, &mut from(&stranger(n), SYN)), Verdict::Forward(LAN));
        assert_eq!(rig.push(WAN, &mut from(&stranger(n), ACK)), Verdict::Forward(LAN));
    }
    assert_eq!(rig.connections().len(), 500);
    assert_eq!(flood_of(&rig), crate::admission::Flood::default());
}

#[test]
fn a_client_of_a_persistent_service_goes_to_its_server_without_a_new_template() {
    let (mut rig, _kept) = gated(Mode::Nat, Scheduler::Rr);
    rig.spec.persistence = Some(Persistence { seconds: 300, prefix: 32, expire_quiescent: false });
    rig.publish();
    let mut first = from_client(SYN);
    rig.push(WAN, &mut first);
    rig.push(WAN, &mut from_client(ACK));
    flood(&rig, 200);
    let words = rig.connections().len();
    for port in 1..20 {
        let mut syn = from(&format!("198.51.100.7:{port}"), SYN);
        assert_eq!(rig.push(WAN, &mut syn), Verdict::Forward(LAN));
        assert_eq!(server_of(&syn), server_of(&first));
        let client = format!("198.51.100.7:{port}");
        let from = format!("10.0.0.{}:8080", server_of(&first));
        let mut answer = packet(Protocol::Tcp, LAN_MAC, &from, &client, SYN | ACK);
        assert_eq!(rig.push(LAN, &mut answer), Verdict::Forward(WAN));
    }
    assert_eq!(rig.connections().len(), words);
}

#[test]
fn a_server_of_all_ports_answers_from_those_alone_that_its_service_has() {
    let (mut rig, _kept) = gated(Mode::Nat, Scheduler::Rr);
    rig.spec.address.set_port(0);
    rig.spec.dests.iter_mut().for_each(|dest| dest.address.set_port(0));
    let server = DestSpec::new(DestId::new(9).unwrap(), socket("10.0.0.9:22"));
    let other = ServiceSpec::new(socket("192.0.2.10:22"), Protocol::Tcp, Mode::Nat);
    let other = ServiceSpec { scheduler: Scheduler::Rr, dests: vec![server], ..other };
    rig.generation += 1;
    rig.snapshot = compile(rig.generation, &[rig.spec.clone(), other], []);
    flood(&rig, 200);
    for (port, expected) in [(80, 1), (22, 0)] {
        let answers = |server: &u32| {
            let from = format!("10.0.0.{server}:{port}");
            let answer = &mut packet(Protocol::Tcp, LAN_MAC, &from, CLIENT, SYN | ACK);
            rig.push(LAN, answer) == Verdict::Forward(WAN)
        };
        assert_eq!((1..=3).filter(answers).count(), expected, "{port}");
    }
}

#[test]
fn explaining_says_where_it_would_go() {
    let (rig, _kept) = gated(Mode::Nat, Scheduler::Rr);
    flood(&rig, 200);
    let words = rig.connections().len();
    let explained =
        |port, frame: &[u8]| explain(&rig.snapshot, &rig.engine.table, rig.now, port, frame).unwrap();
    let asked = explained(WAN, &from_client(SYN));
    let server = asked.afterwards.unwrap().dest.index() as u32;
    assert_eq!((asked.verdict, asked.connection), (Verdict::Forward(LAN), None));
    let mut syn = from_client(SYN);
    rig.push(WAN, &mut syn);
    assert_eq!(server_of(&syn), server);
    let answered = explained(LAN, &from_server(server, SYN | ACK));
    assert_eq!(answered.verdict, Verdict::Forward(WAN));
    assert_eq!(rig.connections().len(), words);
}

proptest! {
    /// Whatever is sent: words of handshakes that are half done are no more than twice the rate allows, no established connection moves, and what is
    /// answered comes to the server that the SYN went to.
    #[test]
    fn the_table_stays_below_its_bound(
        scheduler in prop::sample::select(&SCHEDULERS[..]),
        mode in prop::sample::select(&[Mode::Nat, Mode::Dr][..]),
        steps in prop::collection::vec((0_u32..400, prop::sample::select(&[SYN, SYN, SYN, ACK, RST][..]), 0_u64..100), 1..600),
    ) {
        let (mut rig, _kept) = gated(mode, scheduler);
        let start = rig.now.0;
        let mut servers: BTreeMap<u32, u32> = BTreeMap::new();
        for (n, flags, ticks) in steps {
            rig.now.0 += u64::from(ticks == 7);
            let established = |rig: &Rig| {
                let words = rig.connections();
                let of = |(client, dest, state): &(SocketAddrV4, usize, State)| {
                    (*client == socket(&stranger(n)) && *state == State::Established).then_some(*dest as u32)
                };
                words.iter().find_map(of)
            };
            let before = established(&rig);
            let mut frame = from(&stranger(n), flags);
            if rig.push(WAN, &mut frame) != Verdict::Forward(LAN) {
                continue;
            }
            let server = server_of(&frame);
            if let Some(before) = before {
                prop_assert_eq!(before, server);
            }
            if flags == ACK && let Some(&asked) = servers.get(&n) {
                prop_assert_eq!(asked, server, "the server of the SYN");
            }
            match flags {
                SYN => drop(servers.insert(n, server)),
                _ if flags == RST => drop(servers.remove(&n)),
                _ => {}
            }
            let half_done = rig.connections().iter().filter(|(.., state)| state.is_embryonic()).count() as u64;
            let bound = 2 * (u64::from(RATE) + (rig.now.0 - start) * u64::from(RATE) / 4);
            prop_assert!(half_done <= bound, "{} of {}", half_done, bound);
        }
    }
}
