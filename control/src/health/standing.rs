//! Rise and fall: what a row of checks makes of a server. No clock, no sockets.

use crate::config::Start;

/// Whether a server is up, and how many checks in a row have said otherwise.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    up: bool,
    against: u32,
    reason: String,
    weight: Option<u32>,
}

impl Standing {
    /// Before the first check.
    pub(super) fn new(start: Start) -> Standing {
        let reason = if start == Start::Up { "" } else { "not checked yet" };
        Standing::of(start == Start::Up, reason.to_owned(), None)
    }

    /// As somebody else has found it out.
    pub(super) fn of(up: bool, reason: String, weight: Option<u32>) -> Standing {
        Standing { up, against: 0, reason, weight }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// What the last check said.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// The weight that it has asked for last.
    pub(super) fn weight(&self) -> Option<u32> {
        self.weight
    }

    /// Takes the weight that a check asks for; whether that is another one.
    pub(super) fn weigh(&mut self, weight: u32) -> bool {
        self.weight.replace(weight) != Some(weight)
    }

    /// The start of a prober that takes over from one with other figures: its counts were towards another goal.
    pub(super) fn heir(&self) -> Standing {
        Standing { against: 0, ..self.clone() }
    }

    /// Takes the outcome of a check. If that turns it, says how many in a row it took.
    pub(super) fn judge(&mut self, passed: bool, reason: &str, rise: u32, fall: u32) -> Option<u32> {
        reason.clone_into(&mut self.reason);
        if passed == self.up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < if self.up { fall } else { rise } {
            return None;
        }
        self.up = passed;
        Some(std::mem::take(&mut self.against))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `-` a failed check, `+` a passed one; the answer has a letter a check: `D` went down, `U` came up, `.` no
    /// change.
    fn play(rise: u32, fall: u32, checks: &str) -> String {
        let mut standing = Standing::new(Start::Up);
        let step = |check| match standing.judge(check == '+', "", rise, fall) {
            None => '.',
            Some(_) if standing.is_up() => 'U',
            Some(_) => 'D',
        };
        checks.chars().map(step).collect()
    }

    #[test]
    fn rise_and_fall() {
        for (rise, fall, checks, changes) in [
            (2, 3, "++++++++", "........"),
            (2, 3, "---+++++", "..D.U..."),
            (2, 3, "--+--+--", "........"),
            (2, 3, "---+-+-+", "..D....."),
            (2, 3, "------++", "..D....U"),
            (1, 1, "-+-+--++", "DUDUD.U."),
            (3, 1, "-++-+++-", "D.....UD"),
            (1, 3, "---+---+", "..DU..DU"),
            // Counts start again at a change.
            (2, 2, "--++--++", ".D.U.D.U"),
        ] {
            assert_eq!(play(rise, fall, checks), changes, "rise {rise} fall {fall} {checks}");
        }
    }

    #[test]
    fn says_how_many_it_took_and_why() {
        let mut standing = Standing::new(Start::Up);
        assert_eq!(standing.judge(false, "refused", 2, 2), None);
        assert_eq!(standing.judge(false, "timed out", 2, 2), Some(2));
        assert_eq!(standing.reason(), "timed out");
        assert_eq!(standing.judge(false, "refused", 2, 2), None);
        assert_eq!(standing.reason(), "refused");
    }

    #[test]
    fn an_heir_is_as_it_was_but_counts_anew() {
        let mut standing = Standing::new(Start::Up);
        standing.judge(false, "refused", 2, 1);
        standing.judge(true, "connected", 2, 1);
        let mut heir = standing.heir();
        assert!(!heir.is_up());
        assert_eq!(heir.judge(true, "connected", 2, 1), None);
        assert_eq!(heir.judge(true, "connected", 2, 1), Some(2));
    }

    proptest! {
        /// The plain model: at each step look back over the whole history. It turns when the last `n` outcomes
        /// since the last turn all speak against it.
        #[test]
        fn equals_the_plain_model(
            rise in 1u32..6,
            fall in 1u32..6,
            checks in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut standing = Standing::new(Start::Up);
            let (mut up, mut turned) = (true, 0);
            for (at, &passed) in checks.iter().enumerate() {
                let needed = if up { fall } else { rise } as usize;
                let since = &checks[turned..=at];
                let turns = since.len() >= needed
                    && since[since.len() - needed..].iter().all(|&outcome| outcome != up);
                if turns {
                    up = !up;
                    turned = at + 1;
                }
                let changed = standing.judge(passed, "", rise, fall);
                prop_assert_eq!(changed, turns.then_some(needed as u32));
                prop_assert_eq!(standing.is_up(), up);
            }
        }
    }
}
