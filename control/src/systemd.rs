//! What the service manager is told: that RVS is ready, that it reloads, stops, and still lives.
//!
//! systemd gives a unit of `Type=notify` the path of a socket in `NOTIFY_SOCKET` (sd_notify(3)). Without it,
//! all of this does nothing. Nothing here may stop RVS or make it wait: what cannot be delivered is
//! logged, and that is all.
//!
//! With `WatchdogSec=` the manager expects a sign of life. It comes from the director's own loop, so that
//! a control thread that is stuck, or waits for an answer that never comes, is found out and replaced.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager, if there is one. Copies speak to the same.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    socket: Option<Rc<UnixDatagram>>,
    watchdog: Option<Duration>,
    status: String,
}

impl Manager {
    /// The one that has started this process.
    pub fn from_environment() -> Manager {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Manager::default() };
        Manager::at(&path, sd_notify::watchdog_enabled()).unwrap_or_else(|error| {
            let path = path.to_string_lossy().into_owned();
            tracing::warn!(path, %error, "cannot reach the service manager; going on without");
            Manager::default()
        })
    }

    /// The one that listens at this path; one that begins with `@` is abstract. `watchdog` is the time after which it
    /// misses a sign of life.
    pub fn at(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Manager> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read does not hold up the control thread.
        socket.set_nonblocking(true)?;
        Ok(Manager { socket: Some(Rc::new(socket)), watchdog, status: String::new() })
    }

    /// All is up; also after a reload, whether it was refused or not.
    pub fn ready(&mut self, status: &str) {
        self.status = status.to_owned();
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload begins.
    pub fn reloading(&self) {
        // From 253 on, systemd wants to know when, so as not to take an old message for a new one.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the monotonic clock"),
        }
    }

    /// What `systemctl status` shows; sent when it has changed.
    pub fn status(&mut self, status: &str) {
        if self.status != status {
            self.status = status.to_owned();
            self.send(&[NotifyState::Status(status)]);
        }
    }

    /// The end begins.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// Whether anybody listens, and a status is worth working out.
    pub fn listens(&self) -> bool {
        self.socket.is_some()
    }

    /// The signs of life, two in the time after which one is missed.
    pub fn watchdog(&self) -> Watchdog {
        let every = self.watchdog.map(|time| time / 2).filter(|time| !time.is_zero() && self.listens());
        let interval = every.map(|every| {
            let mut interval = interval(every);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Watchdog { manager: self.clone(), interval }
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        // Lines of a datagram; a status of several lines would be taken for several assignments.
        let line = |state: &NotifyState<'_>| state.to_string().replace('\n', " ") + "\n";
        let message: String = states.iter().map(line).collect();
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(message = message.trim_end(), %error, "cannot tell the service manager");
        }
    }
}

/// Says from time to time that its owner lives.
#[derive(Debug)]
pub struct Watchdog {
    manager: Manager,
    interval: Option<Interval>,
}

impl Watchdog {
    /// Waits until a sign of life is due, and gives it; for ever if nobody wants one.
    pub async fn tick(&mut self) {
        match &mut self.interval {
            Some(interval) => {
                interval.tick().await;
                self.manager.send(&[NotifyState::Watchdog]);
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    /// A service manager at a path, and what connects to it.
    fn manager(watchdog: Option<Duration>) -> (UnixDatagram, Manager, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (socket, Manager::at(path.as_os_str(), watchdog).unwrap(), directory)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn the_life_of_a_service() {
        let (socket, mut manager, _directory) = manager(None);
        manager.ready("2 services");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=2 services\n");
        manager.status("2 services");
        manager.status("one server\nless");
        assert_eq!(heard(&socket), "STATUS=one server less\n");
        manager.reloading();
        let reload = heard(&socket);
        let clock = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(clock.trim().parse::<u64>().unwrap() > 0);
        manager.stopping();
        assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=stopping\n");
    }

    #[test]
    fn an_abstract_socket() {
        let name = format!("rvs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Manager::at(format!("@{name}").as_ref(), None).unwrap().ready("");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=\n");
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_in_the_time() {
        let (socket, manager, _directory) = manager(Some(Duration::from_secs(30)));
        let mut watchdog = manager.watchdog();
        let start = Instant::now();
        for passed in [0, 15, 30] {
            watchdog.tick().await;
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            assert_eq!(start.elapsed().as_secs(), passed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_manager_nothing_happens() {
        let mut nobody = Manager::default();
        nobody.ready("");
        nobody.stopping();
        let mut watchdog = nobody.watchdog();
        assert!(timeout(Duration::from_secs(3600), watchdog.tick()).await.is_err());
        let (_socket, unwatched, _directory) = manager(None);
        assert!(timeout(Duration::from_secs(3600), unwatched.watchdog().tick()).await.is_err());
    }

    #[test]
    fn a_manager_that_has_gone_or_does_not_read_holds_nothing_up() {
        let (socket, mut manager, _directory) = manager(None);
        // Far more than a socket takes.
        (0..10_000).for_each(|number| manager.status(&number.to_string()));
        drop(socket);
        manager.ready("still there");
    }
}
