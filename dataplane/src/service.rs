//! What a service is, in the words of its operators: protocol, forwarding mode, scheduler, timeouts.
//!
//! These are the vocabulary that control (which reads them from the configuration) and the data path
//! (which acts on them) share. Every enum knows its name as it is written in the configuration, so
//! parsing, error messages and listings can never disagree.

/// Defines an enum whose variants are known by the name that a configuration uses for them. Their documentation is what
/// operators are told, too.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $vdoc:literal])+ $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $vdoc])+ $variant),+ }

        impl $name {
            /// Every value, in the order in which help texts list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in configurations and listings.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, for operators: its documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($vdoc),+).trim_ascii_start()),+ }
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// The transport protocol of a service.
    Protocol {
        /// TCP, followed by the state machine of [`crate::tcp`].
        Tcp = "tcp",
        /// UDP: one state, one timeout.
        Udp = "udp",
        /// SCTP, followed by the state machine of [`crate::sctp`].
        Sctp = "sctp",
    }
}

impl Protocol {
    /// The protocol number in an IPv4 header (RFC 791, IANA).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this number, if services can have it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|protocol| protocol.number() == number)
    }
}

named! {
    /// What understands of a service's protocol that its connections belong together.
    Helper {
        /// FTP (RFC 959, RFC 2428): data connections go with their control connection.
        Ftp = "ftp",
        /// IKE (RFC 7296): packets of ESP and AH go with the connection by which their keys were agreed on.
        Ipsec = "ipsec",
    }
}

named! {
    /// Which connections have a word in the table.
    Track {
        /// Each.
        All = "all",
        /// Those that would be with another server without it, or soon may be ([`crate::scheduler::AtRisk`]).
        AtRisk = "at-risk",
    }
}

named! {
    /// How packets reach a real server.
    Mode {
        /// Destination NAT ("masquerading"): the destination becomes the real server, replies come
        /// back through the router and get the virtual address as source.
        Nat = "nat",
        /// Direct routing ("gatewaying"): only MAC addresses and TTL change; the real server holds
        /// the virtual address itself and replies directly.
        Dr = "dr",
        /// Tunnelling: the packet goes unchanged into another one to the real server, which may be anywhere; it holds the
        /// virtual address itself and replies directly.
        Tunnel = "tunnel",
        /// Full NAT: source and destination become a local address of the router and the real server, which so replies to the
        /// router, wherever its routes lead.
        Fullnat = "fullnat",
    }
}

impl Mode {
    /// Whether real servers reply to clients directly, so that replies are not seen here, and ports cannot be changed.
    pub const fn is_one_way(self) -> bool {
        match self {
            Mode::Nat | Mode::Fullnat => false,
            Mode::Dr | Mode::Tunnel => true,
        }
    }
}

named! {
    /// How a new connection's real server is chosen; the semantics are those of Linux IPVS, except for the last three.
    Scheduler {
        /// Round robin.
        Rr = "rr",
        /// Weighted round robin.
        Wrr = "wrr",
        /// Least connections.
        Lc = "lc",
        /// Weighted least connections: the default of IPVS.
        Wlc = "wlc",
        /// Shortest expected delay.
        Sed = "sed",
        /// Never queue.
        Nq = "nq",
        /// Source hashing.
        Sh = "sh",
        /// Destination hashing.
        Dh = "dh",
        /// Maglev hashing, bit-compatible with IPVS `mh`.
        Mh = "mh",
        /// Failover: the server of the highest weight.
        Fo = "fo",
        /// Overflow: the server of the highest weight that has no more active connections than that.
        Ovf = "ovf",
        /// Of two servers drawn by lot, the less loaded one.
        Twos = "twos",
        /// Locality: a virtual address keeps its server until that is overloaded, then that of wlc has it.
        Lblc = "lblc",
        /// The same with a set of servers for each address, which grows when all of them are overloaded.
        Lblcr = "lblcr",
        /// Maglev hashing of the 5-tuple, the default: the same server on every router, and few flows move when servers change.
        Maglev = "maglev",
        /// Rendezvous hashing of the 5-tuple: the same server on every router, and only the flows of a server that goes move.
        Rendezvous = "rendezvous",
        /// Of two servers that the 5-tuple's hash draws, the less loaded one for its weight.
        P2c = "p2c",
    }
}

named! {
    /// Options of the hashing schedulers, as `ipvsadm -b` names them.
    SchedulerFlag {
        /// `sh`: when the hashed server is unusable, try the others.
        ShFallback = "sh-fallback",
        /// `sh`: hash the source port too.
        ShPort = "sh-port",
        /// `mh`: when the hashed server is unusable, try the others.
        MhFallback = "mh-fallback",
        /// `mh`: hash the source port too.
        MhPort = "mh-port",
    }
}

impl Scheduler {
    /// Whether it looks at nothing but a flow's addresses and ports, while servers and weights stay as they are.
    pub const fn is_by_hash(self) -> bool {
        use Scheduler::{Dh, Maglev, Mh, Rendezvous, Sh};
        matches!(self, Sh | Dh | Mh | Maglev | Rendezvous)
    }

    /// Whether a flow mostly stays with its server when another one comes or goes, or gets another weight.
    pub const fn is_consistent(self) -> bool {
        matches!(self, Scheduler::Maglev | Scheduler::Rendezvous)
    }
}

impl SchedulerFlag {
    /// The scheduler that this flag belongs to.
    pub const fn scheduler(self) -> Scheduler {
        match self {
            SchedulerFlag::ShFallback | SchedulerFlag::ShPort => Scheduler::Sh,
            SchedulerFlag::MhFallback | SchedulerFlag::MhPort => Scheduler::Mh,
        }
    }
}

named! {
    /// The state of a connection: the eleven TCP states of IPVS, one for UDP, and the fourteen of SCTP, of which two are TCP's.
    ///
    /// The discriminant is the eight-bit state field of a connection word.
    State {
        /// No packet has made sense yet.
        None = "NONE",
        /// Data flows.
        Established = "ESTABLISHED",
        /// The real server opened (active FTP and the like).
        SynSent = "SYN_SENT",
        /// The client opened.
        SynRecv = "SYN_RECV",
        /// One side has finished.
        FinWait = "FIN_WAIT",
        /// Both sides have finished.
        TimeWait = "TIME_WAIT",
        /// Reset.
        Close = "CLOSE",
        /// The client has finished first.
        CloseWait = "CLOSE_WAIT",
        /// The last acknowledgement is due.
        LastAck = "LAST_ACK",
        /// Not reached by balanced connections; kept for the tables' sake.
        Listen = "LISTEN",
        /// Handshake under suspicion (IPVS `secure_tcp`).
        SynAck = "SYNACK",
        /// UDP has no other.
        Udp = "UDP",
        /// No connection: where a client's next one goes, in a persistent service.
        Template = "TEMPLATE",
        /// SCTP: the client has sent its first INIT.
        Init1 = "INIT1",
        /// SCTP: the client has sent another INIT.
        Init = "INIT",
        /// SCTP: the real server has sent its cookie.
        CookieSent = "C-SENT",
        /// SCTP: the client has sent the cookie back.
        CookieReplied = "C-REPLIED",
        /// SCTP: the real server opened.
        CookieWait = "C-WAIT",
        /// SCTP: the client has answered a real server that opened.
        Cookie = "COOKIE",
        /// SCTP: the real server that opened has sent the cookie back.
        CookieEchoed = "C-ECHOED",
        /// SCTP: the real server shuts down.
        ShutdownSent = "S-SENT",
        /// SCTP: the client shuts down.
        ShutdownReceived = "S-RECEIVED",
        /// SCTP: the real server has acknowledged the shutdown.
        ShutdownAckSent = "S-ACK-SENT",
        /// SCTP: the INIT was answered with an ABORT.
        Rejected = "REJECTED",
        /// SCTP: shut down or aborted.
        Closed = "CLOSED",
    }
}

impl State {
    /// How many states there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The state with this number, if it is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The states of a connection of a protocol, in the order of IPVS.
    pub fn of_protocol(protocol: Protocol) -> impl Iterator<Item = State> {
        match protocol {
            Protocol::Tcp => &Self::ALL[..=State::SynAck as usize],
            Protocol::Udp => &[State::Udp],
            Protocol::Sctp => Self::SCTP,
        }
        .iter()
        .copied()
    }

    /// Whether its handshake is not done yet.
    pub const fn is_embryonic(self) -> bool {
        matches!(
            self,
            State::None
                | State::SynSent
                | State::SynRecv
                | State::SynAck
                | State::Init1
                | State::Init
                | State::CookieSent
                | State::CookieReplied
                | State::CookieWait
                | State::Cookie
                | State::CookieEchoed
        )
    }

    /// Whether it has ended, so that another connection may begin in its place.
    pub const fn is_over(self) -> bool {
        matches!(self, State::TimeWait | State::Close | State::Closed)
    }

    const SCTP: &'static [Self] = &[
        State::None,
        State::Init1,
        State::Init,
        State::CookieSent,
        State::CookieReplied,
        State::CookieWait,
        State::Cookie,
        State::CookieEchoed,
        State::Established,
        State::ShutdownSent,
        State::ShutdownReceived,
        State::ShutdownAckSent,
        State::Rejected,
        State::Closed,
    ];

    /// Whether IPVS counts a connection in this state as active (`ActiveConn`) rather than inactive.
    pub const fn is_active(self) -> bool {
        matches!(self, State::Established | State::SynSent | State::SynRecv | State::SynAck)
    }

    /// The timeout that IPVS uses, in seconds.
    pub const fn default_timeout(self) -> u32 {
        match self {
            State::None => 2,
            State::Established => 900,
            State::SynSent | State::SynAck | State::FinWait | State::TimeWait | State::Listen => 120,
            State::SynRecv | State::CloseWait => 60,
            State::Close => 10,
            State::LastAck => 30,
            State::Udp | State::Template => 300,
            State::Init1 | State::Rejected => 4,
            // The longest time in which a sender tries again (RFC 9260, section 16: RTO.Max), and a second.
            State::Init
            | State::CookieSent
            | State::CookieReplied
            | State::CookieWait
            | State::Cookie
            | State::CookieEchoed
            | State::ShutdownSent
            | State::ShutdownReceived
            | State::ShutdownAckSent
            | State::Closed => 61,
        }
    }

    /// The key under `timeouts` that overrides the timeout, e.g. `fin_wait`.
    pub fn timeout_key(self) -> String {
        self.name().to_ascii_lowercase().replace('-', "_")
    }
}

/// The longest timeout that can be configured: 31 days, as in LVS.
pub const MAX_TIMEOUT_SECONDS: u32 = 31 * 24 * 3600;

/// Seconds of silence after which a connection in each state is forgotten, indexed by [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts(pub [u32; State::COUNT]);

impl Default for Timeouts {
    fn default() -> Self {
        let mut seconds = [0; State::COUNT];
        for &state in State::ALL {
            seconds[state as usize] = state.default_timeout();
        }
        Timeouts(seconds)
    }
}

/// Connections of a client go to the server that its last ones went to (LVS "persistence", session affinity).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// For so many seconds after the last connection began, and as long as one lives.
    pub seconds: u32,
    /// Clients whose addresses are equal in so many bits are one.
    pub prefix: u8,
    /// Whether a server of weight 0 loses its clients; else they come back to it (IPVS' `expire_quiescent_template`).
    pub expire_quiescent: bool,
}

/// How many connections a real server is given (IPVS' upper and lower threshold). Active and inactive ones count, templates do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// With so many it gets no new ones,
    pub upper: u32,
    /// until it has fewer than so many.
    pub lower: u32,
}

impl Limits {
    /// With IPVS' lower threshold, if none is given: three quarters of the upper one.
    pub fn new(upper: u32, lower: Option<u32>) -> Limits {
        Limits { upper, lower: lower.unwrap_or(upper - upper / 4) }
    }
}

/// The largest weight of a real server, as in ipvsadm.
pub const MAX_WEIGHT: u32 = 65535;
