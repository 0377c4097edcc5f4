//! A server that goes up and down all the time is left out until it has calmed down.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::config::Damping;

/// When a server has gone down lately.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    downs: VecDeque<Instant>,
    /// Whether it has gone down too often, and until when it is held if its checks pass.
    unruly: bool,
    held: Option<Instant>,
}

impl Flaps {
    /// Whether the server counts as up, if its checks say `passes` and it counted as `was`.
    pub(super) fn judge(&mut self, passes: bool, was: bool, rules: Option<&Damping>, now: Instant) -> bool {
        let Some(rules) = rules else {
            *self = Flaps::default();
            return passes;
        };
        // Also while it is held: it must pass for the whole time.
        if !passes && (was || self.held.is_some()) {
            self.downs.push_back(now);
            while self.downs.len() > rules.downs as usize {
                self.downs.pop_front();
            }
            let first = self.downs.front().copied();
            self.unruly |= self.downs.len() == rules.downs as usize
                && first.is_some_and(|first| now - first <= rules.within);
            self.held = None;
        }
        if passes && !was && self.unruly {
            let until = *self.held.get_or_insert(now + rules.hold);
            if now < until {
                return false;
            }
            *self = Flaps::default();
        }
        passes
    }

    /// Until when it is held down.
    pub(super) fn held(&self) -> Option<Instant> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RULES: Damping =
        Damping { downs: 3, within: Duration::from_secs(60), hold: Duration::from_secs(30) };

    /// Seconds and whether the checks pass from then on, to whether it counts as up.
    fn play(steps: &[(u64, bool)]) -> Vec<bool> {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        let mut up = true;
        let step = |&(seconds, passes): &(u64, bool)| {
            up = flaps.judge(passes, up, Some(&RULES), start + Duration::from_secs(seconds));
            up
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn the_third_time_in_a_minute_it_stays_down() {
        let steps = [
            (0, false),
            (10, true),
            (20, false),
            (30, true),
            (40, false),
            (50, true),
            (79, true),
            (80, true),
        ];
        assert_eq!(play(&steps), [false, true, false, true, false, false, false, true]);
    }

    #[test]
    fn three_times_in_more_than_a_minute_are_life() {
        let steps = [(0, false), (10, true), (30, false), (40, true), (61, false), (70, true)];
        assert_eq!(play(&steps), [false, true, false, true, false, true]);
    }

    #[test]
    fn who_fails_while_held_is_held_anew() {
        let steps = [
            (0, false),
            (1, true),
            (2, false),
            (3, true),
            (4, false),
            (5, true),
            (20, false),
            (25, true),
            (54, true),
            (55, true),
        ];
        assert_eq!(play(&steps), [false, true, false, true, false, false, false, false, false, true]);
    }

    #[test]
    fn afterwards_it_begins_anew() {
        let steps = [
            (0, false),
            (1, true),
            (2, false),
            (3, true),
            (4, false),
            (5, true),
            (35, true),
            (40, false),
            (41, true),
        ];
        assert_eq!(play(&steps), [false, true, false, true, false, false, true, false, true]);
    }
}
