//! How many may be connected over TCP, so that a few cannot keep the others out.
//!
//! Whoever has not shown a token yet is a newcomer. A newcomer has [`PATIENCE`] from its connection to its first request
//! with a token, whatever it does meanwhile, and there are few places for newcomers, of which one address gets a quarter:
//! a machine that opens connections and says nothing (slow loris) keeps itself out. With a token it changes to a place
//! among those who are known, of which there are enough for every `rvs events -f` of a team.
//!
//! A handshake takes the control thread up to a millisecond (a signature of RSA), so they also have a pace. Whoever makes
//! connections as fast as it can does not delay what RVS does besides, and others that connect only by as many turns as
//! there are places: less than a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Newcomers at one time.
pub(super) const NEWCOMERS: usize = 64;

/// ... of one address.
pub(super) const NEWCOMERS_OF_ONE: usize = NEWCOMERS / 4;

/// Connections that have shown a token, at one time.
pub(super) const KNOWN: usize = 256;

/// How long a newcomer may take for the TLS handshake and a request with a token.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// From one handshake to the next, if there are many.
const STEP: Duration = Duration::from_millis(10);

/// What has not been used of that, and can be made up for.
const SAVED: Duration = Duration::from_secs(1);

/// Turns to make a handshake, one after the other.
pub(super) struct Pace(Instant);

impl Pace {
    /// The first turn is at once.
    pub(super) fn new(now: Instant) -> Pace {
        Pace(now)
    }

    /// When it is the turn of whoever has come now.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        let turn = self.0.max(now);
        self.0 = self.0.max(now.checked_sub(SAVED).unwrap_or(now)) + STEP;
        turn
    }
}

/// The places; copies share them.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    newcomers: HashMap<IpAddr, usize>,
    known: usize,
}

/// A connection in its place, which is free again when this is dropped.
pub(super) struct Visitor {
    places: Places,
    address: IpAddr,
    state: Mutex<State>,
    admitted: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Newcomer,
    Known,
}

impl Places {
    /// A place for a newcomer, if there is one.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Visitor> {
        // Through an IPv6 socket an IPv4 address comes in disguise. Of IPv6 addresses a machine has as many as it likes.
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address => address,
        };
        let mut taken = self.taken();
        if taken.newcomers.values().sum::<usize>() >= NEWCOMERS {
            return None;
        }
        let of_address = taken.newcomers.entry(address).or_default();
        if *of_address >= NEWCOMERS_OF_ONE {
            return None;
        }
        *of_address += 1;
        let (state, admitted) = (Mutex::new(State::Newcomer), Notify::new());
        Some(Visitor { places: self.clone(), address, state, admitted })
    }

    /// Nothing that holds the lock can panic.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn leave(&mut self, address: IpAddr) {
        if let Some(count) = self.newcomers.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.newcomers.remove(&address);
            }
        }
    }
}

impl Visitor {
    /// It has shown a token: whether it has a place among those who are known, now or already.
    pub(super) fn is_admitted(&self) -> bool {
        let mut state = self.state();
        if *state == State::Newcomer {
            let mut taken = self.places.taken();
            if taken.known >= KNOWN {
                return false;
            }
            taken.known += 1;
            taken.leave(self.address);
            *state = State::Known;
            self.admitted.notify_one();
        }
        true
    }

    /// Waits until it is admitted; for ever after that.
    pub(super) async fn admission(&self) {
        self.admitted.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let state = *self.state();
        let mut taken = self.places.taken();
        match state {
            State::Newcomer => taken.leave(self.address),
            State::Known => taken.known -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(places: &Places, address: &str, count: usize) -> Vec<Visitor> {
        (0..count).map_while(|_| places.enter(address.parse().unwrap())).collect()
    }

    #[test]
    fn one_machine_does_not_keep_another_out() {
        let places = Places::default();
        let silent = enter(&places, "192.0.2.7", 1_000);
        assert_eq!(silent.len(), NEWCOMERS_OF_ONE);
        // The same machine through an IPv6 socket.
        assert!(places.enter("::ffff:192.0.2.7".parse().unwrap()).is_none());
        assert!(places.enter("192.0.2.8".parse().unwrap()).is_some());
        drop(silent);
        assert_eq!(enter(&places, "192.0.2.7", 1_000).len(), NEWCOMERS_OF_ONE);
        assert!(places.taken().newcomers.is_empty());
    }

    #[test]
    fn a_hundred_a_second_and_a_hundred_at_once() {
        let start = Instant::now() + Duration::from_secs(1_000);
        let mut pace = Pace::new(start - Duration::from_secs(500));
        let turns: Vec<Instant> = (0..300).map(|_| pace.turn(start)).collect();
        assert!(turns.is_sorted());
        let before = |end| turns.iter().filter(|turn| **turn <= start + end).count();
        assert!((99..=101).contains(&before(Duration::ZERO)), "{}", before(Duration::ZERO));
        assert!((199..=201).contains(&before(SAVED)), "{}", before(SAVED));
        // Who comes a while later need not wait.
        let later = start + SAVED * 3;
        assert_eq!(pace.turn(later), later);
    }

    #[test]
    fn a_network_of_ipv6_is_one_machine() {
        let places = Places::default();
        let all: Vec<Visitor> =
            (0..100).filter_map(|n| places.enter(format!("2001:db8::{n}").parse().unwrap())).collect();
        assert_eq!(all.len(), NEWCOMERS_OF_ONE);
        assert!(places.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[test]
    fn all_newcomers_together_have_a_bound() {
        let places = Places::default();
        let all: Vec<Visitor> = (0..100).flat_map(|n| enter(&places, &format!("192.0.2.{n}"), 1)).collect();
        assert_eq!(all.len(), NEWCOMERS);
    }

    #[test]
    fn whoever_is_known_makes_room_for_newcomers_and_is_bounded_too() {
        let places = Places::default();
        let mut known = Vec::new();
        for _ in 0..KNOWN {
            let visitor = places.enter("192.0.2.7".parse().unwrap()).unwrap();
            assert!(visitor.is_admitted() && visitor.is_admitted());
            known.push(visitor);
        }
        let late = places.enter("192.0.2.7".parse().unwrap()).unwrap();
        assert!(!late.is_admitted());
        known.pop();
        assert!(late.is_admitted());
        drop((known, late));
        let taken = places.taken();
        assert_eq!((taken.known, taken.newcomers.len()), (0, 0));
    }
}
