//! What is said of peer routers, and when the ids that they may still name can be given away.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::api;
use crate::events::{Events, Kind};
use crate::sync::session::VERSION;
use crate::sync::{PeerStatus, Shared, Standing, Status, ipvs};

/// The director's view of peers; of none, if there are none.
#[derive(Default)]
pub(super) struct Peers {
    shared: Option<Arc<Shared>>,
    /// Who was together with us when it was last said.
    together: HashMap<SocketAddr, bool>,
    /// Whose version has been said not to be ours, since they were together with us.
    strange: HashSet<SocketAddr>,
    /// Which directors of Linux have been heard by then.
    heard: ipvs::Heard,
}

impl Peers {
    pub(super) fn new(shared: Option<Arc<Shared>>) -> Peers {
        Peers { shared, ..Peers::default() }
    }

    /// What others see of the thread that speaks to them.
    pub(super) fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.clone()
    }

    /// The oldest generation by which connections of peers are made.
    pub(super) fn generation(&self) -> u64 {
        self.shared.as_ref().map_or(u64::MAX, |shared| shared.generation.load(Ordering::Acquire))
    }

    /// Whether this router knows what its peers know, or that there are none.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.is_ready())
    }

    /// Whether this router is out of service.
    pub(super) fn withdraw(&self, is_withdrawn: bool) {
        if let Some(shared) = &self.shared {
            shared.is_withdrawn.store(is_withdrawn, Ordering::Relaxed);
        }
    }

    /// Waits until it does.
    pub(super) async fn until_ready(&self) {
        if let Some(shared) = &self.shared {
            shared.until_ready().await;
        }
    }

    /// How things stand. Without peers there is nothing to wait for.
    pub(super) fn describe(&self) -> api::Sync {
        self.described().unwrap_or_else(|| api::Sync { ready: true, ..api::Sync::default() })
    }

    /// How things stand, if there are peers.
    pub(super) fn described(&self) -> Option<api::Sync> {
        self.shared.as_ref().map(|shared| shared.status().describe())
    }

    /// Says which have come and which have gone since it was last asked.
    pub(super) fn notice(&mut self, events: &Events) {
        let Some(shared) = &self.shared else { return };
        let Status { peers, ipvs, .. } = shared.status();
        peers.iter().for_each(|peer| self.follow(peer, events));
        if let Some(ipvs::Status { heard, .. }) = ipvs {
            self.hear(heard, events);
        }
    }

    fn hear(&mut self, heard: ipvs::Heard, events: &Events) {
        for &director in heard.directors.iter().skip(self.heard.directors.len()) {
            events.publish(Kind::IpvsHeard { director });
        }
        if let (Some((director, syncid)), None) = (heard.stranger, self.heard.stranger) {
            events.publish(Kind::IpvsOtherSyncid { director, syncid });
        }
        self.heard = heard;
    }

    fn follow(&mut self, status: &PeerStatus, events: &Events) {
        let PeerStatus { address: peer, standing, other_version, .. } = *status;
        // Anybody can say a version in the name of a peer; so it counts only while the peer itself is not heard, and once.
        if let Some(theirs) = other_version
            && standing == Standing::Away
            && self.strange.insert(peer)
        {
            let ours = VERSION;
            tracing::warn!(%peer, theirs, ours, "a peer speaks another version; expected the same RVS on both");
            events.publish(Kind::PeerVersion { peer, theirs, ours });
        }
        let was = self.together.entry(peer).or_default();
        match standing {
            Standing::Together if !*was => {
                *was = true;
                self.strange.remove(&peer);
                events.publish(Kind::PeerJoined { peer });
            }
            Standing::Away if *was => {
                *was = false;
                events.publish(Kind::PeerAway { peer });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn another_version_is_said_once_until_the_peer_has_been_heard_again() {
        let (mut peers, events) = (Peers::default(), Events::default());
        let mut said = |standing, other_version| {
            let status = PeerStatus {
                address: "10.9.0.2:8848".parse().unwrap(),
                standing,
                other_version,
                counts: Default::default(),
                sent_a_second: 0,
                received_a_second: 0,
                waiting: 0,
                lag: Duration::ZERO,
                bulk: None,
            };
            peers.follow(&status, &events);
            events.tally().get("peer_version").map_or(0, |tally| tally.count)
        };
        assert_eq!(said(Standing::Away, None), 0);
        assert_eq!(said(Standing::Away, Some(1)), 1);
        assert_eq!(said(Standing::Away, Some(9)), 1, "whoever says it");
        assert_eq!(said(Standing::Together, None), 1);
        assert_eq!(said(Standing::Together, Some(1)), 1, "it is heard");
        assert_eq!(said(Standing::Away, Some(1)), 2);
    }
}
