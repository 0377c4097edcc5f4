//! FTP's data connections (RFC 959): which server a client's is with, and which client a server's.
//!
//! A service with this helper is of all ports and persistent, and clients begin at its port for control connections alone. What makes a
//! data connection theirs is their template: it stands in the table from the control connection on, and as long as there is one,
//! and names the server. Clients that have one reach their server's ports from 1024 on; the server opens connections from port 20
//! to these clients. Nothing of what the two say to each other has to be read for that, so that it holds under TLS as well
//! (RFC 4217). All else is what every connection of a service of all ports is.

use super::packet::{Direction, Packet, Piece, Side};
use super::persist::{Person, Place};
use super::resolve::{Judgement, Path, Wanted, arrives};
use super::{Frame, Verdict};
use crate::counters::Punt;
use crate::service::{Helper, Protocol, State};
use crate::snapshot::{Dest, Service};
use crate::table::{FLAG_REPLIED, Inserted, Slot, Word};
use crate::tcp;
use crate::wire::transport::{ACK, RST, SYN};
use crate::wire::{ethernet, ftp};

/// The first port at which servers listen for data connections.
const FIRST: u16 = 1024;

/// Whether a client's packet may begin a control connection of a service, or the service has no helper.
pub(super) fn is_control(service: &Service, packet: &Packet) -> bool {
    service.helper != Some(Helper::Ftp) || packet.destination_port == ftp::CONTROL
}

impl<'a> Path<'a> {
    /// The server that a client's data connection is with. Without an established control connection the port is one that nobody has.
    pub(super) fn controlled(
        &self,
        place: &Place,
        service: &Service,
        packet: &Packet,
    ) -> Result<&'a Dest, Verdict> {
        let serves = |dest: &Dest| packet.destination_port >= FIRST && dest.up && !dest.reset;
        let control = self.control(place, serves);
        let (slot, word, dest) = control.ok_or(Verdict::Punt(Punt::NoService))?;
        arrives(packet, dest)?;
        // Who has changed it meanwhile has had it renewed.
        self.renew(service, slot, word);
        Ok(dest)
    }

    /// The server that a client has a control connection with, or has had within the time of persistence, if it is one for this data connection,
    /// and the template that says so: from the data connection on that time counts anew.
    fn control(&self, place: &Place, is_it: impl Fn(&Dest) -> bool) -> Option<(Slot, Word, &'a Dest)> {
        let (slot, word) = place.find(&self.engine.table, self.snapshot, self.now)?;
        let dest = (word.flags() & FLAG_REPLIED != 0).then(|| self.snapshot.dest_of(word))?;
        dest.filter(|dest| is_it(dest)).map(|dest| (slot, word, dest))
    }

    /// The dest of a data connection that a server opens with this packet, which is in the table then.
    #[inline(never)]
    pub(super) fn begin_active(&self, packet: &Packet) -> Option<&'a Dest> {
        let Side::Endpoint(endpoint) = packet.side() else { return None };
        let opens = packet.protocol == Protocol::Tcp
            && packet.source_port == ftp::DATA
            && packet.flags & (SYN | ACK | RST) == SYN;
        let services = self.snapshot.helped(endpoint).filter(|_| opens)?;
        let person = Person { client: packet.client, wide: self.client_address(packet) };
        let (service, dest) = services.iter().find_map(|&index| {
            let service = &self.snapshot.services[index as usize];
            let place = Place::new(&self.engine.table, (index, service), service.persistent?, person);
            let its = |dest: &Dest| dest.endpoint == Some(endpoint);
            let (slot, word, dest) = self.control(&place, its)?;
            self.renew(service, slot, word);
            Some((service, dest))
        })?;
        let state = tcp::next(tcp::Direction::Out, State::None, packet.flags);
        let word = Word::new(packet.client, dest.id).with_state(state);
        let word = word.seen(self.now, service.timeout(state).is_coarse());
        let wanted = Wanted::Connection(dest.endpoint);
        let known = Judgement::of_known(self.snapshot, self.now, packet.side(), packet.client);
        let judge = Judgement { wanted, ..known };
        dest.gauge.enter(state);
        match self.engine.table.insert(packet.hash, word, self.engine.worker as u8, &judge) {
            Inserted::New(slot) => {
                self.note_address(slot, packet);
                self.count_connection(dest);
            }
            // Another worker has been faster.
            Inserted::Existing(..) => self.snapshot.left(word),
            Inserted::Full => {
                self.snapshot.left(word);
                return None;
            }
        }
        if service.is_limited {
            // Whether it is full now has to be noticed now.
            dest.is_full();
        }
        Some(dest)
    }
}

/// What a server says on a control connection, said of the service; counts what could not be.
#[inline(never)]
pub(super) fn announce(path: &Path<'_>, packet: &Packet, dest: &Dest, frame: &mut impl Frame) {
    let is_said = packet.direction == Direction::Out
        && packet.source_port == ftp::CONTROL
        && packet.piece == Piece::Whole;
    let range = usize::from(packet.transport)..ethernet::HEADER + usize::from(packet.length);
    if is_said
        && let Some(segment) = frame.bytes_mut().get_mut(range)
        && ftp::announce(segment, dest.four.address, dest.four.virtual_address)
    {
        path.engine.counters.ftp_unchanged.add(1);
    }
}
