//! Rates as IPVS estimates them: sampled every two seconds, the new sample counting a quarter.
//!
//! That is about eight seconds of memory. IPVS walks all services in a timer of the kernel and so delays
//! packets; here the control thread does it, from counters that it reads anyway.

use dataplane::counters::Traffic;

/// Seconds between two samples.
pub const PERIOD: f64 = 2.0;

/// An estimator of [`Traffic`] per second.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    last: Traffic,
    rates: [f64; 5],
}

impl Meter {
    /// Takes a sample.
    pub fn sample(&mut self, now: Traffic) {
        let (before, after) = (fields(self.last), fields(now));
        for ((rate, before), after) in self.rates.iter_mut().zip(before).zip(after) {
            let current = after.saturating_sub(before) as f64 / PERIOD;
            *rate += (current - *rate) / 4.0;
        }
        self.last = now;
    }

    /// The estimate, per second.
    pub fn rates(&self) -> Traffic {
        let [connections, packets_in, packets_out, bytes_in, bytes_out] =
            self.rates.map(|rate| rate.round() as u64);
        Traffic { connections, packets_in, packets_out, bytes_in, bytes_out }
    }
}

fn fields(traffic: Traffic) -> [u64; 5] {
    let Traffic { connections, packets_in, packets_out, bytes_in, bytes_out } = traffic;
    [connections, packets_in, packets_out, bytes_in, bytes_out]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approaches_a_steady_rate_and_forgets_it() {
        let mut meter = Meter::default();
        let mut traffic = Traffic::default();
        let mut seen = Vec::new();
        for _ in 0..24 {
            traffic.packets_in += 2_000;
            meter.sample(traffic);
            seen.push(meter.rates().packets_in);
        }
        assert_eq!(seen[..3], [250, 438, 578]);
        assert!((998..=1000).contains(&seen[23]));
        (0..40).for_each(|_| meter.sample(traffic));
        assert_eq!(meter.rates(), Traffic::default());
    }
}
