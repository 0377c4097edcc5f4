//! Somebody on the wire who does not know the key.

use super::*;

/// Two routers that are together, and have said this and that.
fn together() -> Wire {
    let mut wire = Wire::new();
    for slot in 0..64 {
        wire.change(slot % 2, slot, slot as u32 % 5, State::Established);
    }
    wire.run(100 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    wire
}

/// What is done to a datagram.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        bits: Vec<usize>,
    },
    Cut {
        at: usize,
    },
    Add {
        bytes: Vec<u8>,
    },
    /// The beginning of one, the end of another.
    Graft {
        other: usize,
        at: usize,
    },
    /// Something else, with a beginning that is right.
    Replace {
        kind: u8,
        bytes: Vec<u8>,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..1600);
    prop_oneof![
        4 => prop::collection::vec(any::<usize>(), 1..9).prop_map(|bits| Damage::Flip { bits }),
        1 => any::<usize>().prop_map(|at| Damage::Cut { at }),
        1 => bytes().prop_map(|bytes| Damage::Add { bytes }),
        2 => any::<(usize, usize)>().prop_map(|(other, at)| Damage::Graft { other, at }),
        2 => (0..5u8, bytes()).prop_map(|(kind, bytes)| Damage::Replace { kind, bytes }),
    ]
}

impl Damage {
    fn to(&self, datagram: &[u8], all: &[Vec<u8>]) -> Vec<u8> {
        let mut damaged = datagram.to_vec();
        match self {
            Damage::Flip { bits } => {
                for bit in bits {
                    let bit = bit % (8 * datagram.len());
                    damaged[bit / 8] ^= 1 << (bit % 8);
                }
            }
            Damage::Cut { at } => damaged.truncate(at % datagram.len()),
            Damage::Add { bytes } => damaged.extend(bytes),
            Damage::Graft { other, at } => {
                let other = &all[other % all.len()];
                let at = at % datagram.len().min(other.len());
                damaged.truncate(at);
                damaged.extend(&other[at..]);
            }
            Damage::Replace { kind, bytes } => {
                damaged = [&[*kind, session::VERSION], bytes.as_slice()].concat();
            }
        }
        damaged
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_was_damaged_is_believed_or_does_harm(
        damages in prop::collection::vec((0..2usize, any::<usize>(), damage()), 1..100),
    ) {
        let mut wire = together();
        // On its way when it is damaged, so that it would be new.
        (0..8).for_each(|slot| wire.change(slot % 2, slot, slot as u32 % 5, State::FinWait));
        wire.speak();
        let tellings = [0, 1].map(|router: usize| wire.routers[router].tellings);
        for (to, which, damage) in damages {
            // Half of all is what has not come yet.
            let newest = wire.under_way[to].iter().next_back().unwrap();
            let recorded = &wire.recorded[to];
            let datagram = if which.is_multiple_of(2) { newest } else { &recorded[which % recorded.len()] };
            let damaged = damage.to(datagram, recorded);
            if !recorded.contains(&damaged) {
                wire.deliver(to, &damaged);
            }
        }
        prop_assert_eq!([0, 1].map(|router: usize| wire.routers[router].tellings), tellings, "believed");
        wire.run(Duration::from_secs(1));
        prop_assert_eq!(wire.standings(), [Standing::Together; 2]);
        prop_assert_eq!(wire.routers[0].known(), wire.routers[1].known());
        wire.assert_nothing_was_made_up();
    }
}

#[test]
fn forged_calls_are_refused_before_noise_and_calls_that_were_recorded_are_answered_at_a_steady_rate() {
    let mut wire = together();
    let call = wire.recorded[1][0].clone();
    assert_eq!(call[0], 1, "a call");
    let before = wire.peers[1].counts();
    let mut forged = call.clone();
    forged[20] ^= 1;
    (0..1000).for_each(|_| wire.deliver(1, &forged));
    let counts = wire.peers[1].counts();
    assert_eq!((counts.forged, counts.hasty), (before.forged + 1000, 0), "not one of them has taken a turn");

    let answers = |wire: &mut Wire| {
        let sent = std::iter::from_fn(|| wire.peers[1].send(wire.now, &wire.routers[1]).unwrap());
        sent.filter(|datagram| datagram[0] == 2).count()
    };
    (0..1000).for_each(|_| wire.deliver(1, &call));
    assert_eq!(answers(&mut wire), CALLS_AT_ONCE as usize);
    wire.now += 10 * ANSWER_EVERY;
    (0..1000).for_each(|_| wire.deliver(1, &call));
    assert_eq!(answers(&mut wire), 10);
    assert_eq!(wire.peers[1].counts().hasty, 2000 - u64::from(CALLS_AT_ONCE) - 10);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.standings(), [Standing::Together; 2], "and the conversation goes on");
}
