//! What is said of peer routers, and when the ids that they may still name can be given away.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::api;
use crate::events::{Events, Kind};
use crate::sync::session::VERSION;
use crate::sync::{PeerStatus, Shared, Standing};

/// The director's view of peers; of none, if there are none.
#[derive(Default)]
pub(super) struct Peers {
    shared: Option<Arc<Shared>>,
    /// Who was together with us when it was last said.
    together: HashMap<SocketAddrV4, bool>,
    /// Whose version has been said not to be ours, since they were together with us.
    strange: HashSet<SocketAddrV4>,
}

impl Peers {
    pub(super) fn new(shared: Option<Arc<Shared>>) -> Peers {
        Peers { shared, ..Peers::default() }
    }

    /// The oldest generation by which connections of peers are made.
    pub(super) fn generation(&self) -> u64 {
        self.shared.as_ref().map_or(u64::MAX, |shared| shared.generation.load(Ordering::Acquire))
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
        for PeerStatus { address: peer, standing, other_version, .. } in shared.status().peers {
            // Anybody can say a version in the name of a peer; so it counts only while the peer itself is not heard, and once.
            if let Some(theirs) = other_version
                && standing == Standing::Away
                && self.strange.insert(peer)
            {
                tracing::warn!(%peer, theirs, ours = VERSION, "a peer speaks another version; expected the same RVS on both");
                events.publish(Kind::PeerVersion { peer, theirs, ours: VERSION });
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
}
