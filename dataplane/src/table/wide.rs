//! The addresses of IPv6 clients, for whoever wants to show them.
//!
//! A word has 48 bits of a hash of its client's address, by which a packet finds its connection; the packet path does not need the
//! address, since it rewrites none with it. But listings, peers and persistence by prefix do. So whoever inserts a
//! connection writes the address beside the table, in the place of the same slot, and nobody has to agree with anybody about that: a word
//! says by its hash whether an address is its own. A place that another connection has had, that is half written or not written yet, is
//! one without an address.
//!
//! The memory is as large as the table's, but only what is written is there.

use super::{Client, Slot, Table, Word};
use crate::sync::Ordering;

impl Table {
    /// A client with an IPv6 address.
    #[inline]
    pub fn wide_client(&self, address: u128, port: u16) -> Client {
        self.key.wide_client(address, port)
    }

    /// Notes whose connection is in a slot.
    #[inline]
    pub fn note_address(&self, slot: Slot, address: u128) {
        self.wide[slot.bucket()].0[slot.index()].store(address, Ordering::Relaxed);
    }

    /// The IPv6 address of the client of the word in a slot, if it is known. Of a service of all ports, the virtual port is in sixteen
    /// bits of the hash ([`Client::towards`]): then the other 32 say whose the address is.
    pub fn address_of(&self, slot: Slot, word: Word, is_of_all_ports: bool) -> Option<u128> {
        let address = self.noted(slot);
        let client = self.wide_client(address, word.client().port());
        let towards = if is_of_all_ports { word.client().virtual_port(client) } else { 0 };
        (client.towards(towards) == word.client()).then_some(address)
    }

    /// What has been noted of a slot, whosever it is.
    pub(super) fn noted(&self, slot: Slot) -> u128 {
        self.wide[slot.bucket()].0[slot.index()].load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::table::{DestId, HashKey, Inserted, Judge, Table, Word, Worth};

    struct Nobody;

    impl Judge for Nobody {
        fn is_mine(&self, _: Word) -> bool {
            false
        }

        fn worth(&self, _: Word) -> Worth {
            Worth::Keep
        }

        fn removed(&self, _: Word) {}
    }

    const ADDRESS: u128 = 0x2001_0DB8_0000_0000_0000_0000_0000_0007;

    #[test]
    fn a_word_knows_its_own_address() {
        use crate::service::Protocol;
        let table = Table::new(16, HashKey { blind: 5, factor: 7 });
        let client = table.wide_client(ADDRESS, 40_112);
        let word = Word::new(client, DestId::new(1).unwrap());
        let hash = table.hash(client, Protocol::Tcp);
        let Inserted::New(slot) = table.insert(hash, word, 0, &Nobody) else { panic!("an empty table") };
        assert_eq!(table.address_of(slot, word, false), None, "nobody has noted it");
        table.note_address(slot, ADDRESS);
        assert_eq!(table.address_of(slot, word, false), Some(ADDRESS));
        assert_eq!(client.port(), 40_112);
        // The next one in this slot.
        let other = Word::new(table.wide_client(ADDRESS + 1, 40_112), DestId::new(1).unwrap());
        assert_eq!(table.address_of(slot, other, false), None);
        assert_eq!(table.address_of(slot, other, true), None);
        let towards = Word::new(client.towards(8443), DestId::new(1).unwrap());
        assert_eq!(table.address_of(slot, towards, false), None);
        assert_eq!(table.address_of(slot, towards, true), Some(ADDRESS));
        assert_eq!(towards.client().virtual_port(client), 8443);
    }
}
