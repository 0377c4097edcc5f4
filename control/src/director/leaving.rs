//! The end that loses nothing: this router withdraws, forwards until its traffic has left, and ends.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::Director;
use crate::admin::{Stop, api};
use crate::config::VirtualAddresses;
use crate::events::FAREWELL;

/// How often it is looked whether the traffic has left, and how often it is said.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Traffic has left when none has come for so long.
const QUIET: Duration = Duration::from_secs(1);

/// Whoever sends SIGTERM has less patience: a routing daemon tells its neighbours within milliseconds, and what was on its
/// way comes within a few more.
pub(super) const BRIEF: Patience =
    Patience { deadline: Duration::from_secs(1), quiet: Duration::from_millis(200) };

/// How long a departure may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    deadline: Duration,
    quiet: Duration,
}

/// Who is told how far it has come.
pub(super) type Listener = mpsc::UnboundedSender<api::Leaving>;

/// A departure under way.
pub(super) struct Departure {
    until: Instant,
    quiet: Duration,
    /// When to look again.
    next: Instant,
    /// Packets of services at the last look, and since when there were not more.
    packets: u64,
    silent_since: Instant,
    /// When it was said last, and the packets by then.
    said: Option<(Instant, u64)>,
    listeners: Vec<Listener>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// So many virtual addresses are still on twins.
    Withdrawing(usize),
    Draining,
    Gone,
    Late,
}

impl Departure {
    fn new(patience: Patience, packets: u64, now: Instant) -> Departure {
        let Patience { deadline, quiet } = patience;
        let (until, next) = (now + deadline, now);
        Departure { until, quiet, next, packets, silent_since: now, said: None, listeners: Vec::new() }
    }

    /// When to look whether the traffic has left.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// With so many addresses on twins, and so many packets since the start.
    fn look(&mut self, held: usize, packets: u64, now: Instant) -> Stage {
        if held > 0 || packets != self.packets {
            self.silent_since = now;
        }
        self.packets = packets;
        self.next = now + LOOK_EVERY;
        if now >= self.silent_since + self.quiet {
            Stage::Gone
        } else if now >= self.until {
            Stage::Late
        } else if held > 0 {
            Stage::Withdrawing(held)
        } else {
            Stage::Draining
        }
    }

    /// What is to be said now, if it is time.
    fn say(&mut self, stage: Stage, now: Instant) -> Option<api::Leaving> {
        let (at, before) = self.said.unwrap_or((now, self.packets));
        let ends = matches!(stage, Stage::Gone | Stage::Late);
        if self.said.is_some() && now < at + SAY_EVERY && !ends {
            return None;
        }
        self.said = Some((now, self.packets));
        let packets = self.packets - before;
        let remaining = self.until.saturating_duration_since(now).as_secs_f64().ceil() as u64;
        let (state, text) = match stage {
            Stage::Withdrawing(held) => (
                "withdrawing",
                format!("leaving: virtual addresses still on twins: {held}; {remaining} s at the most"),
            ),
            Stage::Draining => (
                "draining",
                format!(
                    "leaving: withdrawn; packets since the last look: {packets}; {remaining} s at the most"
                ),
            ),
            Stage::Gone => ("stopping", "stopping: the traffic has left".to_owned()),
            Stage::Late => {
                ("stopping", format!("stopping: the time is over; packets since the last look: {packets}"))
            }
        };
        Some(api::Leaving { state: state.to_owned(), packets, remaining, text })
    }
}

impl Director {
    /// Begins to end.
    pub(super) async fn stop(&mut self, stop: Stop, listener: Listener) {
        let Stop::Gracefully(deadline) = stop else {
            return self.end("stopping: at once", listener);
        };
        if self.config.run.virtual_addresses == VirtualAddresses::Place && self.config.sync.is_none() {
            return self.end("stopping: nobody else could take the traffic", listener);
        }
        self.leave(Patience { deadline, quiet: QUIET }, listener).await;
    }

    /// Withdraws, and looks from now on whether the traffic has left.
    pub(super) async fn leave(&mut self, patience: Patience, listener: Listener) {
        if self.orders.stopping && self.departure.is_none() {
            return self.end("stopping: the traffic has left", listener);
        }
        let mut departure = Departure::new(patience, self.packets(), Instant::now());
        if let Some(other) = self.departure.take() {
            // Who asks again has the last word about the time.
            departure.silent_since = other.silent_since;
            departure.listeners = other.listeners;
        }
        departure.listeners.push(listener);
        self.departure = Some(departure);
        if !self.orders.stopping {
            self.orders.stopping = true;
            self.desk.close();
            self.put_in_force().await;
        }
    }

    pub(super) fn look_at_departure(&mut self) {
        let (packets, now) = (self.packets(), Instant::now());
        let held = if self.follows() { self.live.len() } else { self.placed.len() };
        let Some(departure) = &mut self.departure else { return };
        let stage = departure.look(held, packets, now);
        let Some(leaving) = departure.say(stage, now) else { return };
        tracing::info!("{}", leaving.text);
        self.leaving = Some(leaving.text.clone());
        self.manager.status(&leaving.text);
        departure.listeners.iter().for_each(|listener| drop(listener.send(leaving.clone())));
        if matches!(stage, Stage::Gone | Stage::Late)
            && let Some(departure) = self.departure.take()
        {
            self.end_when_heard(departure.listeners);
        }
    }

    fn end(&self, text: &str, listener: Listener) {
        let (state, text) = ("stopping".to_owned(), text.to_owned());
        // Who has asked may have gone.
        let _ = listener.send(api::Leaving { state, packets: 0, remaining: 0, text });
        self.end_when_heard(vec![listener]);
    }

    /// Ends RVS once everybody has been told, which they show by listening no more.
    fn end_when_heard(&self, listeners: Vec<Listener>) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            // Who does not read cannot delay the end for longer.
            let _ = timeout(FAREWELL, join_all(listeners.iter().map(|listener| listener.closed()))).await;
            stop.notify_one();
        });
    }

    /// Packets of services since the start, in both directions.
    fn packets(&self) -> u64 {
        let traffic = self.workers.iter().map(|worker| worker.traffic.get());
        traffic.map(|traffic| traffic.packets_in + traffic.packets_out).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses on twins and packets, every half second: what is said.
    fn play(deadline: u64, looks: &[(usize, u64)]) -> Vec<String> {
        let start = Instant::now();
        let patience = Patience { deadline: Duration::from_secs(deadline), quiet: QUIET };
        let mut departure = Departure::new(patience, 100, start);
        let mut said = Vec::new();
        for (&(held, packets), half_seconds) in looks.iter().zip(0u32..) {
            let now = start + Duration::from_millis(500) * half_seconds;
            let stage = departure.look(held, packets, now);
            said.extend(departure.say(stage, now).map(|leaving| leaving.text));
        }
        said
    }

    #[test]
    fn it_ends_when_nothing_has_come_for_a_second_after_the_addresses_have_gone() {
        assert_eq!(
            play(30, &[(1, 100), (1, 100), (1, 100), (0, 110), (0, 120), (0, 120), (0, 120)]),
            [
                "leaving: virtual addresses still on twins: 1; 30 s at the most",
                "leaving: virtual addresses still on twins: 1; 29 s at the most",
                "leaving: withdrawn; packets since the last look: 20; 28 s at the most",
                "stopping: the traffic has left",
            ]
        );
    }

    #[test]
    fn it_ends_at_the_deadline_whatever_comes() {
        assert_eq!(
            play(1, &[(0, 110), (0, 120), (0, 130)]),
            [
                "leaving: withdrawn; packets since the last look: 0; 1 s at the most",
                "stopping: the time is over; packets since the last look: 20",
            ]
        );
    }
}
