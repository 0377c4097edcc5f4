//! Few connections, so that what they cost is what a datagram costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::pair::{Pair, Spent, known};
use super::{Figures, rig};
use crate::report::Promise;

/// Seconds for which connections come, at the least and at the most, and how many come at the least in between.
const SECONDS: [u32; 2] = [1, 10];
const CONNECTIONS: u32 = 200;
/// What a connection may cost.
const BYTES: f64 = 64.0;

/// Bytes a second that two routers speak which have nothing to tell.
pub(super) fn idle(figures: &mut Figures) -> Result<f64> {
    let (here, there) = (rig(0, 1_000)?, rig(0, 1_000)?);
    let pair = Pair::start(&here, &there)?;
    // Seven datagrams a second: so many seconds that one more or less is nothing, and no fewer than connections come for.
    let (began, before) = (Instant::now(), spent(&pair)?);
    std::thread::sleep(Duration::from_secs(SECONDS[1].into()));
    let bytes = (spent(&pair)?.bytes - before.bytes) as f64 / began.elapsed().as_secs_f64();
    figures.add("idle", "on the wire", "bytes/s", bytes, None);
    Ok(bytes)
}

/// What connections cost that come so often, as clients do who know nothing of each other. `idle` is what is said anyway, and
/// no connection's fault.
pub(super) fn trickle(a_second: u32, idle: f64, figures: &mut Figures) -> Result<()> {
    let seconds = (CONNECTIONS / a_second).clamp(SECONDS[0], SECONDS[1]);
    let connections = a_second * seconds;
    let mut here = rig(0, connections)?;
    here.changes = Some(Arc::default());
    let there = rig(0, connections)?;
    let pair = Pair::start(&here, &there)?;
    let before = spent(&pair)?;
    let (opener, began) = (here.opener(), Instant::now());
    for (number, due) in (0..connections).zip(arrivals(a_second)) {
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        ensure!(opener.open(number)?, "the table has no room");
    }
    pair.settle()?;
    let (spent, lasted) = (spent(&pair)?.bytes - before.bytes, began.elapsed());
    let of = format!("trickle, {a_second}/s");
    let event = |bytes: f64| bytes / f64::from(connections);
    figures.add(&of, "on the wire", "bytes/connection", event(spent as f64), None);
    let more = spent as f64 - idle * lasted.as_secs_f64();
    figures.add(&of, "more than idle", "bytes/connection", event(more), Some(Promise::AtMost(BYTES)));
    let known = known(&here.table, &there.table);
    figures.add(&of, "known to the peer", "%", known, Some(Promise::AtLeast(99.99)));
    Ok(())
}

/// What has been spent by a moment of which the threads have shown something.
fn spent(pair: &Pair) -> Result<Spent> {
    pair.settle()?;
    pair.spent()
}

/// When connections come: a Poisson process, and the same each time.
fn arrivals(a_second: u32) -> impl Iterator<Item = Duration> {
    let mut random = 1u64;
    let mut now = 0.0;
    std::iter::repeat_with(move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
        now -= uniform.ln() / f64::from(a_second);
        Duration::from_secs_f64(now)
    })
}
