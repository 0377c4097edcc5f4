//! What is heard and what is told, without a wire.

use std::cell::RefCell;

use dataplane::clock::Timeout;
use dataplane::service::{Mode, Protocol, State};
use proptest::prelude::*;

use super::translate::{read, write};
use super::*;
use crate::ids::{ServerKey, ServiceKey};
use crate::sync::walk::HEAL;
use crate::sync::wire::Identity;

const MS: Duration = Duration::from_millis(1);

/// A table: a slot a client's port. It knows the service at port 80 only.
#[derive(Default)]
struct Table {
    slots: Vec<Option<Connection>>,
    taken: Vec<Connection>,
    /// Buckets that were looked into.
    looked: RefCell<Vec<usize>>,
}

impl Table {
    fn new(buckets: usize) -> Table {
        Table { slots: vec![None; 4 * buckets], ..Table::default() }
    }

    fn set(&mut self, slot: usize, state: State) -> Slot {
        self.slots[slot] = Some(connection(slot as u16, 80, state));
        Slot::from_number(slot as u32)
    }
}

impl Router for Table {
    fn connection(&self, slot: Slot) -> Option<Connection> {
        self.slots[slot.number() as usize]
    }

    fn buckets(&self) -> usize {
        self.slots.len() / 4
    }

    fn pace(&self) -> Pace {
        Pace::for_all([Timeout::from_seconds(900)].into_iter())
    }

    fn due(&self, Turn { bucket, .. }: Turn) -> Vec<Slot> {
        self.looked.borrow_mut().push(bucket);
        let slots = (4 * bucket..4 * bucket + 4).filter(|&slot| self.slots[slot].is_some());
        slots.map(|slot| Slot::from_number(slot as u32)).collect()
    }

    fn take_over(&mut self, connection: &Connection) -> bool {
        self.taken.push(*connection);
        connection.identity.service.address.port() == 80
    }
}

fn connection(client: u16, port: u16, state: State) -> Connection {
    let socket = |text: &str| text.parse::<std::net::SocketAddrV4>().unwrap();
    Connection {
        identity: Identity {
            service: ServiceKey {
                address: socket(&format!("192.0.2.10:{port}")).into(),
                protocol: Protocol::Tcp,
            },
            server: ServerKey { address: socket("10.0.0.11:8080").into(), mode: Mode::Nat },
            face: None,
        },
        client: socket(&format!("198.51.100.7:{}", client + 1)),
        state,
        timeout: 900,
    }
}

/// What one master says.
struct Speaker {
    master: Master,
    counts: Counts,
    is_withdrawn: bool,
}

impl Speaker {
    /// Whose messages have room for two connections.
    fn new() -> Speaker {
        let master = Master::new(5, 8 + 2 * 36);
        Speaker { master, counts: Counts::default(), is_withdrawn: false }
    }

    /// The messages at this moment, each as the connections in it.
    fn say(&mut self, now: Duration, table: &Table) -> Vec<Vec<Connection>> {
        let mut said = Vec::new();
        while let Some(message) = self.master.speak(now, table, self.is_withdrawn, &mut self.counts) {
            let message = wire::decode(&message).unwrap();
            assert_eq!(message.syncid, 5);
            said.push(message.told.iter().map(|told| read(told).unwrap()).collect());
        }
        said
    }
}

#[test]
fn a_full_message_goes_at_once_and_others_wait_for_a_moment() {
    let mut table = Table::new(1);
    let mut speaker = Speaker::new();
    let slots: Vec<Slot> = (0..3).map(|slot| table.set(slot, State::Established)).collect();
    slots.iter().for_each(|&slot| speaker.master.note(Duration::ZERO, slot));
    let told = |slot| connection(slot, 80, State::Established);
    assert_eq!(speaker.say(MS, &table), [vec![told(0), told(1)]]);
    assert_eq!(speaker.say(99 * MS, &table), Vec::<Vec<Connection>>::new());
    // It has changed once more, and is told of once, as it is.
    table.set(2, State::FinWait);
    speaker.master.note(99 * MS, slots[2]);
    assert_eq!(speaker.say(100 * MS, &table), [vec![connection(2, 80, State::FinWait)]]);
    assert_eq!((speaker.counts.sent, speaker.counts.connections_sent), (2, 3));
    // What is gone by then is not told of.
    speaker.master.note(100 * MS, slots[0]);
    table.slots[0] = None;
    assert_eq!(speaker.say(300 * MS, &table), Vec::<Vec<Connection>>::new());
}

#[test]
fn everything_is_told_once_in_a_walk_at_a_steady_pace() {
    let mut table = Table::new(60);
    let mut speaker = Speaker::new();
    for slot in 0..240 {
        table.set(slot, State::Established);
    }
    let mut told = Vec::new();
    for second in 1..=60 {
        told.extend(speaker.say(HEAL * second / 60, &table).concat());
        let buckets = table.looked.borrow().len();
        assert_eq!(buckets, second as usize, "a bucket a second");
    }
    let ports: std::collections::BTreeSet<u16> = told.iter().map(|told| told.client.port()).collect();
    assert_eq!((told.len(), ports.len()), (240, 240));
    speaker.say(HEAL * 2, &table);
    assert_eq!(speaker.counts.connections_sent, 480, "and again");
}

#[test]
fn a_router_that_is_withdrawn_says_nothing_and_later_how_things_are_by_then() {
    let mut table = Table::new(1);
    let mut speaker = Speaker::new();
    let slots = [0, 1, 2].map(|slot| table.set(slot, State::Established));
    speaker.is_withdrawn = true;
    slots.iter().for_each(|&slot| speaker.master.note(Duration::ZERO, slot));
    // Neither what has changed nor what the walk comes to.
    assert_eq!(speaker.say(HEAL * 2, &table), Vec::<Vec<Connection>>::new());
    assert_eq!((speaker.counts, table.looked.borrow().len()), (Counts::default(), 0));

    table.set(1, State::FinWait);
    speaker.is_withdrawn = false;
    let said = speaker.say(HEAL * 2, &table).concat();
    let states = [State::Established, State::FinWait, State::Established];
    assert_eq!(said[..3], [0, 1, 2].map(|slot: usize| connection(slot as u16, 80, states[slot])));
}

/// A backup, and what it has counted.
fn hear(syncid: u8, messages: &[Vec<u8>]) -> (Table, Counts, Heard) {
    let mut table = Table::new(0);
    let mut counts = Counts::default();
    let mut backup = Backup::new(syncid);
    for (number, message) in messages.iter().enumerate() {
        backup.hear([10, 9, 0, number as u8].into(), message, &mut table, &mut counts);
    }
    (table, counts, backup.heard().clone())
}

#[test]
fn what_is_of_no_use_is_counted_under_its_name() {
    let good = write(&connection(1, 80, State::Established)).unwrap();
    let unknown = write(&connection(2, 81, State::Established)).unwrap();
    let odd = [
        wire::Entry { flags: wire::TEMPLATE, ..good },
        wire::Entry { fwmark: 9, ..good },
        wire::Entry { protocol: 132, ..good },
    ];
    let mut message = wire::encode(5, &[&[good, unknown][..], &odd].concat());
    // One more, of IPv6.
    message[4] += 1;
    message.extend([1, 6, 0, 72].into_iter().chain([0; 68]));
    message[2..4].copy_from_slice(&(8 + 5 * 36 + 72u16).to_be_bytes());

    let (table, counts, heard) = hear(5, &[message, b"rubbish".to_vec()]);
    assert_eq!(table.taken, [connection(1, 80, State::Established), connection(2, 81, State::Established)]);
    let expected = Counts {
        received: 2,
        malformed: 1,
        connections_received: 6,
        unknown: 1,
        fwmarks: 1,
        ipv6: 1,
        unsupported: 2,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
    assert_eq!(heard.directors, [Ipv4Addr::new(10, 9, 0, 0)]);
}

#[test]
fn a_syncid_other_than_zero_is_the_only_one_that_is_heard() {
    let messages: Vec<Vec<u8>> = [4, 5, 6]
        .map(|syncid| wire::encode(syncid, &[write(&connection(syncid.into(), 80, State::Close)).unwrap()]))
        .into();
    let (table, counts, heard) = hear(5, &messages);
    assert_eq!((table.taken.len(), counts.other_syncid, counts.connections_received), (1, 2, 1));
    assert_eq!(heard.stranger, Some((Ipv4Addr::new(10, 9, 0, 0), 4)), "the first");
    assert_eq!(heard.directors, [Ipv4Addr::new(10, 9, 0, 1)]);
    let (table, counts, heard) = hear(0, &messages);
    assert_eq!((table.taken.len(), counts.other_syncid), (3, 0));
    assert_eq!((heard.directors.len(), heard.stranger), (3, None));
}

#[test]
fn not_every_director_is_remembered() {
    let (_, _, heard) = hear(0, &vec![wire::encode(0, &[]); 100]);
    assert_eq!(heard.directors.len(), 8);
}

proptest! {
    #[test]
    fn no_bytes_make_a_backup_panic(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..9)) {
        let (table, counts, _) = hear(0, &messages);
        prop_assert_eq!(counts.received, messages.len() as u64);
        prop_assert!(table.taken.len() as u64 <= counts.connections_received);
    }
}
