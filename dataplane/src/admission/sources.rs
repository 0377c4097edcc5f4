//! Lists of sources: from where connections may begin, and from where not.
//!
//! A list has a million prefixes and answers yes or no. Flattened into ranges ([`crate::ranges`]), neighbours are of different answers, so
//! nothing but their edges has to be kept: how many of them an address has passed says by its parity which answer it has. That
//! are 4 bytes an edge, of IPv6 16, and two edges a prefix at the most: 8 MB (32 MB) for a million that do not touch.
//!
//! Each 64th edge stands in an index of its own, which the second cache holds: a search goes to memory for four lines at the most, and not
//! for twenty.

use std::net::IpAddr;

use crate::fib::Address;
use crate::ranges::{Prefix, flatten};
use crate::snapshot::Family;

/// Which sources may begin connections. Without memory of its own beyond the lists; made once, shared by all who have the same.
#[derive(PartialEq, Eq)]
pub struct Sources {
    /// Of IPv4.
    pub(crate) four: Edges<u32>,
    /// Of IPv6.
    pub(crate) six: Edges<u128>,
    prefixes: usize,
}

impl Sources {
    /// Lets in what is in the first list and keeps out what is in the second, each of first addresses and lengths in bits. The longest
    /// prefix counts; of two equal ones that which denies. What is in neither is kept out if there is a first list, though it be empty or of the
    /// other family: a list that somebody has emptied by mistake lets nobody in.
    pub fn new(allow: Option<&[(IpAddr, u8)]>, deny: &[(IpAddr, u8)]) -> Sources {
        let elsewhere = allow.is_none();
        let allow = allow.unwrap_or_default();
        Sources {
            four: Edges::new(of_family(allow, deny), elsewhere),
            six: Edges::new(of_family(allow, deny), elsewhere),
            prefixes: allow.len() + deny.len(),
        }
    }

    /// Whether connections from this address may begin.
    #[inline]
    pub fn allows<A: Family>(&self, source: A) -> bool {
        A::edges(self).allows(source)
    }

    /// How many prefixes it was made of.
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }
}

/// Not each of a million.
impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sources({} prefixes)", self.prefixes)
    }
}

/// The prefixes of one family, with whether they are let in; those that are not stand first, and count among equals.
fn of_family<A: Address>(allow: &[(IpAddr, u8)], deny: &[(IpAddr, u8)]) -> Vec<Prefix<A, bool>> {
    let lists = [(deny, false), (allow, true)];
    let prefixes =
        lists.into_iter().flat_map(|(list, is_let_in)| list.iter().map(move |one| (one, is_let_in)));
    prefixes
        .filter_map(|(&(first, length), is_let_in)| Some((A::of(first)?.first(length), length, is_let_in)))
        .collect()
}

/// Edges in a stretch that is searched by itself: 256 bytes of IPv4.
const STRETCH: usize = 64;

/// The addresses of a family at which the answer changes.
#[derive(PartialEq, Eq)]
pub struct Edges<A> {
    /// The answer before the first edge.
    begins: bool,
    edges: Box<[A]>,
    /// The first of each stretch of edges.
    index: Box<[A]>,
}

impl<A: Address> Edges<A> {
    fn new(prefixes: Vec<Prefix<A, bool>>, elsewhere: bool) -> Self {
        let ranges = flatten(prefixes, elsewhere);
        let begins = ranges.first().is_none_or(|&(_, answer)| answer);
        let edges: Box<[A]> = ranges.iter().skip(1).map(|&(edge, _)| edge).collect();
        let index = edges.iter().step_by(STRETCH).copied().collect();
        Edges { begins, edges, index }
    }

    #[inline]
    fn allows(&self, address: A) -> bool {
        let stretches = self.index.partition_point(|&edge| edge <= address);
        let Some(before) = stretches.checked_sub(1) else { return self.begins };
        let rest = &self.edges[before * STRETCH..];
        let passed = rest[..rest.len().min(STRETCH)].partition_point(|&edge| edge <= address);
        // A stretch is even, so those before it do not matter.
        self.begins ^ (passed % 2 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sources(allow: &[&str], deny: &[&str]) -> Sources {
        let prefix = |text: &&str| {
            let (address, length) = text.split_once('/').unwrap();
            (address.parse().unwrap(), length.parse().unwrap())
        };
        let list = |texts: &[&str]| texts.iter().map(prefix).collect::<Vec<_>>();
        Sources::new((!allow.is_empty()).then(|| list(allow)).as_deref(), &list(deny))
    }

    fn allows(sources: &Sources, address: &str) -> bool {
        match address.parse().unwrap() {
            IpAddr::V4(four) => sources.allows(u32::from(four)),
            IpAddr::V6(six) => sources.allows(u128::from(six)),
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_of_equals_that_which_denies() {
        let listed = sources(
            &["10.0.0.0/8", "10.1.2.3/32", "192.0.2.0/24"],
            &["10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"],
        );
        for (address, expected) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("10.1.0.0", false),
            ("10.1.2.2", false),
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("10.2.0.0", true),
            ("192.0.2.7", false),
            ("198.51.100.7", false),
            ("2001:db8::1", false),
            ("2001:db9::1", false),
        ] {
            assert_eq!(allows(&listed, address), expected, "{address}");
        }
    }

    #[test]
    fn what_is_in_no_list_depends_on_whether_somebody_is_let_in() {
        let open = sources(&[], &["198.51.100.0/24"]);
        assert!(allows(&open, "10.0.0.1") && allows(&open, "2001:db8::1") && !allows(&open, "198.51.100.7"));
        let closed = sources(&["2001:db8::/64"], &[]);
        assert!(!allows(&closed, "10.0.0.1") && allows(&closed, "2001:db8::1"));
        let nobody = sources(&[], &["0.0.0.0/0", "::/0"]);
        assert!(!allows(&nobody, "255.255.255.255") && !allows(&nobody, "::"));
        let everybody = sources(&["0.0.0.0/0"], &["255.255.255.255/32"]);
        assert!(allows(&everybody, "0.0.0.0") && !allows(&everybody, "255.255.255.255"));
        assert!(allows(&Sources::new(None, &[]), "192.0.2.1"));
        assert!(!allows(&Sources::new(Some(&[]), &[]), "192.0.2.1"));
    }

    /// The plain way: the longest of all prefixes that have the address in them.
    fn longest(lists: &[(u32, u8, bool)], elsewhere: bool, address: u32) -> bool {
        let covers = |&&(first, length, _): &&(u32, u8, bool)| address.first(length) == first.first(length);
        let best = lists.iter().filter(covers).max_by_key(|&&(_, length, is_let_in)| (length, !is_let_in));
        best.map_or(elsewhere, |&(_, _, is_let_in)| is_let_in)
    }

    proptest! {
        // Few addresses, so that prefixes enclose and touch each other, and enough for several stretches.
        #[test]
        fn agrees_with_the_plain_way(
            lists in prop::collection::vec((0_u32..1024, 20_u8..=32, any::<bool>()), 0..400),
            addresses in prop::collection::vec(0_u32..1100, 64),
        ) {
            let lists: Vec<_> = lists.into_iter().map(|(n, length, allow)| (n << 2, length, allow)).collect();
            let of = |wanted| {
                let of_list = lists.iter().filter(move |&&(_, _, is_let_in)| is_let_in == wanted);
                of_list.map(|&(first, length, _)| (first.ip(), length)).collect::<Vec<_>>()
            };
            let allow = Some(of(true)).filter(|allow| !allow.is_empty());
            let listed = Sources::new(allow.as_deref(), &of(false));
            for address in addresses.into_iter().flat_map(|n| [n << 2, (n << 2) + 3, u32::MAX - n]) {
                let expected = longest(&lists, allow.is_none(), address);
                prop_assert_eq!(listed.allows(address), expected, "{:#x}", address);
            }
        }
    }
}
