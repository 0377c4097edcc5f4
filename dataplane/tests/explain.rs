//! What is explained is what happens: random packets, a million of them, are explained first, then taken through the data path.
//!
//! Verdict, output port, every byte, the server and the connection's state have to be those that were explained, and
//! the explanation must not have changed anything. The traffic is that of `lanes.rs`, with a scheduler of each kind.
//!
//! `RVS_SEED=n` replays a failure; the message of one names its seed.

mod town;

use dataplane::clock::Tick;
use dataplane::counters::{Drop, Punt};
use dataplane::engine::{self, Explanation, Verdict};
use dataplane::fib::PortIndex;
use dataplane::scheduler::Reason;
use dataplane::snapshot::Snapshot;

use self::town::{Random, SERVERS, SERVICES, Side, frame};

const PACKETS: usize = 500_000;

#[test]
fn half_a_million_packets_go_as_explained() {
    let seen = run(Side::new(true, 400));
    assert!(seen.forwarded * 4 > PACKETS, "a test of something else: {seen:?}");
    assert!(seen.begun > 1000 && seen.replaced > 100, "{seen:?}");
    assert!(seen.held > 100 && seen.followed > 10, "{seen:?}");
    assert!(seen.reasons.iter().all(|&times| times > 100), "{seen:?}");
    for drop in [Drop::NoServer, Drop::TooBig, Drop::TtlExpired, Drop::BadFragment] {
        assert!(seen.dropped[drop as usize] > 0, "no {drop}: {seen:?}");
    }
    for punt in [Punt::NoService, Punt::NoConnection, Punt::Unresolved, Punt::ToFragment] {
        assert!(seen.punted[punt as usize] > 0, "no {punt}: {seen:?}");
    }
}

/// The same where connections push each other out, or find no room, and where what concerns no service is routed.
#[test]
fn another_half_a_million_go_as_explained_through_a_crowded_table() {
    let mut side = Side::new(true, 8);
    side.snapshot.routing = true;
    let seen = run(side);
    assert!(
        seen.begun > 1000 && seen.routed > 1000 && seen.dropped[Drop::TableFull as usize] > 0,
        "a test of something else: {seen:?}"
    );
}

fn run(mut side: Side) -> Seen {
    let (seed, mut random) = Random::seeded();
    let mut now = Tick(1 << 20);
    let mut seen = Seen::default();
    for number in 0..PACKETS {
        if random.one_in(1000) {
            now.0 += random.pick(&[1, 1, 1, 4, 40, 400, 5000]);
        }
        if random.one_in(3000) {
            side.toggle(random.below(SERVICES.len()), random.below(SERVERS as usize));
        }
        if random.one_in(2000) {
            side.sweep(now);
        }
        let port = PortIndex::from(random.one_in(3));
        let packet = frame(&mut random, port);
        let about = || format!("seed {seed}, packet {number}: {packet:02x?}");
        let explain = |side: &Side| engine::explain(&side.snapshot, &side.table, now, port, &packet).unwrap();

        let thorough = random.one_in(50);
        let before = thorough.then(|| side.state());
        let explained = explain(&side);
        if thorough {
            assert_eq!(before, Some(side.state()), "explaining has changed something; {}", about());
        }

        let counted = counted(&side.snapshot, &explained);
        let mut frame = packet.clone();
        let (verdicts, _) = side.process(now, port, std::slice::from_mut(&mut frame));
        assert_eq!(explained.verdict, verdicts[0], "{}", about());
        assert_eq!(explained.frame, frame, "{}", about());
        // The server's own counters tell whether it was that one, and whether for a new connection.
        let passes = matches!(
            explained.verdict,
            Verdict::Forward(_) | Verdict::Punt(Punt::Unresolved | Punt::ToFragment)
        );
        let begins = explained.reason.is_some() && passes;
        let expected = counted
            .map(|(packets, connections)| (packets + u64::from(passes), connections + u64::from(begins)));
        if passes {
            assert!(expected.is_some() || side.snapshot.routing, "forwarded to nobody; {}", about());
            assert_eq!(self::counted(&side.snapshot, &explained), expected, "{}", about());
        }
        if thorough {
            // Nobody remembers a datagram that is scheduled on its own.
            let remembered = explained.afterwards.filter(|connection| {
                let dest = side.snapshot.dest(connection.dest).unwrap();
                !side.snapshot.services[dest.service as usize].one_packet
            });
            assert_eq!(explain(&side).connection, remembered, "{}", about());
        }
        seen.add(&explained, begins);
    }
    seen
}

/// Packets and connections that the explained server has had.
fn counted(snapshot: &Snapshot, explained: &Explanation) -> Option<(u64, u64)> {
    let dest = explained.afterwards.map(|connection| connection.dest).or(explained.follows)?;
    let traffic = snapshot.dest(dest)?.traffic[0].get();
    Some((traffic.packets_in + traffic.packets_out, traffic.connections))
}

/// What there was, lest the test be one of nothing.
#[derive(Debug, Default)]
struct Seen {
    forwarded: usize,
    routed: usize,
    punted: [usize; Punt::ALL.len()],
    dropped: [usize; Drop::ALL.len()],
    held: usize,
    /// Fragments that went where the first of their datagram had gone.
    followed: usize,
    begun: usize,
    /// New connections in the place of one of the same flow.
    replaced: usize,
    /// Turns, loads, rows, nobody, templates, scores.
    reasons: [usize; 6],
}

impl Seen {
    fn add(&mut self, explained: &Explanation, begins: bool) {
        match explained.verdict {
            Verdict::Forward(_) => self.forwarded += 1,
            Verdict::Route(_) => self.routed += 1,
            Verdict::Punt(punt) => self.punted[punt as usize] += 1,
            Verdict::Drop(drop) => self.dropped[drop as usize] += 1,
            Verdict::Hold => self.held += 1,
        }
        let goes_on = matches!(explained.verdict, Verdict::Forward(_) | Verdict::Punt(Punt::Unresolved));
        self.followed += usize::from(explained.follows.is_some() && goes_on);
        self.begun += usize::from(begins);
        self.replaced += usize::from(begins && explained.connection.is_some());
        match explained.reason {
            Some(Reason::Turn { .. }) => self.reasons[0] += 1,
            Some(Reason::Load { .. }) => self.reasons[1] += 1,
            Some(Reason::Row { .. }) => self.reasons[2] += 1,
            Some(Reason::Nobody) => self.reasons[3] += 1,
            Some(Reason::Template) => self.reasons[4] += 1,
            Some(Reason::Score { .. }) => self.reasons[5] += 1,
            None => {}
        }
    }
}
