//! A wire that is cut for a minute, while connections come and go on.

use super::*;

/// A minute, in steps of 2 ms.
const MINUTE: u32 = 30_000;
/// Connections come this often, in steps.
const CHURN: u32 = 15;

/// Lets both speak for a minute, while connections come on both sides and half of them end. What comes out of `cut` reaches the
/// other side.
fn a_minute_of_churn(wire: &mut Wire, mut cut: impl FnMut(&mut [VecDeque<Vec<u8>>; 2])) {
    for step in 0..MINUTE {
        let slot = (step / CHURN * 2) as usize;
        for router in 0..2 {
            let slot = slot + router;
            match step % CHURN {
                0 => wire.change(router, slot, slot as u32 % 7, State::Established),
                9 if slot % 4 < 2 => wire.change(router, slot, slot as u32 % 7, State::FinWait),
                _ => {}
            }
        }
        wire.speak();
        cut(&mut wire.under_way);
        wire.deliver_all();
    }
}

fn large() -> Wire {
    let mut wire = Wire::new();
    wire.routers.iter_mut().for_each(|router| router.slots = vec![None; (2 * MINUTE / CHURN) as usize]);
    wire.run(50 * MS);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    wire
}

fn assert_healed(wire: &mut Wire, within: Duration) {
    wire.run(within);
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].known().len(), (2 * MINUTE / CHURN) as usize);
    assert!(wire.routers[0].known() == wire.routers[1].known());
    wire.assert_nothing_was_made_up();
}

#[test]
fn a_wire_that_was_cut_for_a_minute_heals_within_a_second() {
    let mut wire = large();
    a_minute_of_churn(&mut wire, |under_way| under_way.iter_mut().for_each(VecDeque::clear));
    assert_eq!(wire.standings(), [Standing::Away; 2]);
    assert_healed(&mut wire, Duration::from_secs(1));
}

#[test]
fn a_wire_that_was_cut_one_way_for_a_minute_heals() {
    for deaf in 0..2 {
        let mut wire = large();
        a_minute_of_churn(&mut wire, |under_way| under_way[deaf].clear());
        assert_eq!(wire.standings()[deaf], Standing::Away);
        assert_healed(&mut wire, AWAY_AFTER + Duration::from_secs(1));
    }
}

#[test]
fn a_wire_that_loses_half_of_all_for_a_minute_and_turns_the_order_round_stays_a_wire() {
    let mut wire = large();
    let mut random = 1u32;
    a_minute_of_churn(&mut wire, |under_way| {
        for datagrams in under_way {
            datagrams.retain(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                random >> 31 == 0
            });
            datagrams.make_contiguous().reverse();
        }
    });
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert!(wire.peers.iter().all(|peer| peer.counts().lost > 100 && peer.counts().connections_retold > 100));
    assert_healed(&mut wire, Duration::from_secs(2));
}

#[test]
fn a_router_that_starts_anew_behind_a_cut_wire_learns_all_and_tells_all() {
    let mut wire = large();
    let mut step = 0;
    a_minute_of_churn(&mut wire, |under_way| {
        step += 1;
        // Half a minute with the wire, so that the other one knows what would die.
        if step > MINUTE / 2 {
            under_way.iter_mut().for_each(VecDeque::clear);
        }
    });
    let known = wire.routers[1].known();
    wire.restart(0, 4000);
    wire.routers[0].slots = vec![None; known.len().next_multiple_of(4) * 2];
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert!(wire.routers[0].known() == known && wire.routers[1].known() == known);
    wire.assert_nothing_was_made_up();
}

#[test]
fn what_was_not_taken_over_is_told_again_within_one_pass_of_healing() {
    let mut wire = large();
    wire.routers[1].is_deaf = true;
    // Where the walk that heals comes to in half a minute.
    (2000..2040).for_each(|slot| wire.change(0, slot, 1, State::Established));
    wire.run(Duration::from_secs(1));
    assert_eq!((wire.routers[1].known().len(), wire.peers[0].counts().connections_confirmed), (0, 40));
    wire.routers[1].is_deaf = false;
    wire.run(HEAL + Duration::from_secs(1));
    assert!(wire.routers[0].known() == wire.routers[1].known());
}
