//! `[[service]]` and its real servers.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use dataplane::service::{
    Helper, Limits, MAX_TIMEOUT_SECONDS, MAX_WEIGHT, Mode, Persistence, Protocol, Scheduler, SchedulerFlag,
    State, Timeouts, Track,
};
use itertools::Itertools;

use super::check::{names, narrow, one_of};
use super::compare::{self, repeated};
use super::limit::limit;
use super::mark::{Marked, Marks};
use super::raw::{Field, Section};
use super::sources::sources;
use super::value::{self, PORTS, SERVER, SOCKET};
use super::{Server, ServerState, Service, Sloppy, availability, checks, fullnat, quic_lb, tunnel};

const SECOND: Duration = Duration::from_secs(1);

/// The keys of `[[service]]` that are read here.
const SERVICE_KEYS: [&str; 22] = [
    "address",
    "mark",
    "ports",
    "protocol",
    "mode",
    "tunnel",
    "fullnat",
    "scheduler",
    "flags",
    "port",
    "timeouts",
    "sloppy_tcp",
    "sloppy_sctp",
    "persistence",
    "one_packet",
    "helper",
    "track",
    "sources",
    "limit",
    "quic_lb",
    "check",
    "server",
];

/// A service, and the sections of its real servers.
pub(super) fn read<'d>(section: &Section<'d>, marks: &Marks) -> (Option<Service>, Vec<Section<'d>>) {
    section.known(&[&SERVICE_KEYS[..], &availability::KEYS[..]].concat());
    let mark = section.optional("mark", |field| mark(&field, section, marks));
    let marked = mark.as_ref().and_then(Option::as_ref);
    let (address, protocol) = match section.get("mark") {
        None => (
            section
                .require("address", SOCKET)
                .and_then(|field| field.parse(SOCKET, value::socket_of_any_port)),
            section.or("protocol", Protocol::Tcp, |field| {
                one_of("protocol", &names(Protocol::ALL), Protocol::from_name, &field)
            }),
        ),
        Some(_) => (marked.map(|marked| marked.key().address), marked.map(Marked::protocol)),
    };
    let ports = section.or("ports", Vec::new(), |field| ports(&field, address));
    let modes = names(Mode::ALL);
    let mode = section
        .require("mode", format_args!("one of {}", modes.join(", ")))
        .and_then(|field| one_of("mode", &modes, Mode::from_name, &field));
    let tunnel = tunnel::read(section, mode);
    let fullnat = fullnat::read(section, mode, address, protocol);
    let scheduler = section.or("scheduler", Scheduler::Maglev, |field| {
        one_of("scheduler", &names(Scheduler::ALL), Scheduler::from_name, &field)
    });
    let flags = section.or("flags", Vec::new(), |field| flags(&field, scheduler));
    let port = section.optional("port", |field| field.string("the name of a port").map(str::to_owned));
    let timeouts = section.or("timeouts", Timeouts::default(), |field| {
        let all = mark
            .as_ref()?
            .as_ref()
            .map_or_else(|| vec![protocol], |marked| marked.protocols().map(Some).collect());
        timeouts(&field.section()?, &all.into_iter().collect::<Option<Vec<_>>>()?)
    });
    // Each is for its own protocol, as with IPVS, where they are for all services.
    let sloppy_tcp = section.or("sloppy_tcp", false, |field| field.boolean());
    let sloppy_sctp = section.or("sloppy_sctp", false, |field| field.boolean());
    let one_packet =
        section.or("one_packet", false, |field| match field.boolean()? {
            true if protocol.is_some_and(|protocol| protocol != Protocol::Udp) => field
                .error("a connection of TCP or SCTP is more than a packet; expected it with protocol = \"udp\" only"),
            true if mode == Some(Mode::Fullnat) => field
                .error("nobody would remember whose a local port is; expected it without mode = \"fullnat\""),
            true if marked.is_some_and(|marked| marked.protocols().any(|protocol| protocol != Protocol::Udp)) => field
                .error("a connection of TCP or SCTP is more than a packet; expected it with rules of protocol = \"udp\" only"),
            // It would take all that its servers send for replies, their own questions to others, too.
            true if mode == Some(Mode::Nat) && address.is_some_and(|address| address.port() == 0) => field
                .error("nothing would tell replies from what a server begins; expected mode = \"dr\" or \"tunnel\" with all ports, or a port"),
            one_packet => Some(one_packet),
        });
    let sources = sources(section);
    let limit = limit(section, address, protocol, one_packet);
    let persistence = section.optional("persistence", |field| persistence(&field.section()?, address));
    if mode == Some(Mode::Nat)
        && marked.is_some_and(|marked| marked.has_twice(Protocol::Tcp))
        && let Some(field) = section.section("limit").and_then(|limit| limit.get("half_open_rate"))
    {
        field.error::<()>(
            "some port of the mark is that of two addresses, and an answer that nobody remembers would not tell from which it comes; \
             expected mode = \"dr\" or \"tunnel\", or a mark for each address",
        );
    }
    let has_gate = limit.is_some_and(|limit| limit.is_some_and(|limit| limit.half_open.is_some()));
    let is_persistent = section.get("persistence").is_some();
    let helper = section.optional("helper", |field| {
        let kind = (address, protocol, mode);
        match one_of("helper", &names(Helper::ALL), Helper::from_name, &field)? {
            _ if section.get("mark").is_some() => field.error("is for one address; expected persistence without it, and a mark for all of the ports, those of data connections, too"),
            Helper::Ftp => ftp(&field, kind, (is_persistent, has_gate)),
            Helper::Ipsec => ipsec(&field, kind, ports.as_deref()?, one_packet?),
        }
    });
    let checks = section.or("check", Vec::new(), |field| checks::read(&field, address, protocol));

    let keeps_port = |address: &SocketAddr| address.port() == 0 || mode.is_some_and(Mode::is_one_way);
    let kept_port = address.filter(keeps_port).map(|address| address.port());
    let availability = availability::read(section, address.zip(mode), kept_port);

    let sections = section.sections("server");
    let track = section
        .or("track", Track::All, |field| track(&field, (section, &sections), (protocol, mode, scheduler)));
    let checked = section.get("check").is_some();
    let context = ServerContext { address, mode, checked };
    let servers: Vec<Option<Server>> = sections.iter().map(|server| context.server(server)).collect();
    compare::servers(&sections, &servers);
    let quic_lb = quic_lb::read(section, protocol, &sections, &servers);
    let tunnel = tunnel.filter(|tunnel| tunnel::has_source_of_use(section, tunnel, &servers));
    let sorry = availability.as_ref().and_then(|availability| availability.sorry_server);
    let sorry = sorry.zip(section.get("sorry_server"));
    if let Some((sorry, field)) = &sorry
        && servers.iter().flatten().any(|server| server.address == *sorry)
    {
        field.error::<()>(format_args!("{sorry} is one of the service's real servers; expected another one"));
    }
    if helper == Some(Some(Helper::Ipsec)) {
        let servers = sections.iter().zip(&servers);
        let servers =
            servers.filter_map(|(section, server)| Some(((*server)?.address, section.get("address")?)));
        keep_port(address, servers.chain(sorry));
    }

    let read = || {
        Some(Service {
            address: address?,
            mark: mark?,
            ports: ports?,
            protocol: protocol?,
            mode: mode?,
            tunnel: tunnel?,
            fullnat: fullnat?,
            scheduler: scheduler?,
            flags: flags?,
            port: port?,
            timeouts: timeouts?,
            sloppy: Sloppy { tcp: sloppy_tcp?, sctp: sloppy_sctp? },
            persistence: persistence?,
            one_packet: one_packet?,
            helper: helper?,
            track: track?,
            sources: sources?,
            limit: limit?,
            quic_lb: quic_lb?,
            checks: checks?,
            availability: availability?,
            servers: servers.into_iter().collect::<Option<_>>()?,
        })
    };
    (read(), sections)
}

/// What a service of a mark has. That it is of a mark says all that these keys would.
fn mark(field: &Field<'_>, section: &Section<'_>, marks: &Marks) -> Option<Marked> {
    for key in ["address", "protocol", "ports"] {
        if let Some(other) = section.get(key) {
            return other
                .error("is in the rules of the service's mark; expected it in [[mark]], or no `mark` here");
        }
    }
    marks.of(field)
}

/// Those of all ports that a service has.
fn ports(field: &Field<'_>, service: Option<SocketAddr>) -> Option<Vec<RangeInclusive<u16>>> {
    let ranges = ranges(field)?;
    if let Some(service) = service.filter(|service| service.port() != 0) {
        return field.error(format_args!(
            "the service is of port {} alone; expected address = \"{}\" with several ports",
            service.port(),
            SocketAddr::new(service.ip(), 0)
        ));
    }
    Some(ranges)
}

/// A list of ports and ranges of them, in ascending order and without touching each other.
pub(super) fn ranges(field: &Field<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    let mut ranges = field.all(|element| match element.is_integer() {
        true => narrow(element.integer(1..=65_535)).map(|port: u16| port..=port),
        false => element.parse(PORTS, value::ports),
    })?;
    if ranges.is_empty() {
        return field.error("is empty; expected at least one port, or no such key for all of them");
    }
    ranges.sort_by_key(|range| *range.start());
    if let Some((one, other)) = ranges.iter().tuple_windows().find(|(one, other)| one.end() >= other.start())
    {
        return field.error(format_args!(
            "{} and {} overlap; expected each port once",
            value::shown_ports(one),
            value::shown_ports(other)
        ));
    }
    Some(touching(ranges))
}

/// Ascending ranges without overlap, of which what touches is one.
pub(super) fn touching(ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    let joined = ranges.into_iter().coalesce(|one, other| match *one.end() + 1 == *other.start() {
        true => Ok(*one.start()..=*other.end()),
        false => Err((one, other)),
    });
    joined.collect()
}

/// IKE is a connection, and what follows it has no ports.
fn ipsec(
    field: &Field<'_>,
    (address, protocol, mode): (Option<SocketAddr>, Option<Protocol>, Option<Mode>),
    ports: &[RangeInclusive<u16>],
    one_packet: bool,
) -> Option<Helper> {
    const IKE: u16 = 500;
    match (address?, protocol?, mode?) {
        (_, Protocol::Tcp | Protocol::Sctp, _) => {
            field.error("IKE is over UDP; expected it with protocol = \"udp\" only")
        }
        (_, _, Mode::Fullnat) => {
            field.error("a local address is that of many clients, whom only ports tell apart; expected mode = \"nat\", \"dr\" or \"tunnel\"")
        }
        _ if one_packet => field.error("ESP and AH follow a connection; expected it without one_packet"),
        (address, ..) if address.port() == IKE => Some(Helper::Ipsec),
        (address, ..) if address.port() == 0 && (ports.is_empty() || ports.iter().any(|range| range.contains(&IKE))) => {
            Some(Helper::Ipsec)
        }
        (address, ..) => field.error(format_args!(
            "IKE is at port {IKE}; expected address = \"{}\", or port 0 with {IKE} among its ports",
            SocketAddr::new(address.ip(), IKE)
        )),
    }
}

/// It finds the client's server by its template, at whatever port.
fn ftp(
    field: &Field<'_>,
    (address, protocol, mode): (Option<SocketAddr>, Option<Protocol>, Option<Mode>),
    (is_persistent, has_gate): (bool, bool),
) -> Option<Helper> {
    match (address?, protocol?, mode?) {
        (_, Protocol::Udp | Protocol::Sctp, _) => field.error("FTP is over TCP; expected it with protocol = \"tcp\" only"),
        (_, _, Mode::Dr | Mode::Tunnel | Mode::Fullnat) => field.error(
            "it is for mode = \"nat\" only; expected persistence and all ports without it, and servers that announce the virtual address",
        ),
        (address, ..) if address.port() != 0 => field.error(format_args!(
            "data connections come to any port; expected address = \"{}\", of which clients reach port 21 and, with a connection there, those from 1024 on",
            SocketAddr::new(address.ip(), 0)
        )),
        _ if !is_persistent => {
            field.error("data connections go where their client's control connection went; expected persistence, too, e.g. persistence = {}")
        }
        // It would let clients through without a word, to all ports.
        _ if has_gate => field.error("data connections are with one server, and the gate of limit.half_open_rate passes clients on by hash; expected one of the two"),
        _ => Some(Helper::Ftp),
    }
}

/// What needs each connection's word cannot be had without.
fn track(
    field: &Field<'_>,
    (section, servers): (&Section<'_>, &[Section<'_>]),
    (protocol, mode, scheduler): (Option<Protocol>, Option<Mode>, Option<Scheduler>),
) -> Option<Track> {
    if one_of("track", &names(Track::ALL), Track::from_name, field)? == Track::All {
        return Some(Track::All);
    }
    if section.get("mark").is_some() {
        return field.error("a mark's connections are of several services; expected an address in its place");
    }
    match (protocol?, mode?, scheduler?) {
        (Protocol::Udp | Protocol::Sctp, ..) => {
            return field.error("only packets of TCP say whether they begin a connection; expected it with protocol = \"tcp\" only");
        }
        (_, Mode::Nat | Mode::Fullnat, _) => {
            return field.error("what a server replies is changed by its connection's entry; expected mode = \"dr\" or \"tunnel\"");
        }
        (.., scheduler) if !scheduler.is_consistent() => {
            return field.error(format_args!(
                "{scheduler} does not find a connection's server again when servers come and go; expected scheduler = \"maglev\" or \"rendezvous\""
            ));
        }
        _ => {}
    }
    for (key, why) in [
        ("persistence", "a client comes back by what is remembered of it"),
        ("limit", "what has no entry cannot be counted"),
    ] {
        if let Some(other) = section.get(key) {
            return other.error(format_args!("{why}; expected no `{key}` with track = \"at-risk\""));
        }
    }
    match servers.iter().find_map(|server| server.get("upper_threshold")) {
        Some(limited) => limited
            .error("what has no entry cannot be counted; expected no threshold with track = \"at-risk\""),
        None => Some(Track::AtRisk),
    }
}

/// Whose servers have to be at the service's port.
fn keep_port<'d>(service: Option<SocketAddr>, servers: impl Iterator<Item = (SocketAddr, Field<'d>)>) {
    let Some(service) = service else { return };
    for (address, field) in servers.filter(|(address, _)| address.port() != service.port()) {
        field.error::<()>(format_args!(
            "what follows IKE has no port by which it would come back; expected \"{}\"",
            SocketAddr::new(address.ip(), service.port())
        ));
    }
}

fn flags(field: &Field<'_>, scheduler: Option<Scheduler>) -> Option<Vec<SchedulerFlag>> {
    let expected = |scheduler| {
        let of = |flag: &&SchedulerFlag| flag.scheduler() == scheduler;
        let flags: Vec<SchedulerFlag> = SchedulerFlag::ALL.iter().filter(of).copied().collect();
        if flags.is_empty() {
            format!("none for {scheduler}")
        } else {
            format!("one of {}", names(&flags).join(", "))
        }
    };
    let flags = field.all(|element| {
        let flag = one_of("flag", &names(SchedulerFlag::ALL), SchedulerFlag::from_name, &element)?;
        match scheduler {
            Some(scheduler) if flag.scheduler() != scheduler => element.error(format_args!(
                "flag {flag} belongs to {}; expected {}",
                flag.scheduler(),
                expected(scheduler)
            )),
            _ => Some(flag),
        }
    })?;
    for (index, _) in repeated(&flags) {
        let element = field.elements()?.into_iter().nth(index)?;
        element.error::<()>(format_args!("flag {} stands there twice; expected it once", flags[index]));
    }
    Some(flags)
}

fn timeouts(section: &Section<'_>, protocols: &[Protocol]) -> Option<Timeouts> {
    let states = || protocols.iter().flat_map(|&protocol| State::of_protocol(protocol));
    let keys: Vec<String> = states().map(State::timeout_key).collect();
    section.known(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let mut timeouts = Timeouts::default();
    let mut good = true;
    for state in states() {
        match section.optional(&state.timeout_key(), timeout) {
            Some(Some(seconds)) => timeouts.0[state as usize] = seconds,
            Some(None) => {}
            None => good = false,
        }
    }
    good.then_some(timeouts)
}

/// Whole seconds, as LVS has them.
pub(super) fn timeout(field: Field<'_>) -> Option<u32> {
    let longest = Duration::from_secs(MAX_TIMEOUT_SECONDS.into());
    let time = field.duration(SECOND..=longest)?;
    match time.subsec_nanos() {
        0 => u32::try_from(time.as_secs()).ok(),
        _ => field.error(format_args!(
            "{} is not a whole number of seconds; expected e.g. \"{}s\"",
            humantime::format_duration(time),
            time.as_secs().max(1)
        )),
    }
}

fn persistence(section: &Section<'_>, service: Option<SocketAddr>) -> Option<Persistence> {
    section.known(&["timeout", "prefix", "expire_quiescent"]);
    let seconds = section.or("timeout", State::Template.default_timeout(), timeout);
    let longest = if service.is_some_and(|service| service.is_ipv4()) { 32 } else { 128 };
    let prefix = section.or("prefix", longest, |field| narrow(field.integer(1..=u64::from(longest))));
    let expire_quiescent = section.or("expire_quiescent", false, |field| field.boolean());
    Some(Persistence { seconds: seconds?, prefix: prefix?, expire_quiescent: expire_quiescent? })
}

/// `upper_threshold` and `lower_threshold` of a real server.
fn limits(section: &Section<'_>) -> Option<Option<Limits>> {
    let upper =
        section.optional("upper_threshold", |field| narrow(field.integer(1..=u64::from(u32::MAX))))?;
    let most = upper.unwrap_or(u32::MAX);
    let lower = section.optional("lower_threshold", |field| narrow(field.integer(1..=u64::from(most))))?;
    match (upper, section.get("lower_threshold")) {
        (None, Some(field)) => field.error("has nothing to go with; expected upper_threshold as well"),
        _ => Some(upper.map(|upper| Limits::new(upper, lower))),
    }
}

/// What a real server takes from its service.
struct ServerContext {
    address: Option<SocketAddr>,
    mode: Option<Mode>,
    checked: bool,
}

impl ServerContext {
    fn server(&self, section: &Section<'_>) -> Option<Server> {
        section.known(&[
            "address",
            "weight",
            "upper_threshold",
            "lower_threshold",
            "quic_id",
            "check",
            "state",
        ]);
        let typed = section.require("address", SERVER);
        let is_of_all_ports = self.address.is_some_and(|service| service.port() == 0);
        let read = if is_of_all_ports { value::endpoint_of_any_port } else { value::endpoint };
        let endpoint = typed.as_ref().and_then(|field| field.parse(SERVER, read));
        let weight = section.or("weight", 1, |field| narrow(field.integer(0..=u64::from(MAX_WEIGHT))));
        let limits = limits(section);
        let quic_id = quic_lb::server_id(section);
        let check = section.or("check", self.checked, |field| match field.boolean()? {
            true if !self.checked => {
                field.error("the service has no check; expected false, or a [service.check]")
            }
            check => Some(check),
        });
        let states = ServerState::ALL.map(ServerState::name);
        let state = section.or("state", ServerState::Enabled, |field| {
            one_of("state", &states, ServerState::from_name, &field)
        });
        let ((address, port), service) = (endpoint?, self.address?);
        if let Err(wrong) = value::server_family(address, service.ip(), self.mode) {
            return typed?.error(wrong);
        }
        if is_of_all_ports && port.is_some_and(|port| port != 0) {
            return typed?.error(format_args!(
                "a service of all ports leaves a packet's as it is; expected \"{address}\""
            ));
        }
        // The packet arrives as it is, so its port is what the real server must listen on.
        if let Some(mode) = self.mode.filter(|mode| mode.is_one_way())
            && port.is_some_and(|port| port != service.port())
        {
            let what = if mode == Mode::Dr { "direct routing" } else { "a tunnel" };
            return typed?.error(format_args!(
                "{what} cannot change the port; expected \"{}\" or \"{address}\"",
                SocketAddr::new(address, service.port())
            ));
        }
        let address = SocketAddr::new(address, port.unwrap_or(service.port()));
        let (weight, limits, quic_id) = (weight?, limits?, quic_id?);
        Some(Server { address, weight, limits, quic_id, check: check?, state: state? })
    }
}
