//! `[sync]`: peer routers, which are told of connections.

use std::net::SocketAddr;
use std::path::Path;

use dataplane::changes::is_told;
use dataplane::service::State;

use super::error::quoted;
use super::file;
use super::raw::{Field, Section};
use super::value::{self, ENDPOINT};
use crate::sync::session::Key;

/// Peer routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Where peers reach this router.
    pub listen: SocketAddr,
    /// Where the peers are reached, by the same family.
    pub peers: Vec<SocketAddr>,
    /// What all of them know and nobody else.
    pub key: Key,
    /// The states of the connections that peers are told of.
    pub states: Vec<State>,
}

const KEY: &str = "the absolute path of a file with 64 hexadecimal digits, e.g. from `openssl rand -hex 32`, the same \
     on all routers";

pub(super) fn sync(section: &Section<'_>) -> Option<Sync> {
    section.known(&["listen", "peers", "key_file", "states"]);
    let listen = section.require("listen", "an address of this machine, ADDRESS:PORT");
    let listen = listen.and_then(|field| field.parse(ENDPOINT, value::socket));
    let list = section.require("peers", "the other routers' sync.listen, e.g. [\"10.9.0.2:8848\"]");
    let peer = |field: Field<'_>| {
        let peer = field.parse(ENDPOINT, value::socket)?;
        // One socket reaches them all.
        match listen.map_or(Ok(()), |listen| value::same_family(peer.ip(), listen.ip(), "sync.listen")) {
            Ok(()) => Some(peer),
            Err(wrong) => field.error(wrong),
        }
    };
    let peers = list.clone().and_then(|field| field.all(peer));
    let key = section
        .require("key_file", KEY)
        .and_then(|field| field.parse(KEY, |typed| read_key(Path::new(typed))));
    let states = section.or("states", states().collect(), |field| {
        let states = field.all(state)?;
        if states.is_empty() { field.error("names none; expected at least one state") } else { Some(states) }
    });
    let (listen, peers, key, states) = (listen?, peers?, key?, states?);
    if peers.is_empty() || peers.contains(&listen) {
        return list?.error("names this router or none; expected the sync.listen of all others");
    }
    Some(Sync { listen, peers, key, states })
}

/// The states of connections of which peers can be told: all of these by default.
pub fn states() -> impl Iterator<Item = State> {
    State::ALL.iter().copied().filter(|&state| is_told(state, true))
}

fn state(field: Field<'_>) -> Option<State> {
    let keys: Vec<String> = states().map(State::timeout_key).collect();
    field.parse(&format!("one of {}", keys.join(", ")), |typed| {
        let named = states().find(|state| state.timeout_key() == typed);
        named.ok_or_else(|| format!("{} is no state of connections that peers can be told of", quoted(typed)))
    })
}

fn read_key(path: &Path) -> Result<Key, String> {
    file::key(path).map(Key)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_64_digits_that_not_everybody_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let read = |contents: &str, mode| {
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read_key(&path)
        };
        let digits = "00FFa5".to_owned() + &"0".repeat(58);
        assert_eq!(read(&format!("{digits}\n"), 0o600).unwrap().0[..4], [0, 0xFF, 0xA5, 0]);
        assert!(read(&digits, 0o604).unwrap_err().contains("is open to everybody"));
        for wrong in ["", &digits[1..], &format!("{digits}00"), &digits.replace('F', "g")] {
            assert!(read(wrong, 0o600).unwrap_err().ends_with("has no key"), "{wrong}");
        }
    }
}
