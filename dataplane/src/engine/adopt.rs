//! Connections that a peer router tells of.

use std::net::{IpAddr, SocketAddr};

use super::packet::Side;
use super::resolve::{Judgement, Wanted};
use crate::clock::Tick;
use crate::service::{Mode, State};
use crate::snapshot::{Service, Snapshot};
use crate::table::{Client, DestId, Identity, Inserted, Local, Stream, Table, Word};
use crate::told::{ADOPTER, Adopted, is_news, progress, seen_ago};

/// A connection, as somebody else knows it.
#[derive(Clone, Copy, Debug)]
pub struct News {
    /// Its client.
    pub client: SocketAddr,
    /// Its dest.
    pub dest: DestId,
    /// The virtual port, if its service is of all ports.
    pub virtual_port: u16,
    /// Its state.
    pub state: State,
    /// `FLAG_*`.
    pub flags: u8,
    /// Ticks since it was last seen.
    pub age: u32,
    /// Its local port, with full NAT.
    pub local: Option<SocketAddr>,
    /// How many ticks older than ours the news may be: what has just been seen there takes a moment to come here.
    pub slack: u32,
}

/// Takes over a connection of a dest of this snapshot, as a peer knows it.
pub fn adopt(table: &Table, snapshot: &Snapshot, now: Tick, news: &News) -> Adopted {
    let &News { client, age, slack, .. } = news;
    let Some(dest) = snapshot.dest(news.dest) else { return Adopted::Stale };
    let service = &snapshot.services[dest.service as usize];
    let port = if news.state == State::Template { service.mark } else { client.port() };
    let (client, wide) = match (client.ip(), dest.virtual_address) {
        (IpAddr::V4(four), SocketAddr::V4(_)) => (Client::new(four.into(), port), None),
        (IpAddr::V6(six), SocketAddr::V6(_)) => (table.wide_client(six.into(), port), Some(u128::from(six))),
        (IpAddr::V4(_), SocketAddr::V6(_)) | (IpAddr::V6(_), SocketAddr::V4(_)) => return Adopted::Stale,
    };
    let towards = dest.is_of_all_ports() && news.state != State::Template;
    let client = client.towards(if towards { news.virtual_port } else { 0 });
    let word = Word::new(client, news.dest).with_state(news.state).with_flags(news.flags);
    let (state, timeout) = (word.state(), service.timeout(word.state()));
    if timeout.has_passed(age) {
        return Adopted::Stale;
    }
    let word = seen_ago(word, now, age, timeout);
    let hash = table.hash(client, service.protocol);
    // Taken when it is needed, and not for what is known: its port and stream are as they are here.
    let take_local = || match (service.mode, state) {
        (Mode::Fullnat, State::Template) => Ok(None),
        (Mode::Fullnat, _) => local(snapshot, service, news.local, word.identity(), wide).map(Some),
        (Mode::Nat | Mode::Dr | Mode::Tunnel, _) => Ok(None),
    };
    let side = Side::Service(dest.service);
    let wanted = if state == State::Template { Wanted::Template } else { Wanted::Connection(dest.endpoint) };
    let judge = Judgement { snapshot, now, side, client, wanted, named: None };
    // Also of one that is known: a table that was taken over knows no addresses. Which local port it has here is known by its claim.
    let note_address = |slot, local: Option<Local>| {
        if let Some(address) = wide {
            table.note_address(slot, address);
        }
        if let Some(local) = local {
            table.note_local(slot, word.identity(), local);
        }
    };
    // Counted before it can be seen, as workers do.
    dest.gauge.enter(state);
    let adopted = loop {
        let found = table.find(hash, client, &judge);
        if let Some((slot, ours)) = found
            && !is_news(ours, word, now, slack, |word| precedence(snapshot, word))
        {
            note_address(slot, None);
            break Adopted::Known;
        }
        let local = match take_local() {
            Ok(local) => local,
            Err(adopted) => break adopted,
        };
        match found {
            Some((slot, ours)) => {
                if table.replace(slot, ours, word).is_ok() {
                    note_address(slot, local);
                    snapshot.left(ours);
                    break Adopted::Changed;
                }
            }
            None => match table.insert(hash, word, ADOPTER, &judge) {
                Inserted::New(slot) => {
                    note_address(slot, local);
                    break Adopted::New;
                }
                Inserted::Existing(..) => {}
                Inserted::Full => break Adopted::NoRoom,
            },
        }
    };
    if matches!(adopted, Adopted::Known | Adopted::Stale | Adopted::NoRoom) {
        dest.gauge.leave(state);
    }
    adopted
}

/// The local port of a connection, taken for it here as well. Without it the connection is of no use.
fn local(
    snapshot: &Snapshot,
    service: &Service,
    told: Option<SocketAddr>,
    owner: Identity,
    client: Option<u128>,
) -> Result<Local, Adopted> {
    let told = told.ok_or(Adopted::Stale)?;
    let address = match told.ip() {
        IpAddr::V4(four) => snapshot.local_at(u32::from(four)),
        IpAddr::V6(six) => snapshot.local_at(u128::from(six)),
    };
    let address = address.ok_or(Adopted::Stale)?;
    // Peers tell of what is established, so a header for the server has been there.
    let stream = service.has_header().then_some(Stream { first: 0, has_passed: true });
    let is_taken = address.take_over(service.protocol, told.port(), owner, stream);
    if let Some(client) = client.filter(|_| is_taken) {
        address.note_client(service.protocol, told.port(), client);
    }
    is_taken.then_some(Local { number: address.number, port: told.port() }).ok_or(Adopted::NoRoom)
}

/// Of two words of one moment, which counts in every router: what is nearer to its end, then any order of the servers.
fn precedence(snapshot: &Snapshot, word: Word) -> (u8, Option<SocketAddr>) {
    (progress(word.state()), snapshot.dest_of(word).map(|dest| dest.address))
}
