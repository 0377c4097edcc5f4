//! The table, as directors see it.

use std::net::SocketAddr;

use dataplane::service::State;
use dataplane::table::{DestId, Slot};

use super::Router;
use super::translate::{Connection, age};
use crate::sync::peer::Store;
use crate::sync::store::{ON_THE_WAY, View, identity};
use crate::sync::walk::{Pace, Turn};
use crate::sync::wire::{Identity, Record};

impl Router for View<'_> {
    /// A connection is this router's to tell of while its service is live here. Where somebody else has the virtual
    /// address, it is that one who sees its packets: to tell a director what the director has told would be to overtake
    /// it with what it knows better.
    fn connection(&self, slot: Slot) -> Option<Connection> {
        let Record { dest, client, virtual_port, state, age, .. } = Store::record(self, slot)?;
        // Directors are told of IPv4 only.
        let SocketAddr::V4(client) = client else { return None };
        let dest = self.snapshot.dest(DestId::new(dest)?)?;
        let timeout = self.snapshot.timeout(dest, state).remaining(age);
        let is_to_be_told = timeout > 0 && self.snapshot.services[dest.service as usize].live;
        // Of a service of all ports Linux tells the port.
        let mut identity = identity(self.snapshot, dest);
        if dest.is_of_all_ports() {
            identity = at_port(identity, virtual_port);
        }
        is_to_be_told.then_some(Connection { identity, client, state, timeout })
    }

    fn buckets(&self) -> usize {
        Store::buckets(self)
    }

    fn pace(&self) -> Pace {
        Store::pace(self)
    }

    fn due(&self, turn: Turn) -> Vec<Slot> {
        Store::due(self, turn)
    }

    /// Linux tells of a connection when a packet has come, so what it says of the state is of this moment. How old the
    /// connection is to be here, so that it ends in time, must not make it old news.
    fn take_over(&mut self, connection: &Connection) -> bool {
        let Connection { identity, client, state, timeout } = *connection;
        let port = identity.service.address.port();
        let of_all_ports = || {
            let leaves_port = identity.server.address.port() == port;
            leaves_port.then(|| self.numbers.dest(&at_port(identity, 0)))?
        };
        let dest = self.numbers.dest(&identity).or_else(of_all_ports);
        let Some(dest) = dest.and_then(|dest| self.snapshot.dest(dest)) else { return false };
        let virtual_port = if dest.is_of_all_ports() { port } else { 0 };
        let age = age(self.snapshot.timeout(dest, state), timeout);
        // Of UDP and of templates, Linux only tells what has passed for a while.
        let replied = matches!(state, State::Udp | State::Template);
        let record = Record {
            dest: dest.id.index() as u32,
            client: client.into(),
            virtual_port,
            state,
            replied,
            age,
            local: None,
        };
        self.take(dest.id, &record, age + ON_THE_WAY);
        true
    }
}

/// The same service and server at this port.
fn at_port(mut identity: Identity, port: u16) -> Identity {
    identity.service.address.set_port(port);
    identity.server.address.set_port(port);
    identity
}

#[cfg(test)]
mod tests;
