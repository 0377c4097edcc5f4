//! Prefixes that overlap, as ranges that do not: the longest prefix wins.

use crate::fib::Address;

/// A prefix with what is true of it: its first address, its length in bits, and that.
pub type Prefix<A, V> = (A, u8, V);

/// Ranges in ascending order, each by its first address, with what is true up to the next one; equal neighbours are one. The first begins
/// at the address 0. Of two equal prefixes the first counts; what no prefix has in it is `elsewhere`.
///
/// Walks the prefixes in order of their first address, wider ones first, keeping the enclosing ones on a stack.
pub fn flatten<A: Address, V: Copy + PartialEq>(
    mut prefixes: Vec<Prefix<A, V>>,
    elsewhere: V,
) -> Vec<(A, V)> {
    prefixes.sort_by_key(|&(first, length, _)| (first, length));
    prefixes.dedup_by_key(|&mut (first, length, _)| (first, length));
    let mut ranges: Vec<(A, V)> = vec![(A::from(0), elsewhere)];
    let mut push = |start: A, value: V| match ranges.last_mut() {
        Some(range) if range.0 == start => range.1 = value,
        _ => ranges.push((start, value)),
    };
    // By their last addresses.
    let mut enclosing: Vec<(A, V)> = Vec::new();
    let close = |enclosing: &mut Vec<(A, V)>, before: Option<A>, push: &mut dyn FnMut(A, V)| {
        while let Some(&(ended, _)) = enclosing.last()
            && before.is_none_or(|start| ended < start)
        {
            enclosing.pop();
            if let Some(next) = ended.next() {
                push(next, enclosing.last().map_or(elsewhere, |&(_, outer)| outer));
            }
        }
    };
    for (first, length, value) in prefixes {
        close(&mut enclosing, Some(first), &mut push);
        push(first, value);
        enclosing.push((first.last(length), value));
    }
    close(&mut enclosing, None, &mut push);
    ranges.dedup_by(|range, before| range.1 == before.1);
    ranges
}
