//! Datagrams on their way: which have come, which are lost, and how many may be out at once.
//!
//! As QUIC does it (RFC 9002): numbers are never used again; a datagram is lost when three later ones have come, or one
//! that was sent much later, or when nothing has come for a while. What it carried is then sent anew, as it is by then.
//!
//! An acknowledgement may wait for something to go with, unless the datagram *asks* for it. So only the answers to those
//! that ask tell how long the way is, and with others there is more patience.

use std::collections::BTreeMap;
use std::time::Duration;

/// Later datagrams that must have come for one to be lost.
const REORDERED: u64 = 3;

/// Datagrams that may be out at first, at least, and at most. All of them fit into a socket's buffer.
const FIRST_WINDOW: usize = 32;
const LEAST_WINDOW: usize = 4;
const GREATEST_WINDOW: usize = 256;

/// How long nothing must have come before a datagram that asks counts as lost, and all with it: several times the way there and
/// back.
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
    /// How long an acknowledgement may wait that nobody asks for.
    patience: Duration,
}

#[derive(Debug)]
struct Sent<T> {
    at: Duration,
    /// For an acknowledgement at once.
    asks: bool,
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

impl<T> Flight<T> {
    /// None yet. Who is not asked acknowledges after so long at the latest.
    pub fn new(patience: Duration) -> Flight<T> {
        Flight {
            out: BTreeMap::new(),
            window: FIRST_WINDOW,
            cut_until: 0,
            timeout: 4 * SHORTEST_TIMEOUT,
            round_trip: None,
            patience,
        }
    }

    /// Whether another one may go out.
    pub fn has_room(&self) -> bool {
        self.out.len() < self.window
    }

    /// Whether no other one may go out before something has come if one does now.
    pub fn is_nearly_full(&self) -> bool {
        self.out.len() + 1 >= self.window
    }

    /// What is on its way, the oldest first.
    pub fn cargo(&self) -> impl Iterator<Item = &T> {
        self.out.values().map(|sent| &sent.cargo)
    }

    /// Since when the oldest is out.
    fn oldest(&self) -> Option<Duration> {
        self.out.first_key_value().map(|(_, sent)| sent.at)
    }

    /// One goes out, which may ask for an acknowledgement at once. Numbers rise.
    pub fn depart(&mut self, number: u64, at: Duration, asks: bool, cargo: T) {
        self.out.insert(number, Sent { at, asks, cargo });
    }

    /// The peer says which have come: the largest, and which of the 128 before it.
    pub fn acknowledge(&mut self, now: Duration, largest: u64, before: u128) -> Landed<T> {
        let mut landed = Landed { come: Vec::new(), lost: Vec::new() };
        let (mut cut, mut asked) = (None, None);
        let known: Vec<u64> = self.out.range(..=largest).map(|(&number, _)| number).collect();
        for number in known {
            let has_come = has_come(number, largest, before);
            let is_lost = |sent: &Sent<T>| largest - number >= REORDERED || now >= sent.at + self.timeout;
            if !has_come && !self.out.get(&number).is_some_and(is_lost) {
                continue;
            }
            let Some(sent) = self.out.remove(&number) else { continue };
            if has_come {
                self.window = (self.window + 1).min(GREATEST_WINDOW);
                asked = sent.asks.then_some(sent.at).or(asked);
                landed.come.push(sent.cargo);
            } else {
                cut = Some(number);
                landed.lost.push(sent.cargo);
            }
        }
        if let Some(number) = cut {
            self.cut(number);
        }
        // Of several the last one is what was answered at once.
        if let Some(at) = asked {
            self.measure(now.saturating_sub(at));
        }
        landed
    }

    /// What has been out for too long is lost.
    pub fn time_out(&mut self, now: Duration) -> Vec<T> {
        let Some(oldest) = self.oldest() else { return Vec::new() };
        let asked = self.out.values().find(|sent| sent.asks).map_or(Duration::MAX, |sent| sent.at);
        if now < asked.min(oldest + self.patience).saturating_add(self.timeout) {
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

/// Whether an acknowledgement says that a number has come.
fn has_come(number: u64, largest: u64, before: u128) -> bool {
    let back = largest - number;
    back == 0 || back <= 128 && before >> (back - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn flight(numbers: std::ops::Range<u64>) -> Flight<u64> {
        let mut flight = Flight::new(250 * MS);
        numbers.for_each(|number| flight.depart(number, MS, false, number));
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
    fn a_later_one_that_was_sent_long_after_makes_a_datagram_lost() {
        let mut flight = flight(0..1);
        flight.depart(1, 150 * MS, false, 1);
        assert!(flight.acknowledge(151 * MS, 1, 0).lost.is_empty(), "it may be on its way still");
        flight.depart(2, 200 * MS, false, 2);
        assert_eq!(flight.acknowledge(201 * MS, 2, 0b01), Landed { come: vec![2], lost: vec![0] });
    }

    #[test]
    fn after_long_silence_all_are_lost_and_the_next_silence_may_be_longer() {
        let mut flight = flight(0..3);
        assert!(flight.time_out(410 * MS).is_empty());
        assert_eq!(flight.time_out(411 * MS), [0, 1, 2], "250 until it is acknowledged, and 160");
        flight.depart(3, 500 * MS, false, 3);
        assert!(flight.time_out(1069 * MS).is_empty());
        assert_eq!(flight.time_out(1070 * MS), [3]);
    }

    #[test]
    fn who_asks_waits_no_longer_than_the_way_takes() {
        let mut flight = flight(0..1);
        flight.depart(1, 10 * MS, true, 1);
        assert!(flight.time_out(169 * MS).is_empty());
        assert_eq!(flight.time_out(170 * MS), [0, 1]);
        flight.depart(2, 200 * MS, true, 2);
        flight.acknowledge(205 * MS, 2, 0);
        flight.depart(3, 300 * MS, false, 3);
        // What nobody has asked for says nothing of the way.
        flight.acknowledge(500 * MS, 3, 0);
        assert_eq!((flight.round_trip, flight.timeout), (Some(5 * MS), SHORTEST_TIMEOUT));
    }

    #[test]
    fn who_asks_waits_no_longer_because_a_later_one_has_come() {
        for later_asks in [false, true] {
            let mut flight = flight(0..0);
            flight.depart(0, 10 * MS, true, 0);
            flight.depart(1, 11 * MS, later_asks, 1);
            flight.depart(2, 12 * MS, true, 2);
            flight.acknowledge(13 * MS, 1, 0);
            let timeout = flight.timeout;
            assert_eq!(flight.time_out(10 * MS + timeout - MS), [0; 0]);
            assert_eq!(flight.time_out(10 * MS + timeout), [0, 2]);
        }
        // Once it is lost, the next one that asks is waited for.
        let mut flight = flight(0..0);
        flight.depart(0, 10 * MS, true, 0);
        (1..4).for_each(|number| flight.depart(number, 11 * MS, false, number));
        flight.depart(4, 12 * MS, true, 4);
        assert_eq!(flight.acknowledge(13 * MS, 3, 0b11).lost, [0]);
        assert_eq!(flight.time_out(171 * MS), [0; 0]);
        assert_eq!(flight.time_out(172 * MS), [4]);
    }

    #[test]
    fn the_window_grows_with_what_comes_and_halves_once_for_what_was_out() {
        let mut flight = flight(0..32);
        assert!(!flight.has_room());
        flight.acknowledge(2 * MS, 31, u128::MAX);
        (32..96).for_each(|number| flight.depart(number, 3 * MS, false, number));
        assert!(!flight.has_room(), "64 by now");
        flight.acknowledge(4 * MS, 60, 0);
        flight.acknowledge(4 * MS, 70, 0);
        assert_eq!(flight.window, 64 / 2 + 1, "two have come, one loss");
    }
}
