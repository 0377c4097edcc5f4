//! Datagrams on their way: which have come, which are lost, and how many may be out at once.
//!
//! As QUIC does it (RFC 9002): numbers are never used again; a datagram is lost when three later ones have come, or when
//! nothing has for a while. What it carried is then sent anew, as it is by then.

use std::collections::BTreeMap;
use std::time::Duration;

/// Later datagrams that must have come for one to be lost.
const REORDERED: u64 = 3;

/// Datagrams that may be out at first, at least, and at most. All of them fit into a socket's buffer.
const FIRST_WINDOW: usize = 32;
const LEAST_WINDOW: usize = 4;
const GREATEST_WINDOW: usize = 256;

/// How long nothing must have come before what is out counts as lost: several times what a peer waits before it
/// acknowledges.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(40);
const LONGEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Datagrams on their way, each with what it carries.
#[derive(Debug)]
pub struct Flight<T> {
    out: BTreeMap<u64, Sent<T>>,
    window: usize,
    /// The window is made smaller once for all that was out by then.
    cut_until: u64,
    timeout: Duration,
    /// How long a datagram and its acknowledgement take.
    round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Sent<T> {
    at: Duration,
    cargo: T,
}

/// What an acknowledgement says of datagrams that were out.
#[derive(Debug, PartialEq, Eq)]
pub struct Landed<T> {
    /// What has come.
    pub come: Vec<T>,
    /// What has not, and will not.
    pub lost: Vec<T>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Flight {
            out: BTreeMap::new(),
            window: FIRST_WINDOW,
            cut_until: 0,
            timeout: 4 * SHORTEST_TIMEOUT,
            round_trip: None,
        }
    }
}

impl<T> Flight<T> {
    /// Whether another one may go out.
    pub fn has_room(&self) -> bool {
        self.out.len() < self.window
    }

    /// What is on its way, the oldest first.
    pub fn cargo(&self) -> impl Iterator<Item = &T> {
        self.out.values().map(|sent| &sent.cargo)
    }

    /// Since when the oldest is out.
    fn oldest(&self) -> Option<Duration> {
        self.out.first_key_value().map(|(_, sent)| sent.at)
    }

    /// One goes out. Numbers rise.
    pub fn depart(&mut self, number: u64, at: Duration, cargo: T) {
        self.out.insert(number, Sent { at, cargo });
    }

    /// The peer says which have come: the largest, and which of the 128 before it.
    pub fn acknowledge(&mut self, now: Duration, largest: u64, before: u128) -> Landed<T> {
        let mut landed = Landed { come: Vec::new(), lost: Vec::new() };
        if let Some(sent) = self.out.get(&largest) {
            self.measure(now.saturating_sub(sent.at));
        }
        let mut cut = None;
        let known: Vec<u64> = self.out.range(..=largest).map(|(&number, _)| number).collect();
        for number in known {
            let back = largest - number;
            let has_come = back == 0 || back <= 128 && before >> (back - 1) & 1 == 1;
            if !has_come && back < REORDERED {
                continue;
            }
            let Some(sent) = self.out.remove(&number) else { continue };
            if has_come {
                self.window = (self.window + 1).min(GREATEST_WINDOW);
                landed.come.push(sent.cargo);
            } else {
                cut = Some(number);
                landed.lost.push(sent.cargo);
            }
        }
        if let Some(number) = cut {
            self.cut(number);
        }
        landed
    }

    /// What has been out for too long is lost.
    pub fn time_out(&mut self, now: Duration) -> Vec<T> {
        let Some(oldest) = self.oldest() else { return Vec::new() };
        if now < oldest + self.timeout {
            return Vec::new();
        }
        self.timeout = (self.timeout * 2).min(LONGEST_TIMEOUT);
        if let Some((&number, _)) = self.out.last_key_value() {
            self.cut(number);
        }
        std::mem::take(&mut self.out).into_values().map(|sent| sent.cargo).collect()
    }

    fn cut(&mut self, number: u64) {
        if number >= self.cut_until {
            self.window = (self.window / 2).max(LEAST_WINDOW);
            self.cut_until = self.out.last_key_value().map_or(number, |(&last, _)| last.max(number)) + 1;
        }
    }

    fn measure(&mut self, sample: Duration) {
        let smooth = self.round_trip.map_or(sample, |before| (before * 7 + sample) / 8);
        self.round_trip = Some(smooth);
        self.timeout = (smooth * 4).clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn flight(numbers: std::ops::Range<u64>) -> Flight<u64> {
        let mut flight = Flight::default();
        numbers.for_each(|number| flight.depart(number, MS, number));
        flight
    }

    #[test]
    fn three_later_ones_make_a_datagram_lost() {
        let mut flight = flight(0..10);
        let landed = flight.acknowledge(2 * MS, 3, 0b011);
        assert_eq!(landed, Landed { come: vec![1, 2, 3], lost: vec![0] });
        let landed = flight.acknowledge(2 * MS, 5, 0b0110);
        assert_eq!(landed, Landed { come: vec![5], lost: vec![] }, "4 may still come");
        assert_eq!(flight.out.len(), 5);
    }

    #[test]
    fn after_long_silence_all_are_lost_and_the_next_silence_may_be_longer() {
        let mut flight = flight(0..3);
        assert!(flight.time_out(100 * MS).is_empty());
        assert_eq!(flight.time_out(161 * MS), [0, 1, 2]);
        flight.depart(3, 200 * MS, 3);
        assert!(flight.time_out(500 * MS).is_empty());
        assert_eq!(flight.time_out(520 * MS), [3]);
    }

    #[test]
    fn the_window_grows_with_what_comes_and_halves_once_for_what_was_out() {
        let mut flight = flight(0..32);
        assert!(!flight.has_room());
        flight.acknowledge(2 * MS, 31, u128::MAX);
        (32..96).for_each(|number| flight.depart(number, 3 * MS, number));
        assert!(!flight.has_room(), "64 by now");
        flight.acknowledge(4 * MS, 60, 0);
        flight.acknowledge(4 * MS, 70, 0);
        assert_eq!(flight.window, 64 / 2 + 1, "two have come, one loss");
    }
}
