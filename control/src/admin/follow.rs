//! To follow the events of a router for as long as somebody wants to, whatever happens to the connection meanwhile.
//!
//! A follower knows the number of the last event that it has got and the run that it is of, so it goes on where it stopped:
//! nothing comes twice, and what is lost is told. If the ring has gone on without it, the router says how many are missing;
//! if another router answers, its events are read from the first one on.

use std::io;
use std::time::Duration;

use anyhow::Result;

use super::api;
use super::client::{Client, Heard, Place, Refused};

/// How long it waits until it connects again, the first time; then twice as long each time, up to ...
const PAUSE: Duration = Duration::from_millis(250);
/// ... this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// When following ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the connection does.
    Broken,
    /// When the router stops and says so.
    Stopped,
    /// Not by itself.
    Interrupted,
}

/// Hands over each event after `place` as it happens, and what there is to say of the connection. An error of `event` ends
/// it, and so do a router that cannot be reached at the beginning, and one that refuses.
pub async fn follow(
    client: &Client,
    mut place: Place,
    until: Until,
    mut event: impl FnMut(api::Event) -> io::Result<()>,
    mut note: impl FnMut(&str),
) -> Result<()> {
    let mut pause = PAUSE;
    // What has been said of the trouble, so that it is said once.
    let mut trouble = String::new();
    loop {
        let (mut stopped, mut taken) = (false, true);
        let each = |heard| match heard {
            Heard::Begin { another } => {
                match (another, trouble.is_empty()) {
                    (true, _) => note("another rvs answers; these are its events, from the first one on"),
                    (false, false) => note("connected again"),
                    (false, true) => {}
                }
                trouble.clear();
                pause = PAUSE;
                Ok(())
            }
            Heard::Event(heard) => {
                stopped = heard.event == "stopping";
                let result = event(heard);
                taken = result.is_ok();
                result
            }
        };
        let result = client.events(&mut place, true, each).await;
        let message = match result {
            Ok(()) if until != Until::Interrupted => return Ok(()),
            // It has said that it stops, and the end of its answer has not come through.
            Err(_) if stopped && taken && until == Until::Stopped => return Ok(()),
            Err(error) if until == Until::Broken || !taken || !place.has_begun() || error.is::<Refused>() => {
                return Err(error);
            }
            Ok(()) => "rvs has stopped; waiting for it to come back".to_owned(),
            Err(error) => format!("{error:#}; trying again"),
        };
        if trouble != message {
            note(&message);
            trouble = message;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
