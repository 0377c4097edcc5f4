//! What is said of peer routers, and when the ids that they may still name can be given away.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::api;
use crate::events::{Events, Kind};
use crate::sync::{PeerStatus, Shared, Standing};

/// The director's view of peers; of none, if there are none.
#[derive(Default)]
pub(super) struct Peers {
    shared: Option<Arc<Shared>>,
    /// Who was together with us when it was last said.
    together: HashMap<SocketAddrV4, bool>,
}

impl Peers {
    pub(super) fn new(shared: Option<Arc<Shared>>) -> Peers {
        Peers { shared, together: HashMap::new() }
    }

    /// The oldest generation by which connections of peers are made.
    pub(super) fn generation(&self) -> u64 {
        self.shared.as_ref().map_or(u64::MAX, |shared| shared.generation.load(Ordering::Acquire))
    }

    /// Whether there is nobody to tell of connections.
    pub(super) fn are_none(&self) -> bool {
        self.shared.is_none()
    }

    /// Whether this router knows what its peers know, or is alone.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.status().is_ready)
    }

    /// How things stand. Without peers there is nothing to wait for.
    pub(super) fn describe(&self) -> api::Sync {
        let alone = || api::Sync { ready: true, ..api::Sync::default() };
        self.shared.as_ref().map_or_else(alone, |shared| shared.status().describe())
    }

    /// Says which have come and which have gone since it was last asked.
    pub(super) fn notice(&mut self, events: &Events) {
        let Some(shared) = &self.shared else { return };
        for PeerStatus { address: peer, standing, .. } in shared.status().peers {
            let was = self.together.entry(peer).or_default();
            match standing {
                Standing::Together if !*was => {
                    *was = true;
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
