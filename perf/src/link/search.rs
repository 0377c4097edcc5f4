//! The highest rate at which a router loses no more than is tolerated (RFC 2544, section 26.1), by halving.

use anyhow::Result;

/// What a trial at some rate came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Packets a second that were really sent: the generator may have been the slower one.
    pub offered: f64,
    /// Share of them that did not come back.
    pub loss: f64,
}

/// A share of the ceiling that is not worth a search.
const NOTHING: f64 = 0.001;

/// A search, with all that its trials have shown so far.
pub struct Search {
    ceiling: f64,
    resolution: f64,
    outcomes: Vec<Outcome>,
}

impl Search {
    /// A search from no packet a second up to `ceiling`, that ends when what it found is right by so great a share.
    pub fn new(ceiling: f64, resolution: f64) -> Search {
        Search { ceiling, resolution, outcomes: Vec::new() }
    }

    /// The highest rate of a trial that lost no more than this share; 0 if there is none. What was tried for another
    /// tolerance is not tried again.
    pub fn highest(&mut self, tolerance: f64, mut trial: impl FnMut(f64) -> Result<Outcome>) -> Result<f64> {
        loop {
            let failed = self.outcomes.iter().filter(|outcome| outcome.loss > tolerance);
            let high = failed.map(|outcome| outcome.offered).fold(self.ceiling, f64::min);
            // A rate that passed above one that failed was luck.
            let passed = self.outcomes.iter().filter(|o| o.loss <= tolerance && o.offered < high);
            let low = passed.map(|outcome| outcome.offered).fold(0.0, f64::max);
            if high - low <= high * self.resolution || high < self.ceiling * NOTHING {
                return Ok(low);
            }
            let rate = (low + high) / 2.0;
            let outcome = trial(rate)?;
            if outcome.offered < rate * (1.0 - self.resolution) {
                // More cannot be offered, so nothing above it can be found out.
                self.ceiling = self.ceiling.min(outcome.offered * (1.0 + self.resolution));
            }
            self.outcomes.push(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loses what is above its rate, and a little of everything if it is told to.
    fn router(rate: f64, always: f64, generator: f64) -> impl FnMut(f64) -> Result<Outcome> {
        move |asked| {
            let offered = f64::min(asked, generator);
            let loss = f64::max((offered - rate) / offered, always);
            Ok(Outcome { offered, loss })
        }
    }

    #[test]
    fn it_ends_below_what_the_router_can_do_by_the_resolution() {
        for rate in [1.0, 3.7, 9.99, 12.4] {
            let mut search = Search::new(12.5, 0.01);
            let found = search.highest(0.0, router(rate, 0.0, 99.0)).unwrap();
            assert!(found <= rate && found >= rate * 0.99 - 1e-9, "{found} of {rate}");
            let before = search.outcomes.len();
            assert!(before <= 11, "{before}");
            let tolerant = search.highest(0.001, router(rate, 0.0, 99.0)).unwrap();
            assert!(tolerant >= found && search.outcomes.len() - before <= 8, "{tolerant}");
        }
    }

    #[test]
    fn a_router_that_always_loses_has_no_throughput_without_tolerance() {
        let mut search = Search::new(10.0, 0.01);
        let tolerant = search.highest(1e-5, router(5.0, 5e-6, 99.0)).unwrap();
        assert!((4.95..=5.0).contains(&tolerant), "{tolerant}");
        assert!(search.highest(0.0, router(5.0, 5e-6, 99.0)).unwrap() == 0.0);
    }

    #[test]
    fn a_slow_generator_ends_the_search() {
        let mut search = Search::new(10.0, 0.01);
        let found = search.highest(0.0, router(99.0, 0.0, 4.0)).unwrap();
        assert!((3.9..=4.0).contains(&found), "{found}");
        assert!(search.outcomes.len() < 15);
    }
}
