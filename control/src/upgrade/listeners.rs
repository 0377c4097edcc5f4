//! The admin API's listeners. Who connects during an upgrade waits on them, and finds the new program.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::Result;

use super::{HandOver, Inheritance, Item};
use crate::admin::{self, tcp};
use crate::config::Config;

/// The listeners once more, in case somebody follows.
pub struct Heirlooms {
    socket: admin::Heirloom,
    remote: Option<io::Result<OwnedFd>>,
}

impl Heirlooms {
    /// Leaves them to the program that follows.
    pub fn hand_on(self, hand_over: &mut HandOver) {
        hand_over.leave(Item::Socket, Ok(self.socket.hand_on()));
        if let Some(remote) = self.remote {
            hand_over.leave(Item::Remote, remote);
        }
    }
}

/// Listens for whoever asks: where the predecessor did, if that is where the configuration says, or anew.
pub async fn listen(
    config: &Config,
    inheritance: &mut Option<Inheritance>,
) -> Result<(admin::Socket, Option<tcp::Listener>, Heirlooms)> {
    let mut inherited = |item| inheritance.as_mut().and_then(|inheritance| inheritance.item(&item));
    let path = &config.admin.socket;
    let socket =
        match inherited(Item::Socket).map(|socket| admin::inherit(socket, path)).transpose()?.flatten() {
            Some(socket) => socket,
            None => admin::bind(path, config.admin.group.as_deref()).await?,
        };
    let remote =
        match inherited(Item::Remote).map(|remote| tcp::inherit(remote, config)).transpose()?.flatten() {
            Some(remote) => Some(remote),
            None => tcp::bind(config)?,
        };
    let heirlooms =
        Heirlooms { socket: socket.heirloom()?, remote: remote.as_ref().map(tcp::Listener::heirloom) };
    Ok((socket, remote, heirlooms))
}
