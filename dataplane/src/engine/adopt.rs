//! Connections that a peer router tells of.

use std::net::{IpAddr, SocketAddr};

use super::packet::Side;
use super::resolve::{Judgement, Wanted};
use crate::clock::{COARSE_SHIFT, Tick};
use crate::service::{Mode, State};
use crate::snapshot::{Service, Snapshot};
use crate::table::{Client, DestId, Identity, Inserted, Local, Stream, Table, Word};

/// Tells the tentative words of whoever adopts from those of workers.
const ADOPTER: u8 = u8::MAX;
/// Ages are told in whole units of the stamp, whose ends are not the same moment in two routers.
const fn same_moment(is_coarse: bool) -> u32 {
    if is_coarse { 1 << COARSE_SHIFT } else { 1 }
}

/// What has become of a connection that was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It was not known.
    New,
    /// It was known otherwise.
    Changed,
    /// What is known is as new, or newer.
    Known,
    /// It has expired, or its dest is not in the snapshot.
    Stale,
    /// The table has no room, or its local port is another's here.
    NoRoom,
}

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
    // A coarse age is one that has certainly passed, up to a unit too little; the stamp has to be the one that it came from.
    // Else a connection would be younger with each telling, and two routers would keep it for ever.
    let rounded_off = if timeout.is_coarse() && age > 0 { same_moment(true) - 1 } else { 0 };
    let word = word.seen(Tick(now.0.saturating_sub(u64::from(age + rounded_off))), timeout.is_coarse());
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
            && !is_news(snapshot, ours, word, now, slack)
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
            None => match table.insert(hash, word, ADOPTER, &judge, None) {
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

/// Whether their word says more than ours. Of two routers that both carry a connection, the one that has seen it last
/// knows best.
fn is_news(snapshot: &Snapshot, ours: Word, theirs: Word, now: Tick, slack: u32) -> bool {
    let (ours_age, theirs_age) = (ours.age(now), theirs.age(now));
    let is_other = ours.dest_number() != theirs.dest_number() || ours.state() != theirs.state();
    let moment = same_moment(ours.is_coarse() || theirs.is_coarse());
    if is_other && slack == 0 && ours_age.abs_diff(theirs_age) <= moment {
        // A coarse moment is a minute, in which a client may have begun anew what had ended here. To end that would cost it
        // its connection; to keep what is over costs a slot.
        let (ours_is_over, theirs_is_over) = (ours.state().is_over(), theirs.state().is_over());
        if moment > 1 && ours_is_over != theirs_is_over {
            return ours_is_over;
        }
        // Both may hear the other's word at this moment, and would change places for ever.
        return precedence(snapshot, theirs) > precedence(snapshot, ours);
    }
    // In fine units a tick too much in a minute of healing does no harm; a coarse unit is longer than that minute.
    let margin = if moment > 1 { moment } else { 0 };
    theirs_age + margin < ours_age || is_other && theirs_age <= ours_age + slack
}

/// Of two words of one moment, which counts in every router: what is nearer to its end, then any order of the servers.
fn precedence(snapshot: &Snapshot, word: Word) -> (u8, Option<SocketAddr>) {
    let progress = match word.state() {
        State::Established | State::Udp | State::Template => 1,
        State::FinWait | State::ShutdownSent => 2,
        State::CloseWait | State::ShutdownReceived => 3,
        State::LastAck | State::ShutdownAckSent => 4,
        State::TimeWait => 5,
        State::Close | State::Closed => 6,
        // Its handshake is not done.
        _ => 0,
    };
    (progress, snapshot.dest_of(word).map(|dest| dest.address))
}
