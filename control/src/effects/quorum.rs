//! Whether enough servers are up, with hysteresis as keepalived has it.

/// `live` is the sum of the weights of the servers that are up. Gained at `quorum + hysteresis`, lost below `quorum - hysteresis` or with nobody left. A service that begins needs
/// the quorum as it is.
pub(super) fn judge(had: Option<bool>, live: u64, quorum: u32, hysteresis: u32) -> bool {
    let (quorum, hysteresis) = (u64::from(quorum), u64::from(hysteresis));
    match had {
        None => live >= quorum,
        Some(false) => live >= quorum + hysteresis,
        Some(true) => live > 0 && live >= quorum.saturating_sub(hysteresis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hysteresis() {
        let mut has = None;
        let mut seen = Vec::new();
        for live in [5, 4, 3, 2, 3, 4, 5, 6, 5, 0] {
            has = Some(judge(has, live, 4, 1));
            seen.push(has == Some(true));
        }
        assert_eq!(seen, [true, true, true, false, false, false, true, true, true, false]);
    }

    #[test]
    fn with_nobody_it_is_lost_whatever_the_hysteresis() {
        assert!(judge(Some(true), 1, 3, 2));
        assert!(!judge(Some(true), 0, 3, 2));
        assert!(!judge(None, 2, 3, 2));
    }
}
