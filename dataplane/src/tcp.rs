//! The TCP state machine of IPVS, as its users know it from `ipvsadm -Lnc`.
//!
//! It follows connections by one flag of each packet and by direction. It is a bookkeeper, not a
//! firewall: no packet is refused because of its state. With direct routing the replies are not seen, so
//! a table of its own infers the state from the client's packets alone.

use crate::service::State;
use crate::wire::transport::{ACK, FIN, RST, SYN};

/// Which way a packet goes, and what else will be seen of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client, replies are seen (NAT).
    In,
    /// From the real server (NAT).
    Out,
    /// From the client, replies are not seen (direct routing, tunnel, this router itself).
    InOnly,
}

impl Direction {
    /// That of a packet of a client, or of a real server, whose replies take this way or not.
    pub const fn of(inward: bool, is_one_way: bool) -> Self {
        match (inward, is_one_way) {
            (false, _) => Direction::Out,
            (true, false) => Direction::In,
            (true, true) => Direction::InOnly,
        }
    }
}

/// The state after a packet with these flags. Of several flags RST counts before SYN, FIN and ACK; a
/// packet with none of them changes nothing.
#[inline]
pub fn next(direction: Direction, state: State, flags: u8) -> State {
    let event = if flags & RST != 0 {
        3
    } else if flags & SYN != 0 {
        0
    } else if flags & FIN != 0 {
        1
    } else if flags & ACK != 0 {
        2
    } else {
        return state;
    };
    TABLES[direction as usize][event].get(state as usize).copied().unwrap_or(state)
}

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI,
    SynRecv as SR, SynSent as SS, TimeWait as TW,
};

type Table = [[State; 11]; 4];

/// `TABLES[direction][event][old state]`; events syn, fin, ack, rst.
#[rustfmt::skip]
static TABLES: [Table; 3] = [
    //   NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    [   [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR] ],
    [   [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
        [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
        [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL] ],
    [   [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
        [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
        [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
        [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL] ],
];

#[cfg(test)]
mod tests {
    use super::Direction::*;
    use super::*;
    use crate::service::State::None as NO;

    fn run(steps: &[(Direction, u8, State)]) {
        let mut state = NO;
        for &(direction, flags, expected) in steps {
            state = next(direction, state, flags);
            assert_eq!(state, expected, "after {direction:?} {flags:#04x}");
        }
    }

    #[test]
    fn a_nat_connection_closed_by_the_client() {
        run(&[
            (In, SYN, SR),
            (Out, SYN | ACK, SR),
            (In, ACK, ES),
            (Out, ACK, ES),
            (In, FIN | ACK, CW),
            (Out, FIN | ACK, TW),
            (In, ACK, TW),
        ]);
    }

    #[test]
    fn a_nat_connection_closed_by_the_server() {
        run(&[(In, SYN, SR), (Out, SYN | ACK, SR), (In, ACK, ES), (Out, FIN | ACK, FW), (In, FIN | ACK, TW)]);
    }

    #[test]
    fn a_direct_routing_connection_lingers_in_fin_wait() {
        run(&[(InOnly, SYN, SR), (InOnly, ACK, ES), (InOnly, FIN | ACK, FW), (InOnly, ACK, FW)]);
    }

    #[test]
    fn reset_comes_before_all_other_flags() {
        run(&[(In, SYN, SR), (In, ACK, ES), (Out, RST | SYN | FIN | ACK, CL)]);
    }

    #[test]
    fn no_flags_change_nothing() {
        for &state in State::ALL {
            assert_eq!(next(In, state, 0), state);
        }
    }
}
