//! Random sequences: few clients and few services, so that packets meet, and every step small and readable, so that a sequence which shows a
//! difference shrinks to one that a person understands.

mod at_risk;
mod crossing;
mod error;
mod ftp;
mod ipsec;
mod odd;
mod parts;
mod passing;
mod quic;
mod sent;
mod services;
mod talk;
mod wire;

use std::net::SocketAddr;

use dataplane::service::{Helper, Mode};
use proptest::prelude::*;
use proptest::sample::select;

use self::crossing::crossing;
pub use self::error::Error;
use self::error::error;
use self::ftp::transfer;
pub use self::ftp::{Said, Transfer};
use self::ipsec::ike;
pub use self::ipsec::{Secured, Security};
pub use self::odd::Odd;
use self::parts::parts;
pub use self::passing::{Course, Passing};
use self::passing::{datagrams, passing};
pub use self::quic::Datagram;
use self::quic::datagram;
pub use self::sent::Sent;
use self::sent::sent;
use self::services::{services, snat};
use self::talk::talk;
use crate::wires::{Tagged, Wires};
use crate::world::{self, Leaving, SERVERS, Service, Snat};

/// A sequence: services, and what happens.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Whether what concerns no service is routed by the workers.
    pub routing: bool,
    /// Where its ports are.
    pub wires: Wires,
    /// How hosts inside leave, if not by Linux.
    pub snat: Option<Snat>,
    /// The services at its beginning.
    pub services: Vec<Service>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A packet comes.
    Packet(Sent),
    /// An ICMP error comes.
    Error(Error),
    /// A packet of no service's comes.
    Passing(Passing),
    /// A packet of IPsec comes.
    Secured(Secured),
    /// A packet of FTP comes.
    Transfer(Transfer),
    /// So many ticks of a quarter of a second pass.
    Wait(u64),
    /// Workers have looked through the whole table.
    Sweep,
    /// A server's checks fail, or pass again.
    Toggle(Which),
    /// A server is removed from the configuration, or comes back.
    Remove(Which, Option<Leaving>),
    /// A server's MAC is forgotten, or found.
    Neighbour(Which),
    /// A server gets another weight.
    Weight(Which, u32),
    /// The virtual address goes to another router, or comes back.
    Move(usize),
    /// Connections of a service come to need an entry only at risk, if they can do so, or all of them.
    Track(usize),
}

impl Step {
    /// What is unusual about the tag of a packet that comes.
    pub(crate) fn tagged(&self) -> Option<Tagged> {
        let odd = match self {
            Step::Packet(sent)
            | Step::Secured(Secured { sent, .. })
            | Step::Transfer(Transfer { sent, .. }) => &sent.odd,
            Step::Passing(passing) => &passing.odd,
            _ => return None,
        };
        if let Some(Odd::Tagged(tagged)) = odd { Some(*tagged) } else { None }
    }
}

/// The numbers of a service and of one of its servers, modulo how many there are.
pub type Which = (usize, usize);

/// The number of whatever server a connection has.
pub const ITS: usize = 99;

/// Any sequence.
pub fn sequences() -> impl Strategy<Value = Sequence> {
    let snat = prop::option::weighted(0.3, snat());
    // What happens by itself, and what only some services make something of.
    let steps = prop_oneof![
        12 => step().prop_map(|step| (Of::Any, vec![step])),
        1 => talk().prop_map(|steps| (Of::Any, steps)),
        1 => parts().prop_map(|steps| (Of::Any, steps)),
        1 => datagrams().prop_map(|steps| (Of::Any, steps)),
        1 => ike().prop_map(|steps| (Of::Ipsec, steps)),
        1 => transfer().prop_map(|steps| (Of::Ftp, steps)),
        1 => crossing().prop_map(|steps| (Of::Incoming, steps)),
    ];
    let wires = prop_oneof![3 => Just(Wires::PLAIN), 1 => select(Wires::SHARED.to_vec())];
    let steps = prop::collection::vec(steps, 1..=20);
    (prop::bool::weighted(0.3), wires, snat, services(), steps).prop_map(
        |(routing, wires, snat, services, steps)| {
            let matter = steps.into_iter().filter(|(of, _)| services.iter().any(|service| of.is_of(service)));
            let steps: Vec<Step> = matter.flat_map(|(_, steps)| steps).collect();
            Sequence { routing, wires, snat, services, steps }
        },
    )
}

/// For which services steps are made.
#[derive(Clone, Copy, Debug)]
enum Of {
    Any,
    /// Those with the helper for IPsec.
    Ipsec,
    /// Those with the helper for FTP.
    Ftp,
    /// Those that ask on which port packets come in.
    Incoming,
}

impl Of {
    fn is_of(self, service: &Service) -> bool {
        match self {
            Of::Any => true,
            Of::Ipsec => service.helper == Some(Helper::Ipsec),
            Of::Ftp => service.helper == Some(Helper::Ftp),
            Of::Incoming => service.faces.iter().any(|face| face.incoming.is_some()),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let ticks = select(vec![1u64, 1, 3, 4, 5, 8, 12, 17, 41, 64, 70, 240, 250, 500, 3605, 500_000]);
    let which = (0..3usize, 0..SERVERS);
    prop_oneof![
        24 => sent().prop_map(Step::Packet),
        3 => datagram().prop_map(Step::Packet),
        4 => error().prop_map(Step::Error),
        8 => passing().prop_map(Step::Passing),
        3 => ticks.prop_map(Step::Wait),
        1 => Just(Step::Sweep),
        1 => which.clone().prop_map(Step::Toggle),
        1 => which.clone().prop_map(Step::Neighbour),
        1 => (which.clone(), select(vec![None, Some(Leaving::Draining), Some(Leaving::Resetting)]))
            .prop_map(|(which, leaving)| Step::Remove(which, leaving)),
        1 => (which, 0..5u32).prop_map(|(which, weight)| Step::Weight(which, weight)),
        1 => (0..3usize).prop_map(Step::Move),
        1 => (0..3usize).prop_map(Step::Track),
    ]
}

/// What is known of a client's connection with a service, for packets that belong to it.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub server: usize,
    /// As whom the server knows the client, by full NAT.
    pub local: Option<SocketAddr>,
}

/// The number of a server, for [`ITS`] that of the connection.
fn its_or(server: usize, known: Option<Known>) -> usize {
    if server == ITS { known.map_or(0, |known| known.server) } else { server }
}

/// Whom a server answers to. Without a connection by full NAT that is somebody else, or nobody.
fn far(service: &Service, client: SocketAddr, known: Option<Known>) -> SocketAddr {
    if service.mode != Mode::Fullnat {
        return client;
    }
    let [local, _] = world::local_addresses(service.is_six);
    known.and_then(|known| known.local).unwrap_or((local, *service.local_ports.start()).into())
}
