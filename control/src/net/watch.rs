//! Keeps a [`Mirror`] true.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::mirror::Effect;
use super::{Change, Linux, Mirror};

/// Changes come in flocks (a link up is an event, its addresses and routes are more): the caller is told of a flock
/// once. Long enough for the events of one `ip` command, short enough that nobody waits for it.
const SETTLE: Duration = Duration::from_millis(2);

/// Follows Linux, and says when something that matters has changed.
pub struct Watcher {
    mirror: Mirror,
    linux: Linux,
    events: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    /// Reads the socket that `events` come from; ends with the watcher.
    _connection: JoinSet<()>,
    /// The mirror lacks what Linux did not announce, or what did not fit into the socket.
    stale: bool,
    /// A dump under way. A task, so that a caller who gives up waiting does not make it start again.
    dump: Option<JoinHandle<Result<Mirror>>>,
    /// What has changed since the caller was told, and when it is to be told.
    pending: Option<(Change, Instant)>,
}

impl Watcher {
    /// Subscribes, then dumps, so that nothing is missed between the two.
    pub async fn start() -> Result<Watcher> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Neigh,
        ];
        let (connection, _, events) =
            rtnetlink::new_multicast_connection(&groups).context("subscribe to netlink events")?;
        let mut task = JoinSet::new();
        task.spawn(connection);
        let linux = Linux::open()?;
        let mirror = linux.dump().await?;
        Ok(Watcher {
            mirror,
            linux,
            events: events.map(|(message, _)| message).boxed(),
            _connection: task,
            stale: false,
            dump: None,
            pending: None,
        })
    }

    /// What Linux knows, as far as it has been read: complete whenever [`Self::changed`] has returned. One who gives
    /// up waiting may see a change here before being told of it.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The requests' side.
    pub fn handle(&self) -> Linux {
        self.linux.clone()
    }

    /// Waits until something in the mirror has changed, and says what kind of thing.
    ///
    /// Cancel-safe: what has been seen is kept for the next call. After an error the mirror is not followed any
    /// longer; start another watcher.
    pub async fn changed(&mut self) -> Result<Change> {
        loop {
            if self.stale && self.dump.is_none() {
                self.stale = false;
                let linux = self.linux.clone();
                self.dump = Some(tokio::spawn(async move { linux.dump().await }));
            }
            let dumping = self.dump.is_some();
            let (due, dump) = (self.pending.map(|(_, due)| due), self.dump.as_mut());
            tokio::select! {
                // Ahead of the events, lest a flood of them keep the caller from hearing of any.
                biased;
                fresh = async { dump.expect("guarded").await }, if dumping => {
                    self.dump = None;
                    self.replace(fresh.context("dump of netlink")??);
                }
                () = async { tokio::time::sleep_until(due.expect("guarded")).await },
                    if due.is_some() && !dumping =>
                {
                    while let Some(event) = self.events.next().now_or_never() {
                        self.event(event)?;
                    }
                    if !self.stale && let Some((change, _)) = self.pending.take() {
                        return Ok(change);
                    }
                }
                // What comes during a dump waits: it may be newer than the dump, which replaces the mirror.
                event = self.events.next(), if !dumping => self.event(event)?,
            }
        }
    }

    fn event(&mut self, event: Option<NetlinkMessage<RouteNetlinkMessage>>) -> Result<()> {
        let event = event.context("the netlink socket was closed")?;
        match event.payload {
            NetlinkPayload::InnerMessage(message) => {
                let Effect { change, stale } = self.mirror.apply(event.header.flags, &message);
                self.stale |= stale;
                self.note(change);
            }
            NetlinkPayload::Overrun(_) => {
                tracing::debug!("netlink events overran the socket: reading everything anew");
                self.stale = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn replace(&mut self, fresh: Mirror) {
        let change = self.mirror.difference(&fresh);
        self.mirror = fresh;
        self.note(change);
    }

    fn note(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        self.pending = match self.pending {
            Some((before, due)) => Some((before.max(change), due)),
            None => Some((change, Instant::now() + SETTLE)),
        };
    }
}
