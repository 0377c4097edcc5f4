//! The TCP states of LVS, as its users know them: a table for each direction that is seen.

use crate::packet::{ACK, FIN, RST, SYN};

/// A state, by its name in `ipvsadm -Lnc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    None,
    Established,
    SynSent,
    SynRecv,
    FinWait,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    SynAck,
    Udp,
    // Of SCTP.
    Init1,
    Init,
    CookieSent,
    CookieReplied,
    CookieWait,
    Cookie,
    CookieEchoed,
    ShutdownSent,
    ShutdownReceived,
    ShutdownAckSent,
    Rejected,
    Closed,
}

/// What is seen of a connection, and which side has spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The client, where replies are seen, too.
    FromClient,
    /// The real server.
    FromServer,
    /// The client, where replies are not seen.
    OnlyFromClient,
}

/// Columns are the old states, rows the events syn, fin, ack and rst.
const FROM_CLIENT: &str = "
    NO ES SS SR FW TW CL CW LA LI SA
    SR ES ES SR SR SR SR SR SR SR SR
    CL CW SS TW TW TW CL CW LA LI TW
    ES ES SS ES FW TW CL CW CL LI ES
    CL CL CL SR CL CL CL CL LA LI SR";
const FROM_SERVER: &str = "
    NO ES SS SR FW TW CL CW LA LI SA
    SS ES SS SR SS SS SS SS SS LI SR
    TW FW SS TW FW TW CL TW LA LI TW
    ES ES SS ES FW TW CL CW LA ES ES
    CL CL SS CL CL TW CL CL CL CL CL";
const ONLY_FROM_CLIENT: &str = "
    NO ES SS SR FW TW CL CW LA LI SA
    SR ES ES SR SR SR SR SR SR SR SR
    CL FW SS TW FW TW CL CW LA LI TW
    ES ES SS ES FW TW CL CW CL LI ES
    CL CL CL SR CL CL CL CL LA LI CL";

/// The state after a segment with these flags.
pub fn next(seen: Seen, state: State, flags: u8) -> State {
    let table = match seen {
        Seen::FromClient => FROM_CLIENT,
        Seen::FromServer => FROM_SERVER,
        Seen::OnlyFromClient => ONLY_FROM_CLIENT,
    };
    let Some(event) = [RST, SYN, FIN, ACK].into_iter().find(|flag| flags & flag != 0) else { return state };
    let row = match event {
        SYN => 2,
        FIN => 3,
        ACK => 4,
        _ => 5,
    };
    let cells: Vec<&str> = table.lines().nth(row).unwrap().split_whitespace().collect();
    state_of(cells[state as usize])
}

fn state_of(abbreviation: &str) -> State {
    match abbreviation {
        "NO" => State::None,
        "ES" => State::Established,
        "SS" => State::SynSent,
        "SR" => State::SynRecv,
        "FW" => State::FinWait,
        "TW" => State::TimeWait,
        "CL" => State::Close,
        "CW" => State::CloseWait,
        "LA" => State::LastAck,
        "LI" => State::Listen,
        "SA" => State::SynAck,
        other => unreachable!("{other} is in no table"),
    }
}

impl State {
    /// Its name in listings.
    pub fn name(self) -> &'static str {
        match self {
            State::None => "NONE",
            State::Established => "ESTABLISHED",
            State::SynSent => "SYN_SENT",
            State::SynRecv => "SYN_RECV",
            State::FinWait => "FIN_WAIT",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::Listen => "LISTEN",
            State::SynAck => "SYNACK",
            State::Udp => "UDP",
            State::Init1 => "INIT1",
            State::Init => "INIT",
            State::CookieSent => "C-SENT",
            State::CookieReplied => "C-REPLIED",
            State::CookieWait => "C-WAIT",
            State::Cookie => "COOKIE",
            State::CookieEchoed => "C-ECHOED",
            State::ShutdownSent => "S-SENT",
            State::ShutdownReceived => "S-RECEIVED",
            State::ShutdownAckSent => "S-ACK-SENT",
            State::Rejected => "REJECTED",
            State::Closed => "CLOSED",
        }
    }

    /// Whether LVS counts it under ActiveConn.
    pub fn is_active(self) -> bool {
        matches!(self, State::Established | State::SynSent | State::SynRecv | State::SynAck)
    }

    /// Seconds of silence that end a connection, by LVS.
    pub fn timeout(self) -> u32 {
        match self {
            State::None => 2,
            State::Established => 900,
            State::SynSent | State::FinWait | State::TimeWait | State::Listen | State::SynAck => 120,
            State::SynRecv | State::CloseWait => 60,
            State::Close => 10,
            State::LastAck => 30,
            State::Udp => 300,
            State::Init1 | State::Rejected => 4,
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
}
