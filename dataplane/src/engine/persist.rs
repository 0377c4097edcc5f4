//! Persistence: a client's connections go to the server that its last ones went to.
//!
//! Which server that is stands in the table as a word of its own, a *template*: client address (as much of it as counts), the
//! service's mark as port, state [`State::Template`]. It is found, renewed, expired, kept in a file and told to peers as connections are. A packet
//! of a known connection does not look at it.
//!
//! As in IPVS a template lives for the persistence timeout after the last connection that it has placed, and as long as one of these
//! lives. IPVS counts them in the template; here the sweep, which comes by all connections anyway, keeps their templates
//! alive ([`hold`]). A template that no established connection has confirmed is the first to go when room is wanted, so that a
//! flood of SYNs from everywhere leaves none behind that would push others out.

use super::packet::{Packet, Side};
use super::resolve::{Judgement, Path, Wanted, arrives};
use super::{Verdict, ftp};
use crate::clock::{TICKS_PER_SECOND, Tick};
use crate::fib::Address;
use crate::service::State;
use crate::snapshot::{Dest, Service, ServiceIndex, Snapshot};
use crate::table::{Client, FLAG_REPLIED, Hash, Inserted, Slot, Table, Word};
use crate::worker::SWEEP_SECONDS;

/// A template has so many seconds left at least while a connection lives, as in IPVS.
const HELD: u32 = 60;
/// One sweep in so many looks at a connection's template: every 16 seconds, so that a look may fall out.
const TURNS: u64 = 4;

impl<'a> Path<'a> {
    /// The server of a client that begins a connection: that of its template, else the scheduler's choice, for which there is
    /// a template from now on, unless the packet does not get as far. With a helper some connections belong to another, or to none.
    #[inline(never)]
    pub(super) fn persist(
        &self,
        index: ServiceIndex,
        service: &Service,
        prefix: u8,
        packet: &Packet,
    ) -> Result<Option<&'a Dest>, Verdict> {
        let client = Person { client: packet.client, wide: self.client_address(packet) };
        let place = Place::new(&self.engine.table, self.snapshot.home_of(index), prefix, client);
        if !ftp::is_control(service, packet) {
            return self.controlled(&place, service, packet).map(Some);
        }
        let pick = || {
            let picked = self.pick(service, packet);
            picked.map(|dest| arrives(packet, dest).map(|()| dest)).transpose()
        };
        loop {
            let Some((slot, word)) = place.find(&self.engine.table, self.snapshot, self.now) else {
                let Some(dest) = pick()? else { return Ok(None) };
                match self.begin_template(&place, service, dest) {
                    // Without room for a template the client is served all the same.
                    Inserted::New(_) | Inserted::Full => return Ok(Some(dest)),
                    Inserted::Existing(..) => continue,
                }
            };
            let Some(known) = self.snapshot.dest_of(word) else { continue };
            // A table that was taken over knows no addresses.
            place.note_address(&self.engine.table, slot);
            if known.returning {
                arrives(packet, known)?;
                if !self.renew(service, slot, word) {
                    continue;
                }
                if service.is_limited {
                    // Let in all the same, but noted if it has come below its lower limit since it was asked: it is full no more.
                    known.is_full();
                }
                return Ok(self.snapshot.dest_in(service, known.id));
            }
            let Some(dest) = pick()? else { return Ok(None) };
            let moved = self.template(&place, service, dest);
            dest.gauge.enter(State::Template);
            if self.engine.table.replace(slot, word, moved).is_ok() {
                self.snapshot.left(word);
                return Ok(Some(dest));
            }
            dest.gauge.leave(State::Template);
        }
    }

    /// A template's client has another connection by it; false if somebody else has changed it meanwhile.
    pub(super) fn renew(&self, service: &Service, slot: Slot, word: Word) -> bool {
        let timeout = service.timeout(State::Template);
        if word.age(self.now) < timeout.renew_after() {
            return true;
        }
        let renewed = word.seen(self.now, timeout.is_coarse());
        let is_renewed = self.engine.table.replace(slot, word, renewed).is_ok();
        if is_renewed {
            self.note(slot, renewed);
        }
        is_renewed
    }

    fn template(&self, place: &Place, service: &Service, dest: &Dest) -> Word {
        let coarse = service.timeout(State::Template).is_coarse();
        Word::new(place.client, dest.home).with_state(State::Template).seen(self.now, coarse)
    }

    fn begin_template(&self, place: &Place, service: &Service, dest: &Dest) -> Inserted {
        let word = self.template(place, service, dest);
        let judge = place.judge(self.snapshot, self.now);
        dest.gauge.enter(State::Template);
        let inserted = self.engine.table.insert(place.hash, word, self.engine.worker as u8, &judge);
        match inserted {
            Inserted::New(slot) => place.note_address(&self.engine.table, slot),
            Inserted::Existing(..) | Inserted::Full => dest.gauge.leave(State::Template),
        }
        inserted
    }

    /// A client's connection with this dest is established or answered: its template is one to keep.
    #[inline(never)]
    pub(super) fn confirm(&self, dest: &Dest, prefix: u8, client: Person) {
        let place = Place::new(&self.engine.table, self.snapshot.home_of(dest.service), prefix, client);
        if let Some((slot, word)) = place.find(&self.engine.table, self.snapshot, self.now)
            && word.dest_number() == dest.home.index()
            && word.flags() & FLAG_REPLIED == 0
        {
            place.note_address(&self.engine.table, slot);
            let confirmed = word.with_flags(word.flags() | FLAG_REPLIED);
            // Who changes it at this moment is another connection of the client, and confirms it as well.
            if self.engine.table.replace(slot, word, confirmed).is_ok() {
                self.note(slot, confirmed);
            }
        }
    }
}

/// Keeps the template of a live connection alive. Called for all that a sweep meets; looks at one in four of them.
#[inline]
pub(super) fn hold(table: &Table, snapshot: &Snapshot, now: Tick, dest: &Dest, slot: Slot, word: Word) {
    let service = &snapshot.services[dest.service as usize];
    let Some(prefix) = service.persistent else { return };
    if word.state() == State::Template || !is_due(service, word.client(), now) {
        return;
    }
    let is_wide = dest.virtual_address.is_ipv6();
    let wide = match is_wide {
        true => table.address_of(slot, word, dest.is_of_all_ports()),
        false => None,
    };
    if wide.is_some() || !is_wide {
        hold_now(table, snapshot, now, dest, prefix, Person { client: word.client(), wide });
    }
}

/// Whether it is time to look at a client's template. Under short timeouts it always is.
fn is_due(service: &Service, client: Client, now: Tick) -> bool {
    let sweep = now.0 / (SWEEP_SECONDS * u64::from(TICKS_PER_SECOND));
    service.timeout(State::Template).remaining(0) < HELD
        || sweep.wrapping_add(client.bits()).is_multiple_of(TURNS)
}

#[inline(never)]
fn hold_now(table: &Table, snapshot: &Snapshot, now: Tick, dest: &Dest, prefix: u8, client: Person) {
    let home = snapshot.home_of(dest.service);
    let timeout = home.1.timeout(State::Template);
    let place = Place::new(table, home, prefix, client);
    if let Some((slot, word)) = place.find(table, snapshot, now)
        && word.dest_number() == dest.home.index()
        && timeout.remaining(word.age(now)) < HELD
    {
        let seen = Tick(now.0.saturating_sub(timeout.age_with(HELD).into()));
        // Who changes it at this moment renews it.
        let _ = table.replace(slot, word, word.seen(seen, timeout.is_coarse()));
    }
}

/// A client, and its address if that is of IPv6.
#[derive(Clone, Copy)]
pub(super) struct Person {
    pub client: Client,
    pub wide: Option<u128>,
}

/// Where a client's template of a service is, which is one that is its own home ([`Snapshot::home_of`]).
pub(super) struct Place {
    service: ServiceIndex,
    client: Client,
    /// What counts of the address, if that is of IPv6.
    wide: Option<u128>,
    pub hash: Hash,
}

impl Place {
    pub fn new(
        table: &Table,
        (index, service): (ServiceIndex, &Service),
        prefix: u8,
        Person { client, wide }: Person,
    ) -> Self {
        let wide = wide.map(|address| address.first(prefix));
        let client = match wide {
            Some(address) => table.wide_client(address, service.mark),
            None => Client::new(client.address().first(prefix), service.mark),
        };
        Place { service: index, client, wide, hash: table.hash(client, service.protocol) }
    }

    /// Notes whose the template in a slot is, if the client is of IPv6.
    fn note_address(&self, table: &Table, slot: Slot) {
        if let Some(address) = self.wide {
            table.note_address(slot, address);
        }
    }

    /// The template.
    pub fn find(&self, table: &Table, snapshot: &Snapshot, now: Tick) -> Option<(Slot, Word)> {
        table.find(self.hash, self.client, &self.judge(snapshot, now))
    }

    fn judge<'a>(&self, snapshot: &'a Snapshot, now: Tick) -> Judgement<'a> {
        let (side, client) = (Side::Service(self.service), self.client);
        Judgement { snapshot, now, side, client, wanted: Wanted::Template, named: None }
    }
}
