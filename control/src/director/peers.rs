//! What is said of peer routers, and when the ids that they may still name can be given away.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::admin::api;
use crate::events::{Events, Kind};
use crate::sync::{PeerStatus, Shared, Standing, ipvs};

/// The director's view of peers; of none, if there are none.
#[derive(Default)]
pub(super) struct Peers {
    shared: Option<Arc<Shared>>,
    /// Who was together with us when it was last said.
    together: HashMap<SocketAddrV4, bool>,
    /// Which directors of Linux have been heard by then.
    heard: ipvs::Heard,
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
        let alone = || api::Sync { ready: true, ..api::Sync::default() };
        self.shared.as_ref().map_or_else(alone, |shared| shared.status().describe())
    }

    /// Says which have come and which have gone since it was last asked.
    pub(super) fn notice(&mut self, events: &Events) {
        let Some(shared) = &self.shared else { return };
        let status = shared.status();
        if let Some(ipvs::Status { heard, .. }) = status.ipvs {
            for &director in heard.directors.iter().skip(self.heard.directors.len()) {
                events.publish(Kind::IpvsHeard { director });
            }
            if let (Some((director, syncid)), None) = (heard.stranger, self.heard.stranger) {
                events.publish(Kind::IpvsOtherSyncid { director, syncid });
            }
            self.heard = heard;
        }
        for PeerStatus { address: peer, standing, .. } in status.peers {
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
