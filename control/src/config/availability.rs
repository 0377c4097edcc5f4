//! What a service does when its real servers come and go: keys of `[[service]]`, with the meaning that keepalived
//! gives to those that it has, too.

use std::net::SocketAddr;
use std::time::Duration;

use dataplane::service::Mode;

use super::check::{narrow, one_of};
use super::raw::{Field, Section};
use super::user::{self, User};
use super::value::{self, ENDPOINT, SOCKET};

/// What a service does when its real servers come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// What becomes of a server whose checks fail.
    pub on_down: OnDown,
    /// What becomes of the connections of a server that is removed.
    pub on_remove: OnRemove,
    /// How long a removed server may keep its connections with [`OnRemove::Drain`].
    pub drain: Duration,
    /// Over which time the weight of a server grows that has come up or is new.
    pub slow_start: Duration,
    /// When a server that goes up and down is left out.
    pub damping: Option<Damping>,
    /// The sum of live weights that the service needs.
    pub quorum: u32,
    /// By how much more it takes to gain the quorum, and less to lose it.
    pub hysteresis: u32,
    /// Serves while there is no quorum.
    pub sorry_server: Option<SocketAddr>,
    /// What clients are told while there is nobody who serves.
    pub refuse: Refuse,
    /// Commands that are run when something changes.
    pub hooks: Hooks,
}

/// What becomes of a server whose checks fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// It gets no connections, and those that could begin anew do so elsewhere: a repeated SYN, any packet of UDP.
    Remove,
    /// It gets no connections, and keeps all that it has (keepalived's `inhibit_on_failure`).
    Quiesce,
}

/// What becomes of the TCP connections of a server that is removed. UDP flows move on at once in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemove {
    /// They go on until they end, or for [`Availability::drain`].
    Drain,
    /// Both ends are told by a RST at the connection's next packet.
    Reset,
    /// They are forgotten. (A client that sends on is told so by Linux.)
    Drop,
}

/// What a client is told that finds no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// "Port unreachable", by ICMP, over TCP as well, as IPVS does.
    Unreachable,
    /// Over TCP a RST, as if nobody listened.
    Reset,
}

/// When a server that goes up and down is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// So many times down ...
    pub downs: u32,
    /// ... within this time ...
    pub within: Duration,
    /// ... and it stays down for this long after its checks pass again.
    pub hold: Duration,
}

/// Commands that are run when something changes. Each is a program's absolute path and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// A server has come up.
    pub up: Vec<String>,
    /// A server has gone down.
    pub down: Vec<String>,
    /// The quorum is gained.
    pub quorum_up: Vec<String>,
    /// The quorum is lost.
    pub quorum_down: Vec<String>,
    /// After which a command is killed.
    pub timeout: Duration,
    /// Who runs them; `None`: whoever runs RVS.
    pub user: Option<User>,
}

/// The keys of `[[service]]` that are read here.
pub(super) const KEYS: [&str; 10] = [
    "on_down",
    "on_remove",
    "drain",
    "slow_start",
    "damping",
    "quorum",
    "hysteresis",
    "sorry_server",
    "refuse",
    "hooks",
];

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Quorums are sums of weights.
const MAX_QUORUM: u64 = 1_000_000_000;

impl Default for Availability {
    /// As keepalived does, but for connections of removed servers, which may end by themselves.
    fn default() -> Self {
        Availability {
            on_down: OnDown::Remove,
            on_remove: OnRemove::Drain,
            drain: 300 * SECOND,
            slow_start: Duration::ZERO,
            damping: None,
            quorum: 1,
            hysteresis: 0,
            sorry_server: None,
            refuse: Refuse::Unreachable,
            hooks: Hooks::default(),
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        let none = Vec::new;
        Hooks {
            up: none(),
            down: none(),
            quorum_up: none(),
            quorum_down: none(),
            timeout: 10 * SECOND,
            user: None,
        }
    }
}

/// What it takes from its service: where that is and its mode, and the port if its packets' ports are not changed: 0 if it is of all.
pub(super) fn read(
    section: &Section<'_>,
    service: Option<(SocketAddr, Mode)>,
    kept_port: Option<u16>,
) -> Option<Availability> {
    let default = Availability::default();
    let on_down = section.or("on_down", default.on_down, |field| {
        let named = |name: &str| match name {
            "remove" => Some(OnDown::Remove),
            "quiesce" => Some(OnDown::Quiesce),
            _ => None,
        };
        one_of("effect", &["remove", "quiesce"], named, &field)
    });
    let on_remove = section.or("on_remove", default.on_remove, |field| {
        let named = |name: &str| match name {
            "drain" => Some(OnRemove::Drain),
            "reset" => Some(OnRemove::Reset),
            "drop" => Some(OnRemove::Drop),
            _ => None,
        };
        one_of("effect", &["drain", "reset", "drop"], named, &field)
    });
    let drain = section.or("drain", default.drain, |field| field.duration(SECOND..=31 * DAY));
    let slow_start = section.or("slow_start", Duration::ZERO, |field| field.duration(Duration::ZERO..=HOUR));
    let damping = section.optional("damping", |field| damping(&field.section()?));
    let quorum = section.or("quorum", default.quorum, |field| narrow(field.integer(1..=MAX_QUORUM)));
    let hysteresis = section.or("hysteresis", 0, |field| narrow(field.integer(0..=MAX_QUORUM)));
    if let (Some(quorum), Some(hysteresis), Some(field)) = (quorum, hysteresis, section.get("hysteresis"))
        && hysteresis >= quorum
    {
        // keepalived says so, too: the quorum could never be lost.
        return field.error(format_args!(
            "{hysteresis} is not less than the quorum, {quorum}; expected 0 to {}",
            quorum - 1
        ));
    }
    let sorry_server = section.optional("sorry_server", |field| {
        let address = match kept_port {
            Some(0) => field.parse(SOCKET, value::socket_of_any_port)?,
            _ => field.parse(ENDPOINT, value::socket)?,
        };
        let family =
            service.map(|(service, mode)| value::server_family(address.ip(), service.ip(), Some(mode)));
        if let Some(Err(wrong)) = family {
            return field.error(wrong);
        }
        match kept_port.filter(|port| *port != address.port()) {
            Some(0) => field.error(format_args!(
                "a service of all ports leaves a packet's as it is; expected \"{}\"",
                SocketAddr::new(address.ip(), 0)
            )),
            Some(port) => field.error(format_args!(
                "port {} is not the service's, which mode nat alone can change; expected port {port}",
                address.port()
            )),
            None => Some(address),
        }
    });
    let refuse = section.or("refuse", default.refuse, |field| {
        let named = |name: &str| match name {
            "unreachable" => Some(Refuse::Unreachable),
            "reset" => Some(Refuse::Reset),
            _ => None,
        };
        one_of("answer", &["unreachable", "reset"], named, &field)
    });
    let hooks = section.or("hooks", Hooks::default(), |field| hooks(&field.section()?));
    Some(Availability {
        on_down: on_down?,
        on_remove: on_remove?,
        drain: drain?,
        slow_start: slow_start?,
        damping: damping?,
        quorum: quorum?,
        hysteresis: hysteresis?,
        sorry_server: sorry_server?,
        refuse: refuse?,
        hooks: hooks?,
    })
}

fn damping(section: &Section<'_>) -> Option<Damping> {
    section.known(&["downs", "within", "hold"]);
    let downs = section.or("downs", 3, |field| narrow(field.integer(2..=1000)));
    let within = section.or("within", 60 * SECOND, |field| field.duration(SECOND..=DAY));
    let hold = section.or("hold", 60 * SECOND, |field| field.duration(SECOND..=DAY));
    Some(Damping { downs: downs?, within: within?, hold: hold? })
}

fn hooks(section: &Section<'_>) -> Option<Hooks> {
    section.known(&["up", "down", "quorum_up", "quorum_down", "timeout", "user"]);
    let hook = |key| section.or(key, Vec::new(), |field| command(&field));
    let (up, down, quorum_up, quorum_down) =
        (hook("up"), hook("down"), hook("quorum_up"), hook("quorum_down"));
    let timeout = section.or("timeout", 10 * SECOND, |field| field.duration(SECOND..=HOUR));
    let user = user::read(section);
    Some(Hooks {
        up: up?,
        down: down?,
        quorum_up: quorum_up?,
        quorum_down: quorum_down?,
        timeout: timeout?,
        user: user?,
    })
}

/// A program and its arguments.
fn command(field: &Field<'_>) -> Option<Vec<String>> {
    const COMMAND: &str = "a program and its arguments, e.g. [\"/usr/local/bin/notify\", \"up\"]";
    let words = field.all(|word| {
        word.parse(COMMAND, |typed| match typed.contains('\0') {
            true => Err("contains a NUL".to_owned()),
            false => Ok(typed.to_owned()),
        })
    })?;
    match words.first() {
        Some(program) if program.starts_with('/') => Some(words),
        Some(program) => field.error(format_args!("{program:?} is not an absolute path; expected {COMMAND}")),
        None => field.error(format_args!("is empty; expected {COMMAND}")),
    }
}
