//! rendezvous: each server scores the connection by a hash of both, and the best score for its weight wins.
//!
//! When a server goes its connections move and no others, and when it comes back only they return, for any weights. All
//! routers pick the same server if they know the same ones, whatever their order. A pick asks every server, some
//! nanoseconds each: for services of few servers; `maglev` is for many.
//!
//! The score is that of weighted rendezvous hashing, -weight / ln(hash) with the hash as a fraction between 0 and 1: its inverse is
//! exponentially distributed with the weight as rate, so that the chance to be the least is the share of the weights. (Schindelhauer
//! and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005.) `ln` differs in its last bits from one library to the next, and two
//! routers would disagree now and then. So it is -log2 in integers ([`cost`]), and the least cost / weight wins.

use super::flow::{mixed, of_server};
use super::{Candidate, Flow, Reason};
use crate::table::DestId;

/// The servers that take connections, in the order of their addresses.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    servers: Box<[Server]>,
    key: u64,
}

#[derive(Clone, Debug)]
struct Server {
    dest: DestId,
    weight: u32,
    hash: u64,
}

/// The servers that take connections, in an order that all routers have.
pub(super) fn eligible(servers: &[Candidate]) -> Vec<&Candidate> {
    let mut eligible: Vec<&Candidate> = servers.iter().filter(|server| server.weight > 0).collect();
    eligible.sort_by_key(|server| server.address);
    eligible
}

impl Rendezvous {
    pub(super) fn new(servers: &[Candidate], key: u64) -> Self {
        Self::of(&eligible(servers), key)
    }

    /// Of servers that are [`eligible`].
    pub(super) fn of(servers: &[&Candidate], key: u64) -> Self {
        let server = |server: &&Candidate| Server {
            dest: server.dest,
            weight: server.weight,
            hash: of_server(server.address),
        };
        Rendezvous { servers: servers.iter().map(server).collect(), key }
    }

    /// The server at an index.
    pub(super) fn dest(&self, index: usize) -> Option<DestId> {
        Some(self.servers.get(index)?.dest)
    }

    pub(super) fn pick_for(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        self.pick(flow.hash(self.key), is_free)
    }

    /// For the hash of a flow.
    pub(super) fn pick(&self, hash: u64, is_free: &impl Fn(DestId) -> bool) -> Option<DestId> {
        self.choose(hash, is_free).map(|server| server.dest)
    }

    fn choose(&self, hash: u64, is_free: &impl Fn(DestId) -> bool) -> Option<&Server> {
        let mut best: Option<(u64, &Server)> = None;
        for server in self.servers.iter().filter(|server| is_free(server.dest)) {
            let cost = cost(mixed(hash ^ server.hash));
            // cost / weight < least, without dividing: 2^39 * 65535 fits in 64 bits. Of equal ones the first by address.
            if best.is_none_or(|(least, of)| cost * u64::from(of.weight) < least * u64::from(server.weight)) {
                best = Some((cost, server));
            }
        }
        best.map(|(_, server)| server)
    }

    pub(super) fn reason(&self, flow: &Flow, is_free: &impl Fn(DestId) -> bool) -> Option<Reason> {
        let server = self.choose(flow.hash(self.key), is_free)?;
        Some(Reason::Score { weight: server.weight, of: self.servers.len() })
    }
}

/// Bits of a cost, and of [`LOG2`], behind the point.
const FRACTION: u32 = 32;

/// -log2 of a hash as a fraction of 2^64: the number of leading zeros, and the rest from a table with straight lines in between.
/// It never rises with the hash, is above 0, at most 64, and off by no more than 3e-6 or 0.3 %, which no share can show.
pub(super) fn cost(hash: u64) -> u64 {
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    // Behind the first one bit: eight bits choose the line, and the next 32 the point on it.
    let mantissa = hash << zeros << 1;
    let line = (mantissa >> 56) as usize;
    let along = mantissa << 8 >> 32;
    let (start, end) = (LOG2[line], LOG2[line + 1]);
    (u64::from(zeros + 1) << FRACTION) - start - (((end - start) * along) >> 32)
}

/// log2(1 + n / 256), by squaring: each time the number is 2 or more, its logarithm has a one bit, and it is halved.
const LOG2: [u64; 257] = {
    let mut table = [0; 257];
    let mut n = 0;
    while n < 256 {
        let mut number = (256 + n as u128) << 55;
        let mut bit = 0;
        while bit < FRACTION {
            number = (number * number) >> 63;
            let is_two = (number >> 64) as u64;
            number >>= is_two;
            table[n] = table[n] << 1 | is_two;
            bit += 1;
        }
        n += 1;
    }
    table[256] = 1 << FRACTION;
    table
};
