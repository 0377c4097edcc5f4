//! A service in which only connections at risk have a word.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::fragments::{Poller, large, numbered, split};
use super::related::{error, hop, message};
use super::*;
use crate::engine::{explain, tunnel_errors};
use crate::scheduler::{FLOW_KEY, NextRoster, RosterMember, RosterSpec, Rosters};

const SCHEDULERS: [Scheduler; 2] = [Scheduler::Maglev, Scheduler::Rendezvous];
/// Servers that there may be.
const MOST: u32 = 9;
/// The router's own address, where tunnels begin.
const OWN: &str = "10.0.0.254";
/// How long a connection may be silent.
const SILENCE: u64 = 900;

/// A router, and what control knows of its service.
struct World {
    rig: Rig,
    scheduler: Scheduler,
    servers: BTreeMap<u32, Server>,
    current: Vec<(u32, u32)>,
    /// What comes after it, and when.
    next: Option<(Vec<(u32, u32)>, Tick)>,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    /// What it has when nothing is the matter with it.
    meant: u32,
    weight: u32,
    up: bool,
}

impl World {
    fn new(scheduler: Scheduler, servers: u32) -> Self {
        World::by(Mode::Dr, scheduler, servers)
    }

    fn by(mode: Mode, scheduler: Scheduler, servers: u32) -> Self {
        let mut rig = Rig::new(Protocol::Tcp, mode, &[]);
        rig.spec.tunnel.source = Some(OWN.parse().unwrap());
        rig.engine =
            Engine::new(0, Arc::new(Table::new(8192, HashKey { blind: 1, factor: 3 })), Arc::default());
        let servers = (1..=servers).map(|n| (n, Server { meant: 1, weight: 1, up: true })).collect();
        let mut world = World { rig, scheduler, servers, current: Vec::new(), next: None };
        world.current = world.wanted();
        world.publish();
        world
    }

    fn wanted(&self) -> Vec<(u32, u32)> {
        self.servers.iter().map(|(&n, server)| (n, server.meant)).collect()
    }

    /// What control does after each change, and when the time of a roster has come.
    fn publish(&mut self) {
        let (wanted, now) = (self.wanted(), self.rig.now);
        self.next = match self.next.take() {
            _ if wanted == self.current => None,
            Some((next, until)) if next == wanted && until <= now => {
                self.current = next;
                None
            }
            Some((next, until)) if next == wanted => Some((next, until)),
            _ => Some((wanted, Tick(now.0 + (SILENCE + 1) * 4))),
        };
        let spec = |members: &[(u32, u32)]| RosterSpec {
            scheduler: self.scheduler,
            key: FLOW_KEY,
            members: members
                .iter()
                .map(|&(n, weight)| RosterMember {
                    address: address(n),
                    weight,
                    dest: self.servers.contains_key(&n).then(|| id(n)),
                })
                .collect(),
        };
        let next = self.next.as_ref().map_or(NextRoster::Same, |(next, _)| NextRoster::Other(spec(next)));
        self.rig.spec.rosters = Some(Rosters { current: spec(&self.current), next });
        self.rig.spec.scheduler = self.scheduler;
        let known: HashMap<DestId, DestSpec> =
            self.rig.spec.dests.drain(..).map(|dest| (dest.id, dest)).collect();
        let dest = |(&n, server): (&u32, &Server)| DestSpec {
            weight: server.weight,
            last_weight: server.meant,
            up: server.up,
            ..known.get(&id(n)).cloned().unwrap_or_else(|| DestSpec::new(id(n), address(n)))
        };
        self.rig.spec.dests = self.servers.iter().map(dest).collect();
        self.rig.generation += 1;
        let gone = (1..=MOST).filter(|n| !self.servers.contains_key(n)).map(|n| (id(n), Removed::default()));
        self.rig.snapshot = compile(self.rig.generation, std::slice::from_ref(&self.rig.spec), gone);
    }

    fn change(&mut self, n: u32, change: impl FnOnce(&mut Server)) {
        if let Some(server) = self.servers.get_mut(&n) {
            change(server);
        }
        self.publish();
    }

    fn wait(&mut self, seconds: u64) {
        self.rig.wait(seconds);
        self.publish();
        self.rig.engine.sweep(&self.rig.snapshot, self.rig.now, 0..self.rig.engine.table.buckets());
    }

    /// The server that a client's packet goes to.
    fn goes_to(&self, client: u32, flags: u8) -> Option<u32> {
        let mut frame = packet(Protocol::Tcp, WAN_MAC, &name(client), VIP, flags);
        (self.rig.push(WAN, &mut frame) == Verdict::Forward(LAN)).then(|| frame[5].into())
    }

    /// The server of a connection that begins.
    fn begin(&self, client: u32) -> Option<u32> {
        let server = self.goes_to(client, SYN)?;
        assert_eq!(self.goes_to(client, ACK), Some(server), "the end of {client}'s handshake");
        Some(server)
    }

    fn kept(&self) -> usize {
        self.rig.connections().len()
    }
}

fn id(n: u32) -> DestId {
    DestId::new(n).unwrap()
}

fn address(n: u32) -> std::net::SocketAddr {
    socket(&format!("10.0.0.{n}:80")).into()
}

fn name(client: u32) -> String {
    format!("198.51.{}.{}:{}", 100 + client % 100, 1 + client % 199, 1024 + client % 50_000)
}

#[test]
fn what_is_kept_is_the_share_of_who_is_out_of_service() {
    const FLOWS: u32 = 2000;
    for scheduler in SCHEDULERS {
        let mut world = World::new(scheduler, MOST);
        let before: Vec<Option<u32>> = (0..FLOWS).map(|client| world.begin(client)).collect();
        assert_eq!(world.kept(), 0, "{scheduler}: all servers are there");
        let third = before.iter().filter(|server| **server == Some(3)).count();
        world.change(3, |server| server.up = false);
        let others: Vec<Option<u32>> = (FLOWS..2 * FLOWS).map(|client| world.begin(client)).collect();
        assert!(others.iter().all(|server| server.is_some_and(|server| server != 3)));
        let share = world.kept() * MOST as usize * 100 / FLOWS as usize;
        // Of Maglev's rows some of the others change hands, too.
        let most = if scheduler == Scheduler::Rendezvous { 115 } else { 130 };
        assert!((85..most).contains(&share), "{scheduler}: {share} % of a ninth");

        let now = |world: &World| (0..FLOWS).map(|client| world.goes_to(client, ACK)).collect::<Vec<_>>();
        assert_eq!(now(&world), before, "{scheduler}: whoever was there goes on, {third} with the third");
        world.change(3, |server| server.up = true);
        assert_eq!(now(&world), before);
        let after: Vec<_> = (FLOWS..2 * FLOWS).map(|client| world.goes_to(client, ACK)).collect();
        assert_eq!(after, others, "{scheduler}: and those that began meanwhile");
    }
}

#[test]
fn a_service_that_comes_to_keep_all_has_them_all_by_then() {
    let mut world = World::new(Scheduler::Maglev, 4);
    let before: Vec<Option<u32>> = (0..200).map(|client| world.begin(client)).collect();
    let rosters = world.rig.spec.rosters.as_mut().unwrap();
    rosters.next = NextRoster::Nothing;
    world.rig.publish();
    assert_eq!((0..200).map(|client| world.goes_to(client, ACK)).collect::<Vec<_>>(), before);
    assert_eq!(world.kept(), 200);
    world.rig.spec.rosters = None;
    world.rig.spec.dests.iter_mut().for_each(|dest| dest.weight = 0);
    world.rig.publish();
    assert_eq!((0..200).map(|client| world.goes_to(client, ACK)).collect::<Vec<_>>(), before);
    assert_eq!(world.goes_to(200, ACK), None);
}

#[test]
fn who_says_little_is_kept_as_long_as_who_says_much() {
    let mut world = World::new(Scheduler::Rendezvous, 3);
    let flows: Vec<u32> = (0..60).filter(|&client| world.begin(client) == Some(2)).collect();
    // Nobody knew that it would come.
    world.servers.insert(4, Server { meant: 9, weight: 9, up: true });
    world.publish();
    // A probe each 500 seconds, across the end of the old roster.
    for _ in 0..6 {
        world.wait(500);
        assert!(flows.iter().all(|&client| world.goes_to(client, ACK) == Some(2)));
    }
    assert!(world.next.is_none() && world.kept() > 0);
}

#[test]
fn a_made_up_packet_leaves_what_makes_room() {
    let mut world = World::new(Scheduler::Rendezvous, 3);
    world.change(2, |server| server.up = false);
    (0..300).for_each(|client| assert!(world.goes_to(client, ACK).is_some()));
    let states: BTreeSet<State> = world.rig.connections().iter().map(|connection| connection.2).collect();
    assert_eq!(states, BTreeSet::from([State::None]));
    assert!((70..130).contains(&world.kept()), "a third: {}", world.kept());
    let traffic = world.rig.engine.counters.traffic.connections.get();
    assert_eq!(traffic, 0, "nothing has begun");
    let before = world.kept();
    (300..600).for_each(|client| assert!(world.goes_to(client, RST).is_some()));
    assert_eq!(world.kept(), before);
}

#[test]
fn without_room_it_goes_on_without_a_word() {
    let mut world = World::new(Scheduler::Rendezvous, 2);
    world.rig.engine =
        Engine::new(0, Arc::new(Table::new(16, HashKey { blind: 1, factor: 3 })), Arc::default());
    let before: Vec<Option<u32>> = (0..200).map(|client| world.begin(client)).collect();
    world.change(1, |server| server.weight = 0);
    for round in 0..3 {
        let now: Vec<Option<u32>> = (0..200).map(|client| world.goes_to(client, ACK)).collect();
        assert_eq!(now, before, "{round}");
    }
    assert!((8..60).contains(&world.kept()), "{}", world.kept());
}

#[test]
fn who_may_begin_nothing_is_let_through_with_nothing() {
    let mut world = World::new(Scheduler::Maglev, 3);
    let server = world.begin(1);
    world.rig.spec.live = false;
    world.publish();
    assert_eq!(
        (world.goes_to(1, ACK), world.goes_to(2, SYN)),
        (server, None),
        "ARP moves before control hears of it"
    );
    world.rig.spec.live = true;
    world.rig.spec.sources = Some(Arc::new(Sources::new(None, &[([198, 51, 101, 0].into(), 24)])));
    world.publish();
    assert_eq!((world.goes_to(1, ACK), world.goes_to(2, ACK).is_some()), (None, true));
    let mut martian = packet(Protocol::Tcp, WAN_MAC, "127.0.0.1:1024", VIP, ACK);
    assert_eq!(world.rig.push(WAN, &mut martian), Verdict::Drop(Drop::Martian));
    let none = World::new(Scheduler::Maglev, 0);
    let mut late = from_client(ACK);
    assert_eq!(none.rig.push(WAN, &mut late), Verdict::Punt(Punt::NoConnection));
    assert_eq!(none.goes_to(1, SYN), None);
}

#[test]
fn errors_about_replies_go_where_the_connection_goes() {
    let mut world = World::new(Scheduler::Rendezvous, MOST);
    let before: Vec<Option<u32>> = (0..50).map(|client| world.begin(client)).collect();
    world.change(5, |server| server.weight = 0);
    for (client, server) in (0..).zip(before) {
        let reply = packet(Protocol::Tcp, LAN_MAC, VIP, &name(client), ACK);
        let mut told = error(WAN_MAC, "203.0.113.1:0", VIP, 3, &hop(&reply));
        assert_eq!(world.rig.push(WAN, &mut told), Verdict::Forward(LAN));
        assert_eq!(Some(u32::from(told[5])), server);
        message(&told, "203.0.113.1:0", VIP);
    }
    assert_eq!(world.kept(), 0, "an error is no connection");
}

#[test]
fn fragments_go_where_the_first_of_them_goes() {
    for mode in [Mode::Dr, Mode::Tunnel] {
        let mut world = World::by(mode, Scheduler::Rendezvous, 3);
        let before: Vec<Option<u32>> = (0..40).map(|client| world.begin(client)).collect();
        world.change(2, |server| server.up = false);
        for (client, server) in (0..).zip(before) {
            let whole = packet(Protocol::Tcp, WAN_MAC, &name(client), VIP, ACK);
            let mut fragments = split(&numbered(&large(&whole, 700), client as u16), 256);
            // The first comes last, every other time.
            if client % 2 == 1 {
                fragments.reverse();
            }
            let mut poller = Poller::new(&world.rig);
            poller.push_all(WAN, &fragments);
            let went: Vec<_> =
                poller.out.iter().map(|(verdict, frame)| (*verdict, u32::from(frame[5]))).collect();
            assert_eq!(
                went,
                vec![(Verdict::Forward(LAN), server.unwrap()); fragments.len()],
                "{mode:?} {client}"
            );
        }
        assert!((5..25).contains(&world.kept()), "those of the second alone: {}", world.kept());
    }
}

#[test]
fn by_a_tunnel_nobody_moves_and_clients_hear_of_its_mtu() {
    for scheduler in SCHEDULERS {
        let mut world = World::by(Mode::Tunnel, scheduler, MOST);
        let before: Vec<Option<u32>> = (0..50).map(|client| world.begin(client)).collect();
        assert_eq!(world.kept(), 0);
        world.change(4, |server| server.up = false);
        assert!(before.contains(&Some(4)));
        let (engine, snapshot, now) = (&world.rig.engine, &world.rig.snapshot, world.rig.now);
        for (client, server) in (0..).zip(before) {
            let mut outer = packet(Protocol::Tcp, WAN_MAC, &name(client), VIP, ACK);
            assert_eq!(world.rig.push(WAN, &mut outer), Verdict::Forward(LAN));
            assert_eq!(Some(u32::from(outer[5])), server);
            // Fragmentation needed, MTU 1400, of which the header around takes 20.
            let mut told = error(LAN_MAC, "10.0.0.253:0", &format!("{OWN}:0"), 3, &outer[14..]);
            assert_eq!(world.rig.push(LAN, &mut told), Verdict::Punt(Punt::TunnelError), "{client}");
            let message = tunnel_errors::error(&engine.table, snapshot, now, &told[14..]).unwrap();
            assert_eq!((&message[16..20], &message[26..28]), (&outer[46..50], &1380_u16.to_be_bytes()[..]));
        }
    }
}

#[test]
fn explained_as_it_is_done() {
    let mut world = World::new(Scheduler::Rendezvous, 3);
    world.change(2, |server| server.up = false);
    let (mut kept, mut not) = (0, 0);
    for client in 0..60 {
        for flags in [SYN, ACK] {
            let frame = packet(Protocol::Tcp, WAN_MAC, &name(client), VIP, flags);
            let told =
                explain(&world.rig.snapshot, &world.rig.engine.table, world.rig.now, WAN, &frame).unwrap();
            let words = world.kept();
            let server = world.goes_to(client, flags);
            let told_server = told.afterwards.map(|connection| connection.dest.index() as u32);
            assert_eq!((told_server, told.reason.is_some()), (server, flags == SYN), "{client}");
            let has_word = told.connection.is_some() || world.kept() > words;
            assert_eq!(told.is_kept, has_word);
            *(if has_word { &mut kept } else { &mut not }) += 1;
        }
    }
    assert!(kept > 20 && not > 20);
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    GoOn(Index),
    Up(u32, bool),
    Weight(u32, u32),
    Add(u32),
    Remove(u32),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let server = 1..=MOST;
    prop_oneof![
        8 => Just(Step::Begin),
        12 => any::<Index>().prop_map(Step::GoOn),
        2 => (server.clone(), any::<bool>()).prop_map(|(n, up)| Step::Up(n, up)),
        2 => (server.clone(), 0..4u32).prop_map(|(n, weight)| Step::Weight(n, weight)),
        1 => server.clone().prop_map(Step::Add),
        1 => server.prop_map(Step::Remove),
        3 => (1..700u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever becomes of servers, in whatever order: who is established stays with his server as long as that is there and he is not
    /// silent for too long; and when nothing has changed for a while, nothing is kept of who begins.
    #[test]
    fn nobody_who_is_established_moves(
        rendezvous in any::<bool>(),
        servers in 1..=6u32,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(SCHEDULERS[usize::from(rendezvous)], servers);
        let mut clients = 0;
        let mut flows: Vec<(u32, u32, Tick)> = Vec::new();
        for step in steps {
            match step {
                Step::Begin => {
                    clients += 1;
                    let takes = world.servers.values().any(|server| server.up && server.weight > 0);
                    let server = world.begin(clients);
                    prop_assert_eq!(server.is_some(), takes);
                    flows.extend(server.map(|server| (clients, server, world.rig.now)));
                }
                Step::GoOn(index) if !flows.is_empty() => {
                    let place = index.index(flows.len());
                    let (client, server, seen) = &mut flows[place];
                    prop_assert_eq!(world.goes_to(*client, ACK), Some(*server), "client {}", client);
                    *seen = world.rig.now;
                }
                Step::GoOn(_) => {}
                Step::Up(n, up) => world.change(n, |server| server.up = up),
                Step::Weight(n, weight) => world.change(n, |server| {
                    server.weight = weight;
                    if weight > 0 {
                        server.meant = weight;
                    }
                }),
                Step::Add(n) => {
                    world.servers.entry(n).or_insert(Server { meant: 1, weight: 1, up: true });
                    world.publish();
                }
                Step::Remove(n) => {
                    world.servers.remove(&n);
                    world.wait(0);
                    flows.retain(|(_, server, _)| *server != n);
                }
                Step::Wait(seconds) => {
                    world.wait(seconds);
                    let now = world.rig.now;
                    flows.retain(|(_, _, seen)| now.0 - seen.0 < (SILENCE - 1) * 4);
                }
            }
        }
        for server in world.servers.values_mut() {
            (server.up, server.weight) = (true, server.meant);
        }
        for _ in 0..3 {
            world.wait(SILENCE + 10);
        }
        prop_assert_eq!(world.kept(), 0);
        (clients + 1..clients + 20).for_each(|client| assert_eq!(world.begin(client).is_some(), !world.servers.is_empty()));
        prop_assert_eq!(world.kept(), 0);
    }
}
