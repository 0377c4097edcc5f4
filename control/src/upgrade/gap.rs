//! How long nothing is forwarded during an upgrade, stage by stage, over two programs.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::admin::api;
use crate::stages::Stages;

/// A gap that has begun, and when each of its stages ended. Times are microseconds of the monotonic clock, which both
/// programs read alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    began: u64,
    stages: Vec<(String, u64)>,
}

impl Gap {
    /// It begins now.
    pub fn begin() -> Gap {
        Gap { began: now(), stages: Vec::new() }
    }

    /// A stage ends now, and the next one begins.
    pub fn pass(&mut self, stage: &str) {
        self.stages.push((stage.to_owned(), now()));
    }

    /// A program has started, since the last stage; it forwards from now on.
    pub fn pass_start(&mut self, stages: &Stages) {
        let Stages { eal, ports, table, publish: _, settle: _ } = stages;
        for (name, took) in [("EAL", eal), ("ports", ports), ("table", table)] {
            let begin = self.stages.last().map_or(self.began, |stage| stage.1);
            self.stages.push((name.to_owned(), begin + took * 1_000));
        }
        self.pass("publish");
    }

    /// What each stage took.
    pub fn stages(&self) -> Vec<api::Stage> {
        let begins = std::iter::once(self.began).chain(self.stages.iter().map(|stage| stage.1));
        let stages = self.stages.iter().zip(begins);
        stages
            .map(|((name, end), begin)| api::Stage { name: name.clone(), us: end.saturating_sub(begin) })
            .collect()
    }

    /// What all of them took, in microseconds.
    pub fn microseconds(&self) -> u64 {
        self.stages().iter().map(|stage| stage.us).sum()
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_over_two_programs() {
        let stages = vec![("workers".to_owned(), 1_300), ("EAL".to_owned(), 5_000)];
        let gap = Gap { began: 1_000, stages };
        let text = serde_json::to_string(&gap).unwrap();
        let mut gap: Gap = serde_json::from_str(&text).unwrap();
        let taken: Vec<u64> = gap.stages().iter().map(|stage| stage.us).collect();
        assert_eq!(taken, [300, 3_700]);
        assert_eq!(gap.microseconds(), 4_000);
        gap.pass_start(&Stages { eal: 70, ports: 20, table: 1, publish: 3, settle: 9 });
        let stages = gap.stages();
        let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["workers", "EAL", "EAL", "ports", "table", "publish"]);
        assert_eq!(stages[2..5].iter().map(|stage| stage.us).collect::<Vec<_>>(), [70_000, 20_000, 1_000]);
        assert!(gap.microseconds() >= 95_000, "the clock of this machine is past 96 ms");
    }
}
