//! The SCTP states of LVS, as tables of the directions that are seen, and the checksum of RFC 9260.

use crate::tcp::{Seen, State};

/// What a packet says of its association, by the rows of the tables.
pub const INIT: u8 = 1;
pub const ABORT: u8 = 9;

/// Columns are the old states; rows are data, INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE, ERROR and ABORT.
const FROM_CLIENT: &str = "
    NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    I1 IN IN CS CR CW CO CE ES SS SR SA IN IN
    CW CW CW CS CR CO CO CE ES SS SR SA RJ CL
    CR IN IN CR CR CW CO CE ES SS SR SA RJ CL
    ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL
    SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    CL IN IN CS CR CW CO CE ES CL SR CL RJ CL
    CL CL CL CS CR CW CO CE ES SS SR CL RJ CL
    CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL
    CL CL CL CL CL RJ CL CL CL CL CL CL CL CL";
const FROM_SERVER: &str = "
    NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    CW CW CW CW CW CW CW CW ES CW CW CW CW CW
    CS CS CS CS CR CW CO CE ES SS SR SA RJ CL
    CE CE CE CE CE CE CE CE ES SS SR SA RJ CL
    ES ES ES ES ES ES ES ES ES SS SR SA RJ CL
    SS SS SS SS SS SS SS SS SS SS SR SA RJ CL
    SA SA SA SA SA CW CO CE ES SA SA SA RJ CL
    CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    CL CL CL CL CL CW CO CE ES SS SR SA RJ CL
    CL RJ CL CL CL CL CL CL CL CL CL CL CL CL";
const ONLY_FROM_CLIENT: &str = "
    NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL
    I1 IN IN IN IN IN CO CE ES SS SR SA IN IN
    CE CE CE CE CE CE CO CE ES SS SR SA RJ CL
    ES ES ES ES ES ES CO CE ES SS SR SA RJ CL
    ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL
    SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL
    CL IN IN CS CR CW CO CE CL CL SR CL RJ CL
    CL CL CL CL CL CW CO CE ES SS CL CL RJ CL
    CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL
    CL CL CL CL CL RJ CL CL CL CL CL CL CL CL";

/// The state after a packet that says this.
pub fn next(seen: Seen, state: State, event: u8) -> State {
    let table = match seen {
        Seen::FromClient => FROM_CLIENT,
        Seen::FromServer => FROM_SERVER,
        Seen::OnlyFromClient => ONLY_FROM_CLIENT,
    };
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    let column = rows[0].iter().position(|name| state_of(name) == state).expect("a state of SCTP");
    state_of(rows[1 + usize::from(event)][column])
}

fn state_of(abbreviation: &str) -> State {
    match abbreviation {
        "NO" => State::None,
        "I1" => State::Init1,
        "IN" => State::Init,
        "CS" => State::CookieSent,
        "CR" => State::CookieReplied,
        "CW" => State::CookieWait,
        "CO" => State::Cookie,
        "CE" => State::CookieEchoed,
        "ES" => State::Established,
        "SS" => State::ShutdownSent,
        "SR" => State::ShutdownReceived,
        "SA" => State::ShutdownAckSent,
        "RJ" => State::Rejected,
        "CL" => State::Closed,
        other => unreachable!("{other} is in no table"),
    }
}

/// The row of a packet: an ABORT counts before all others, else the first chunk that says anything new.
pub fn event_of(packet: &[u8]) -> u8 {
    let mut events = Vec::new();
    let mut at = 12;
    while at + 4 <= packet.len() {
        events.push(match packet[at] {
            1 => 1,
            2 => 2,
            10 => 3,
            11 => 4,
            7 => 5,
            8 => 6,
            14 => 7,
            9 => 8,
            6 => ABORT,
            _ => 0,
        });
        let length = usize::from(u16::from_be_bytes([packet[at + 2], packet[at + 3]]));
        if length < 4 {
            break;
        }
        at += length.next_multiple_of(4);
    }
    match events.contains(&ABORT) {
        true => ABORT,
        false => events.into_iter().find(|&event| event != 0).unwrap_or(0),
    }
}

/// CRC32c, a bit at a time (RFC 9260, appendix A), over a packet whose own checksum counts as zero.
pub fn checksum(packet: &[u8]) -> [u8; 4] {
    let bytes = packet.iter().enumerate().map(|(at, &byte)| if (8..12).contains(&at) { 0 } else { byte });
    let crc = bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    });
    (!crc).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_crc32c() {
        // RFC 3720, appendix B.4: of 32 zeros.
        assert_eq!(checksum(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
    }
}
