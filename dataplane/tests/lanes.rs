//! The short way and the long way are one data path: a million random packets through both.
//!
//! Two engines with equal tables and configurations get the same bursts, one of them without the short way. After
//! each burst every verdict and every byte must be equal, and now and then every counter, gauge and connection.
//! The packets are those of a small town, so that they meet each other's connections in every state: half of them
//! plain, the others damaged in one of many ways. Time passes, also in leaps; servers die and come back.
//!
//! `RVS_SEED=n` replays a failure; the message of one names its seed.

mod town;

use dataplane::clock::Tick;
use dataplane::engine::{BURST, Verdict};
use dataplane::fib::PortIndex;

use self::town::{Random, SERVERS, SERVICES, Side, frame};

const PACKETS: usize = 1_000_000;

#[test]
fn both_ways_do_the_same_to_a_million_packets() {
    let (seed, mut random) = Random::seeded();
    let (mut short, mut long) = (Side::new(true, 400), Side::new(false, 400));
    let mut now = Tick(1 << 20);
    let (mut packets, mut forwarded) = (0, 0);
    while packets < PACKETS {
        if random.one_in(40) {
            now.0 += random.pick(&[1, 1, 1, 4, 40, 400, 5000]);
        }
        if random.one_in(200) {
            let (service, server) = (random.below(SERVICES.len()), random.below(SERVERS as usize));
            short.toggle(service, server);
            long.toggle(service, server);
        }
        let port = PortIndex::from(random.one_in(3));
        let burst: Vec<Vec<u8>> = (0..=random.below(BURST)).map(|_| frame(&mut random, port)).collect();
        packets += burst.len();
        let (mut quick, mut slow) = (burst.clone(), burst.clone());
        let (verdicts, common) = short.process(now, port, &mut quick);
        let (expected, _) = long.process(now, port, &mut slow);
        for index in 0..burst.len() {
            let about =
                || format!("seed {seed}, packet {index} before number {packets}: {:02x?}", burst[index]);
            assert_eq!(verdicts[index], expected[index], "{}", about());
            assert_eq!(quick[index], slow[index], "{}", about());
            forwarded += usize::from(matches!(verdicts[index], Verdict::Forward(_)));
        }
        let first = verdicts[0];
        let all = verdicts[..burst.len()].iter().all(|&verdict| verdict == first);
        // Fragments go alone.
        let is_fragment = |frame: &Vec<u8>| frame.len() > 21 && (frame[20] & 0x3F, frame[21]) != (0, 0);
        let all = all && !burst.iter().any(is_fragment);
        let of_all = if let (Verdict::Forward(port), true) = (first, all) { Some(port) } else { None };
        assert_eq!(common, of_all, "seed {seed}: the port that all packets go out of");
        if random.one_in(20) || packets >= PACKETS {
            assert_eq!(short.state(), long.state(), "seed {seed}, before packet {packets}");
        }
        if random.one_in(50) {
            short.sweep(now);
            long.sweep(now);
        }
    }
    let share = forwarded as f64 / packets as f64;
    assert!((0.25..0.7).contains(&share), "{share} of the packets were forwarded: a test of something else");
}
