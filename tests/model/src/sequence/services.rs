//! Services with servers, in all their kinds.

use std::ops::RangeInclusive;

use dataplane::service::{Helper, Mode, Persistence, Protocol, Scheduler, SchedulerFlag};
use dataplane::snapshot::MssClamp;
use dataplane::snat::SnatTimeouts;
use dataplane::wire::tunnel::Encapsulation;
use proptest::prelude::*;
use proptest::sample::select;

use super::at_risk::{at_risk, with_tracking};
use super::quic::{configs, with_ids};
use crate::world::{self, Face, Here, LAN, Limit, SERVERS, Server, Service, Snat, Sources, Tunnel, WAN};

/// One to three of them.
pub(super) fn services() -> impl Strategy<Value = Vec<Service>> {
    let service = (service(), at_risk(), configs())
        .prop_map(|(service, wish, configs)| with_ids(with_tracking(service, wish), configs));
    prop::collection::vec((service, any::<bool>()), 1..=3).prop_map(placed)
}

/// Each service has addresses of its own, or if it wants to and they are free, those of the one before it, and of its servers.
fn placed(wishes: Vec<(Service, bool)>) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for (mut service, shares) in wishes {
        let wished = std::mem::take(&mut service.faces);
        (service.place, service.faces) = (services.len(), free(&service, &services, &wished, services.len()));
        if let Some(last) = services.last().filter(|_| shares) {
            let shared = free(&service, &services, &wished, last.faces[0].place);
            if !shared.is_empty() {
                service.faces = shared;
                let mut others = services.iter().filter(|other| other.place == last.place);
                let is_blurred = others.any(|other| are_blurred(&service, other));
                service.place = if is_blurred { services.len() } else { last.place };
            }
        }
        services.push(service);
    }
    services
}

/// Whether nobody could tell of which of two services a server's packet is, if it had both: they keep their ports, and one of them has several
/// addresses; or they have one port at two addresses.
fn are_blurred(one: &Service, other: &Service) -> bool {
    let ends =
        |service: &Service| (service.faces[0].protocol, service.faces[0].port, service.is_of_all_ports());
    let keep_ports = one.is_of_all_ports() && other.is_of_all_ports();
    one.mode == Mode::Nat && other.mode == Mode::Nat && (keep_ports || ends(one) == ends(other))
}

/// The faces that a service can have beside others, from this place on. By NAT no two of them have a port in common: its servers could not tell them apart.
fn free(service: &Service, others: &[Service], wished: &[Face], place: usize) -> Vec<Face> {
    // Of an address, what is left over by those that have ports of it may have another service.
    let is_rest = |marked: bool, face: &Face| !marked && face.all_ports.is_some();
    let mut free: Vec<Face> = Vec::new();
    for face in wished {
        let face = Face { place: face.place + place, ..face.clone() };
        let is_twice = |one: &Face| {
            (service.mode == Mode::Nat || one.place == face.place)
                && one.protocol == face.protocol
                && meet(one, &face)
        };
        let is_taken = |other: &Service| {
            let mut same =
                other.faces.iter().filter(|one| (one.place, one.protocol) == (face.place, face.protocol));
            same.any(|one| {
                let is_apart = one.incoming.zip(face.incoming).is_some_and(|(one, face)| one != face);
                !is_apart
                    && is_rest(other.is_marked, one) == is_rest(service.is_marked, &face)
                    && meet(one, &face)
            })
        };
        let mut others = others.iter().filter(|other| other.is_six == service.is_six);
        if !free.iter().any(is_twice) && !others.any(is_taken) {
            free.push(face);
        }
    }
    free
}

/// Whether two faces have a port in common.
fn meet(one: &Face, other: &Face) -> bool {
    let first = |face: &Face| match &face.all_ports {
        None => vec![world::virtual_address(false, face).port()],
        Some(ports) if ports.is_empty() => vec![0],
        Some(ports) => ports.iter().map(|range| *range.start()).collect(),
    };
    let has = |face: &Face, port: u16| face.takes(port) || world::virtual_address(false, face).port() == port;
    first(one).into_iter().any(|port| has(other, port)) || first(other).into_iter().any(|port| has(one, port))
}

/// What a mark has: at one address or two, over TCP, UDP and SCTP.
fn faces() -> impl Strategy<Value = Vec<Face>> {
    let protocol = prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)];
    let ports = select(vec![vec![], vec![443..=443u16], vec![80..=80, 443..=8079], vec![8080..=9000]]);
    let incoming = select(vec![None, None, Some(WAN), Some(LAN)]);
    let face = (select(vec![0, 3usize]), protocol, ports, incoming);
    let face = face.prop_map(|(place, protocol, ports, incoming)| Face {
        place,
        protocol,
        port: 0,
        all_ports: Some(ports),
        incoming,
        live: true,
    });
    prop::collection::vec(face, 1..=3)
}

fn service() -> impl Strategy<Value = Service> {
    let others = select(vec![
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sed,
        Scheduler::Nq,
        Scheduler::Sh,
        Scheduler::Dh,
        Scheduler::Fo,
        Scheduler::Ovf,
        Scheduler::Twos,
        Scheduler::Mh,
        Scheduler::Rendezvous,
        Scheduler::P2c,
    ]);
    // To fill its table takes longer than a sequence.
    let scheduler = prop_oneof![24 => others, 1 => Just(Scheduler::Maglev)];
    let kind = (
        prop::bool::weighted(0.3),
        prop_oneof![12 => Just(Protocol::Tcp), 6 => Just(Protocol::Udp), 3 => Just(Protocol::Sctp)],
        prop_oneof![6 => Just(Mode::Nat), 3 => Just(Mode::Dr), 2 => Just(Mode::Tunnel), 3 => Just(Mode::Fullnat)],
        scheduler,
        any::<(bool, bool)>(),
    );
    let timeout = prop_oneof![4 => Just(900u32), 1 => Just(3), 1 => Just(17), 1 => Just(100_000)];
    let servers = prop::collection::vec(server(), 1..=SERVERS);
    let prefixes = select(vec![[32, 128], [28, 112], [16, 48]]);
    let persistence = (select(vec![20u32, 300]), prefixes, any::<bool>());
    let persistence = prop::option::weighted(0.25, persistence);
    let special = (prop::bool::weighted(0.15), prop::bool::weighted(0.15), persistence);
    let local_ports = select(vec![1024..=1024u16, 1024..=1025, 1024..=65_535]);
    let all_ports = prop::option::weighted(0.25, select(vec![vec![], vec![80..=80, 443..=9000]]));
    let ways = (
        (all_ports, prop::option::weighted(0.2, faces())),
        tunnel(),
        (local_ports, prop::bool::weighted(0.4)),
        prop::option::weighted(0.15, sources()),
        (
            prop::option::weighted(0.15, limit()),
            prop::option::weighted(0.25, ike_ports()),
            prop::bool::weighted(0.2),
        ),
    );
    (kind, timeout, special, ways, servers).prop_map(|(kind, timeout, special, ways, mut servers)| {
        let ((all_ports, marked), tunnel, (local_ports, proxy), sources, (limit, ike_ports, is_ftp)) = ways;
        let (sloppy, one_packet, persistence) = special;
        let (is_six, protocol, mode, scheduler, flags) = kind;
        let is_marked = marked.is_some();
        // A local address is that of many clients.
        let ike_ports =
            ike_ports.filter(|_| protocol == Protocol::Udp && mode != Mode::Fullnat && !is_marked);
        // What a gate passes on, or nobody sees come back, has no control connection.
        let is_ftp = is_ftp
            && (protocol, mode, is_marked) == (Protocol::Tcp, Mode::Nat, false)
            && !matches!(limit, Some(Limit::HalfOpen { .. } | Limit::Open(_)));
        let helper = if is_ftp { Some(Helper::Ftp) } else { ike_ports.is_some().then_some(Helper::Ipsec) };
        let port = match (helper, protocol) {
            (Some(Helper::Ipsec), _) => 500,
            (_, Protocol::Tcp | Protocol::Sctp) => 80,
            (_, Protocol::Udp) => 53,
        };
        let all_ports = if is_ftp { Some(Vec::new()) } else { ike_ports.unwrap_or(all_ports) };
        let persistence = persistence.or(is_ftp.then_some((300, [32, 128], false)));
        let faces =
            marked.unwrap_or(vec![Face { place: 0, protocol, port, all_ports, incoming: None, live: true }]);
        // Whom a client without a local port, or with enough connections, would have come back to, nobody can see.
        let is_tight =
            mode == Mode::Fullnat && local_ports.len() <= 2 || matches!(limit, Some(Limit::Open(_)));
        let persistence = persistence.filter(|_| !is_tight);
        let one_packet = one_packet
            && faces.iter().all(|face| face.protocol == Protocol::Udp)
            && persistence.is_none()
            && helper.is_none()
            && mode != Mode::Fullnat;
        let one_packet = one_packet && (mode != Mode::Nat || faces[0].all_ports.is_none());
        servers.iter_mut().for_each(|server| server.is_across &= mode == Mode::Tunnel);
        // Of a client with enough connections nobody can see by lot with whom another one would have been, and so whether it would have arrived.
        let is_by_lot =
            matches!(scheduler, Scheduler::Rr | Scheduler::Wrr | Scheduler::Twos | Scheduler::P2c);
        let may_be_here = mode != Mode::Fullnat && !(is_by_lot && matches!(limit, Some(Limit::Open(_))));
        let may_be = |here| may_be_here && !(is_marked && here == Here::Virtual);
        place_here(&mut servers, may_be);
        let all = match scheduler {
            Scheduler::Sh => [SchedulerFlag::ShFallback, SchedulerFlag::ShPort],
            _ => [SchedulerFlag::MhFallback, SchedulerFlag::MhPort],
        };
        let flags = all.into_iter().zip([flags.0, flags.1]).filter(|&(_, is_set)| is_set);
        let has_flags = matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
        let has_tcp = faces.iter().any(|face| face.protocol == Protocol::Tcp);
        Service {
            is_six,
            place: 0,
            faces,
            is_marked,
            mode,
            scheduler,
            flags: flags.map(|(flag, _)| flag).filter(|_| has_flags).collect(),
            timeout,
            sloppy,
            one_packet,
            persistence: persistence.map(|(seconds, [four, six], expire_quiescent)| Persistence {
                seconds,
                prefix: if is_six { six } else { four },
                expire_quiescent,
            }),
            helper,
            tunnel,
            local_ports,
            proxy: proxy && mode == Mode::Fullnat && has_tcp,
            sources,
            limit,
            is_at_risk: false,
            rosters: None,
            quic: Vec::new(),
            servers,
        }
    })
}

/// Of the servers that wish to be the router itself, those are that may be: at each of its addresses one.
fn place_here(servers: &mut [Server], may_be: impl Fn(Here) -> bool) {
    let mut taken = Vec::new();
    for server in servers {
        server.here = server.here.filter(|here| may_be(*here) && !taken.contains(here));
        server.is_across &= server.here != Some(Here::Virtual);
        taken.extend(server.here);
    }
}

/// The ports of a service that has the helper for IPsec: those of IKE with others, all of its address, or that of IKE alone.
fn ike_ports() -> impl Strategy<Value = Option<Vec<RangeInclusive<u16>>>> {
    select(vec![Some(vec![500..=500, 4500..=4500]), Some(vec![]), None])
}

/// Some of them have clients 1 and 2 of both families.
fn sources() -> impl Strategy<Value = Sources> {
    let prefix = select(vec![
        ("198.51.100.0", 24),
        ("198.51.100.1", 32),
        ("198.51.100.2", 31),
        ("0.0.0.0", 0),
        ("2001:db8:c::", 64),
        ("2001:db8:c::1", 128),
        ("::", 0),
    ]);
    let prefix = prefix.prop_map(|(address, length)| (address.parse().expect("an address"), length));
    let allow = prop::option::of(prop::collection::vec(prefix.clone(), 0..3));
    (allow, prop::collection::vec(prefix, 0..3)).prop_map(|(allow, deny)| Sources { allow, deny })
}

fn limit() -> impl Strategy<Value = Limit> {
    let rate = (select(vec![1u32, 3, 8]), select(vec![1u32, 2, 5]), any::<bool>());
    prop_oneof![
        2 => rate.prop_map(|(rate, burst, of_source)| Limit::Rate { rate, burst, of_source }),
        1 => (1..3u32).prop_map(Limit::Open),
        2 => (1..4u32, 1..4u32).prop_map(|(rate, burst)| Limit::HalfOpen { rate, burst }),
    ]
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let checksum = any::<bool>();
    let encapsulation = prop_oneof![
        Just(Encapsulation::Ipip),
        checksum.prop_map(|checksum| Encapsulation::Gre { checksum }),
        checksum.prop_map(|checksum| Encapsulation::Gue { port: 6080, checksum }),
    ];
    let clamp = select(vec![None, Some(MssClamp::Fit), Some(MssClamp::To(500))]);
    (encapsulation, clamp).prop_map(|(encapsulation, mss_clamp)| Tunnel { encapsulation, mss_clamp })
}

fn server() -> impl Strategy<Value = Server> {
    let weight = prop_oneof![4 => 1u32..=4, 1 => Just(0)];
    let limits = prop::option::weighted(0.15, prop_oneof![Just((2u32, 2u32)), Just((3, 2)), Just((1, 1))]);
    let (is_up, is_known, is_across) =
        (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.3));
    let here = prop::option::weighted(0.15, select(vec![Here::Port, Here::Virtual]));
    (weight, is_up, is_known, is_across, here, limits).prop_map(
        |(weight, up, is_known, is_across, here, limits)| Server {
            weight,
            up,
            leaving: None,
            is_across,
            here,
            is_known,
            quic_id: None,
            limits,
        },
    )
}

/// How hosts inside leave.
pub(super) fn snat() -> impl Strategy<Value = Snat> {
    let timeouts = SnatTimeouts { udp: 17, established: 125, transitory: 10, icmp: 4 };
    select(vec![(2000..=2127u16, 16, 64), (2000..=2007, 4, 4), (2000..=2003, 2, 4)])
        .prop_map(move |(ports, block, limit)| Snat { ports, block, limit, timeouts })
}
