//! The SCTP state machine of IPVS, as its users know it from `ipvsadm -Lnc`.
//!
//! As that of TCP ([`crate::tcp`]) it keeps books and refuses nothing. The states are those of the real server's end (RFC 9260,
//! section 4), with a few more for what that does before it remembers anything: INIT1, INIT, C-SENT and C-REPLIED. Most chunks change
//! nothing in most states; here is what they do change.

use crate::service::State;
use crate::service::State::{
    Closed, Cookie, CookieEchoed, CookieReplied, CookieSent, CookieWait, Established, Init, Init1, None,
    Rejected, ShutdownAckSent, ShutdownReceived, ShutdownSent,
};
use crate::tcp::Direction::{self, In, InOnly, Out};
use crate::wire::sctp::Event;

/// The state after a packet that says this.
pub fn next(direction: Direction, state: State, event: Event) -> State {
    match (direction, event, state) {
        (_, Event::Data, None) => Established,
        (InOnly, Event::Data, CookieWait) => Established,

        (In | InOnly, Event::Init, None) => Init1,
        (In | InOnly, Event::Init, Init1 | Rejected | Closed) => Init,
        (InOnly, Event::Init, CookieSent | CookieReplied | CookieWait) => Init,
        (Out, Event::Init, state) if state != Established => CookieWait,

        (In, Event::InitAck, None | Init1 | Init) => CookieWait,
        (In, Event::InitAck, CookieWait) => Cookie,
        (Out, Event::InitAck, None | Init1 | Init) => CookieSent,
        (InOnly, Event::InitAck, None | Init1 | Init | CookieSent | CookieReplied | CookieWait) => {
            CookieEchoed
        }

        (In, Event::CookieEcho, None | CookieSent) => CookieReplied,
        (In, Event::CookieEcho, Init1) => Init,
        (Out, Event::CookieEcho, state) if state.is_embryonic() => CookieEchoed,
        // The real server's INIT ACK, which is not seen, has been before it.
        (InOnly, Event::CookieEcho, None | Init1 | Init | CookieSent | CookieReplied | CookieWait) => {
            Established
        }

        (In, Event::CookieAck, None | CookieEchoed) => Established,
        (Out, Event::CookieAck, state) if state.is_embryonic() => Established,
        (InOnly, Event::CookieAck, None | CookieSent | CookieReplied | Cookie | CookieEchoed) => Established,

        (In | InOnly, Event::Shutdown, None | Established) => ShutdownReceived,
        (Out, Event::Shutdown, state) if state.is_embryonic() || state == Established => ShutdownSent,

        (In | InOnly, Event::ShutdownAck, None | ShutdownSent | ShutdownAckSent) => Closed,
        (In | InOnly, Event::ShutdownAck, Init1) => Init,
        (InOnly, Event::ShutdownAck, Established) => Closed,
        (
            Out,
            Event::ShutdownAck,
            None | Init1 | Init | CookieSent | CookieReplied | ShutdownSent | ShutdownReceived,
        ) => ShutdownAckSent,

        (In | InOnly, Event::ShutdownComplete, None | Init1 | Init | ShutdownAckSent) => Closed,
        (InOnly, Event::ShutdownComplete, CookieSent | CookieReplied | ShutdownReceived) => Closed,
        (Out, Event::ShutdownComplete, None) => Closed,

        (_, Event::Error, None) => Closed,
        (In, Event::Error, CookieEchoed) => Closed,
        (Out, Event::Error, Init1 | Init | CookieSent | CookieReplied) => Closed,

        (In | InOnly, Event::Abort, CookieWait) => Rejected,
        (Out, Event::Abort, Init1) => Rejected,
        (_, Event::Abort, _) => Closed,

        (_, _, state) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    fn run(steps: &[(Direction, Event, State)]) {
        let mut state = None;
        for &(direction, event, expected) in steps {
            state = next(direction, state, event);
            assert_eq!(state, expected, "after {direction:?} {event:?}");
        }
    }

    const OPENED: [(Direction, Event, State); 4] = [
        (In, Event::Init, Init1),
        (Out, Event::InitAck, CookieSent),
        (In, Event::CookieEcho, CookieReplied),
        (Out, Event::CookieAck, Established),
    ];

    fn after_opening(steps: &[(Direction, Event, State)]) {
        run(&[&OPENED[..], steps].concat());
    }

    #[test]
    fn a_nat_association_shut_down_by_either_end() {
        after_opening(&[
            (In, Event::Data, Established),
            (In, Event::Shutdown, ShutdownReceived),
            (Out, Event::ShutdownAck, ShutdownAckSent),
            (In, Event::ShutdownComplete, Closed),
        ]);
        after_opening(&[
            (Out, Event::Shutdown, ShutdownSent),
            (In, Event::ShutdownAck, Closed),
            (Out, Event::ShutdownComplete, Closed),
        ]);
    }

    #[test]
    fn an_init_sent_again_an_abort_and_a_refusal() {
        run(&[(In, Event::Init, Init1), (In, Event::Init, Init), (Out, Event::InitAck, CookieSent)]);
        run(&[(In, Event::Init, Init1), (Out, Event::Abort, Rejected), (In, Event::Init, Init)]);
        after_opening(&[(Out, Event::Abort, Closed), (In, Event::Data, Closed)]);
    }

    #[test]
    fn a_direct_routing_association_is_known_by_its_clients_packets() {
        run(&[
            (InOnly, Event::Init, Init1),
            (InOnly, Event::CookieEcho, Established),
            (InOnly, Event::Data, Established),
            (InOnly, Event::Shutdown, ShutdownReceived),
            (InOnly, Event::ShutdownComplete, Closed),
        ]);
        run(&[
            (InOnly, Event::Init, Init1),
            (InOnly, Event::CookieEcho, Established),
            (InOnly, Event::ShutdownAck, Closed),
        ]);
    }

    #[test]
    fn an_association_that_the_server_opens() {
        run(&[
            (Out, Event::Init, CookieWait),
            (In, Event::InitAck, Cookie),
            (Out, Event::CookieEcho, CookieEchoed),
            (In, Event::CookieAck, Established),
        ]);
    }

    /// Whatever comes, the state is one of SCTP's, and the shape of each direction's table is what it was: how many of its fields
    /// change the state.
    #[test]
    fn no_packet_leads_out_of_the_states_of_sctp() {
        let states: Vec<State> = State::of_protocol(Protocol::Sctp).collect();
        assert_eq!(states.len(), 14);
        let changes = [In, Out, InOnly].map(|direction| {
            let fields = states.iter().flat_map(|&state| Event::ALL.map(|event| (state, event)));
            fields
                .filter(|&(state, event)| {
                    let next = next(direction, state, event);
                    assert!(states.contains(&next), "{direction:?} {state} {event:?}: {next}");
                    next != state
                })
                .count()
        });
        assert_eq!(changes, [39, 66, 54]);
    }
}
