//! Looks after ports while they run: their links, and whether they still work.
//!
//! Drivers tell of a link by an interrupt, or say that they do, or lose it; so each port is asked once a second, which none takes
//! for an order to wait. The twin follows: it loses its carrier, as the interface of a NIC would, so that keepalived, BIRD and
//! whoever else looks at it know.
//!
//! A device that is taken out is let go of, and opened again when it is back ([`super::Slot`]).
//!
//! A device that has been reset by somebody else is opened anew only by what takes all of them down and up again, since workers
//! hold their queues: an upgrade to the same program. That goes without losses if the connections are kept; if they are not, it is
//! refused, and the operator chooses when to restart.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use dpdk::{Link, Notice};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Known, Slot};
use crate::admin::api::{self, LinkText};
use crate::events::{Events, Kind};
use crate::net::{Linux, Twin};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// How long a link may be down at the beginning before its twin loses its carrier, where that is no news: a NIC that was opened
/// anew by an upgrade agrees with the other end anew, and so do the members of a bond.
const AT_FIRST: Duration = Duration::from_secs(8);

/// After a device that is back could not be opened.
const AFTER_FAILURE: Duration = Duration::from_secs(15);

/// What is asked of a port.
pub(super) trait Watched {
    /// Its link, if it can tell.
    fn link(&self) -> Option<Link>;
    /// How its members are, if it is a bond.
    fn members(&self) -> Vec<api::Member>;
    /// What it has said of itself. One that has no device has had it taken out.
    fn notice(&self) -> Option<Notice>;
    /// Whether it has a device that it can go on without.
    fn can_be_let_go(&self) -> bool;
    /// Goes on without its device, which nobody uses any more when this returns.
    async fn let_go(&self) -> Result<()>;
    /// Whether it has no device, and there is one again.
    fn is_back(&self) -> bool;
    /// Goes on with the device that is there; what is known of that.
    async fn bring_back(&self) -> Result<Known>;
}

/// Who looks after ports.
pub struct Watch {
    linux: Linux,
    events: Events,
    /// Told when a device has to be opened anew.
    reopen: Rc<Notify>,
    /// Until when a link that is down is nothing to be told of.
    patient_until: Option<Instant>,
    ports: Vec<One>,
}

/// A port, and what has been told of it.
struct One {
    name: String,
    known: Arc<Known>,
    /// The port's own, and those of the tagged networks on its wire.
    twins: Vec<Rc<Twin>>,
    told: Option<bool>,
    /// Whether each of its members was up, as it was told last.
    members: Vec<bool>,
    /// What the twin has.
    carrier: Option<bool>,
    has_complained: bool,
    notice: Option<Notice>,
    /// Before this moment no device is opened.
    not_before: Instant,
}

impl Watch {
    /// Of the ports with these names, in their order; `reopen` is told when one has to be opened anew. A patient one gives them a
    /// moment to find their links.
    pub fn new(
        linux: Linux,
        events: Events,
        reopen: Rc<Notify>,
        ports: Vec<(String, Arc<Known>, Vec<Rc<Twin>>)>,
        is_patient: bool,
    ) -> Watch {
        let one = |(name, known, twins)| One {
            name,
            known,
            twins,
            told: None,
            members: Vec::new(),
            carrier: None,
            has_complained: false,
            notice: None,
            not_before: Instant::now(),
        };
        Watch {
            linux,
            events,
            reopen,
            patient_until: is_patient.then(|| Instant::now() + AT_FIRST),
            ports: ports.into_iter().map(one).collect(),
        }
    }

    /// Looks after them for ever.
    pub async fn run(self, ports: &[Slot]) {
        self.watch(ports).await
    }

    pub(super) async fn watch(mut self, ports: &[impl Watched]) {
        let mut look = interval(PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let is_patient = self.patient_until.is_some_and(|until| Instant::now() < until);
            for (one, port) in self.ports.iter_mut().zip(ports) {
                if one.has_changed_for_the_worse(port, &self.events) == Some(Notice::Reset) {
                    self.reopen.notify_one();
                }
                one.count(port.members(), is_patient, &self.events);
                one.follow(port, is_patient, &self.linux, &self.events).await;
                if one.notice == Some(Notice::Removed) {
                    one.exchange(port, &self.events).await;
                }
            }
        }
    }
}

impl One {
    /// What the device has said of itself since the last look.
    fn has_changed_for_the_worse(&mut self, port: &impl Watched, events: &Events) -> Option<Notice> {
        let notice = port.notice().filter(|notice| Some(*notice) > self.notice)?;
        self.notice = Some(notice);
        let port = self.name.clone();
        events.publish(match notice {
            Notice::Removed => Kind::PortRemoved { port },
            Notice::Reset => Kind::PortReset { port },
        });
        Some(notice)
    }

    /// Lets go of a device that is taken out, and takes one that is back.
    async fn exchange(&mut self, port: &impl Watched, events: &Events) {
        let name = &self.name;
        if port.can_be_let_go() {
            match port.let_go().await {
                Ok(()) => tracing::warn!("port {name}: its device is taken out and closed; it has no link"),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "port {name}: its device is not closed")
                }
            }
        } else if port.is_back() && Instant::now() >= self.not_before {
            match port.bring_back().await {
                Ok(known) => {
                    self.known.replace(known);
                    self.notice = None;
                    tracing::info!("port {name}: its device is back");
                    events.publish(Kind::PortReturned { port: name.clone() });
                }
                Err(error) => {
                    self.not_before = Instant::now() + AFTER_FAILURE;
                    let (error, again) = (format!("{error:#}"), AFTER_FAILURE.as_secs());
                    tracing::error!(
                        error,
                        "port {name}: its device is back and cannot be opened; trying again in {again} s"
                    );
                }
            }
        }
    }

    /// Tells of members of a bond that come and go. At the start all of them are expected to be up.
    fn count(&mut self, members: Vec<api::Member>, is_patient: bool, events: &Events) {
        self.members.resize(members.len(), true);
        for (was_up, member) in self.members.iter_mut().zip(&members) {
            if *was_up == member.up || is_patient {
                continue;
            }
            *was_up = member.up;
            let (port, member) = (self.name.clone(), member.name.clone());
            let kind =
                if *was_up { Kind::MemberUp { port, member } } else { Kind::MemberDown { port, member } };
            tracing::info!("{kind}");
            events.publish(kind);
        }
        self.known.set_members(members);
    }

    /// Has the twin follow the link.
    async fn follow(&mut self, port: &impl Watched, is_patient: bool, linux: &Linux, events: &Events) {
        // One that is gone may still believe in its link.
        let link = match (self.notice, port.link()) {
            (None, Some(link)) => link,
            (None, None) => return,
            (Some(_), _) => Link { up: false, speed: None },
        };
        self.known.set(link, self.notice.map(word));
        if !link.up && is_patient {
            return;
        }
        // That it is up at the start is what everybody expects.
        if self.told.unwrap_or(true) != link.up {
            let (port, speed) = (self.name.clone(), link.speed);
            tracing::info!("port {port}: link {}", LinkText { up: link.up, speed });
            events.publish(if link.up { Kind::LinkUp { port, speed } } else { Kind::LinkDown { port } });
        }
        self.told = Some(link.up);
        if self.carrier == Some(link.up) {
            return;
        }
        let mut done = Ok(());
        for twin in &self.twins {
            done = done.and(linux.set_carrier(twin.ifindex(), link.up).await);
        }
        match done {
            Ok(()) => self.carrier = Some(link.up),
            // It is tried again, and said once.
            Err(error) if !self.has_complained => {
                self.has_complained = true;
                let error = format!("{error:#}");
                tracing::warn!(twin = self.name, error, "the twin does not follow the port's link");
            }
            Err(_) => {}
        }
    }
}

fn word(notice: Notice) -> &'static str {
    match notice {
        Notice::Reset => "reset",
        Notice::Removed => "removed",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::process::Command;

    use futures_util::FutureExt;

    use super::*;
    use crate::net::tests::in_namespace;

    /// A port whose link is as a test wants it.
    struct Port {
        link: Cell<Option<Link>>,
        /// Whether its members are up, if it is a bond.
        members: Cell<Option<[bool; 2]>>,
        notice: Cell<Option<Notice>>,
        /// Whether it can go on without its device.
        can_be_let_go: Cell<bool>,
        /// What comes of opening the device that is back, once there is one.
        back: Cell<Option<Result<(), &'static str>>>,
        /// How often that has been tried.
        tries: Cell<u32>,
    }

    impl Watched for Port {
        fn link(&self) -> Option<Link> {
            self.link.get()
        }

        fn members(&self) -> Vec<api::Member> {
            let member = |(name, up): (&&str, bool)| api::Member {
                name: (*name).to_owned(),
                up,
                sends: up,
                link_up: up,
                link_speed: None,
            };
            ["a", "b"].iter().zip(self.members.get().into_iter().flatten()).map(member).collect()
        }

        fn notice(&self) -> Option<Notice> {
            self.notice.get()
        }

        fn can_be_let_go(&self) -> bool {
            self.can_be_let_go.get()
        }

        async fn let_go(&self) -> Result<()> {
            self.can_be_let_go.set(false);
            Ok(())
        }

        fn is_back(&self) -> bool {
            self.back.get().is_some()
        }

        async fn bring_back(&self) -> Result<Known> {
            self.tries.set(self.tries.get() + 1);
            self.back.get().unwrap_or(Ok(())).map_err(anyhow::Error::msg)?;
            self.back.set(None);
            self.notice.set(None);
            self.can_be_let_go.set(true);
            Ok(Known::made_up())
        }
    }

    const UP: Link = Link { up: true, speed: Some(10_000) };
    const DOWN: Link = Link { up: false, speed: None };

    /// What Linux thinks of the twin's cable.
    fn has_carrier() -> bool {
        let shown = Command::new("ip").args(["link", "show", "dev", "wan"]).output().expect("run ip");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("wan"), "{shown}");
        !shown.contains("NO-CARRIER")
    }

    /// A port with this link, its twin, and who looks after both.
    async fn watched(link: Link, is_upgrade: bool) -> (Port, Watch, Arc<Known>, Events) {
        let linux = Linux::open().unwrap();
        let twin = Rc::new(Twin::create(&linux, "wan", [2, 0, 0, 0, 0, 1], 1500, true).await.unwrap());
        let (events, known) = (Events::default(), Arc::new(Known::made_up()));
        let port = Port {
            link: Cell::new(Some(link)),
            members: Cell::new(None),
            notice: Cell::new(None),
            can_be_let_go: Cell::new(false),
            back: Cell::new(None),
            tries: Cell::new(0),
        };
        let ports = vec![("wan".to_owned(), known.clone(), vec![twin])];
        let watch = Watch::new(linux, events.clone(), Rc::default(), ports, is_upgrade);
        (port, watch, known, events)
    }

    /// The texts of all events so far.
    async fn told(events: &Events) -> Vec<String> {
        let batch = events.read(None, false).batch().await.unwrap_or_default();
        batch.iter().map(|event| event.kind.to_string()).collect()
    }

    /// Long enough for some looks; nobody waits for it, as the clock jumps.
    async fn looks() {
        tokio::time::sleep(4 * PERIOD).await;
    }

    #[test]
    fn the_twin_follows_the_link() {
        in_namespace(async || {
            let (port, watch, known, events) = watched(UP, false).await;
            let ports = [port];
            let story = async {
                looks().await;
                assert!(has_carrier());
                assert_eq!(told(&events).await, [""; 0]);
                ports[0].link.set(Some(DOWN));
                looks().await;
                assert!(!has_carrier());
                assert!(!known.describe().link_up);
                // A driver that cannot say for once.
                ports[0].link.set(None);
                looks().await;
                assert!(!has_carrier());
                ports[0].link.set(Some(UP));
                looks().await;
                assert!(has_carrier());
                assert_eq!((known.describe().link_up, known.describe().link_speed), (true, Some(10_000)));
                assert_eq!(told(&events).await, ["port wan: link down", "port wan: link up 10 Gbit/s"]);
            };
            tokio::time::pause();
            tokio::select! { () = watch.watch(&ports) => unreachable!("it never ends"), () = story => {} }
        });
    }

    #[test]
    fn a_device_that_is_taken_out_has_no_link_whatever_it_says() {
        in_namespace(async || {
            let (port, watch, known, events) = watched(UP, false).await;
            let (ports, reopen) = ([port], watch.reopen.clone());
            let story = async {
                looks().await;
                assert_eq!(reopen.notified().now_or_never(), None);
                ports[0].notice.set(Some(Notice::Reset));
                looks().await;
                // Once, however long it takes.
                assert_eq!(reopen.notified().now_or_never(), Some(()));
                looks().await;
                assert_eq!(reopen.notified().now_or_never(), None);
                assert_eq!(known.describe().trouble.as_deref(), Some("reset"));
                ports[0].notice.set(Some(Notice::Removed));
                looks().await;
                assert!(!has_carrier());
                assert_eq!(known.describe().trouble.as_deref(), Some("removed"));
                assert_eq!(reopen.notified().now_or_never(), None);
                let told = told(&events).await;
                assert!(told[0].starts_with("port wan: its device has been reset"), "{told:?}");
                assert_eq!(told[1..], ["port wan: link down", "port wan: its device has been taken out"]);
            };
            tokio::time::pause();
            tokio::select! { () = watch.watch(&ports) => unreachable!("it never ends"), () = story => {} }
        });
    }

    #[test]
    fn a_device_that_is_taken_out_is_let_go_of_and_opened_when_it_is_back() {
        in_namespace(async || {
            let (port, watch, known, events) = watched(UP, false).await;
            let ports = [port];
            let port = &ports[0];
            port.can_be_let_go.set(true);
            let story = async {
                looks().await;
                port.notice.set(Some(Notice::Removed));
                looks().await;
                assert!(!port.can_be_let_go.get(), "nobody has let go of it");
                assert!(!has_carrier());
                // There is one, which cannot be opened yet.
                port.back.set(Some(Err("not yet")));
                looks().await;
                assert_eq!(port.tries.get(), 1, "it is not tried in a row");
                assert_eq!(known.describe().trouble.as_deref(), Some("removed"));
                port.back.set(Some(Ok(())));
                tokio::time::sleep(AFTER_FAILURE).await;
                assert_eq!(port.tries.get(), 2);
                assert!(has_carrier());
                assert_eq!(known.describe().trouble, None);
                // It may go again.
                port.notice.set(Some(Notice::Removed));
                looks().await;
                assert!(!port.can_be_let_go.get() && !has_carrier());
                let out = ["port wan: its device has been taken out", "port wan: link down"];
                let back = ["port wan: its device is back", "port wan: link up 10 Gbit/s"];
                assert_eq!(told(&events).await, [out, back, out].concat());
            };
            tokio::time::pause();
            tokio::select! { () = watch.watch(&ports) => unreachable!("it never ends"), () = story => {} }
        });
    }

    #[test]
    fn members_of_a_bond_come_and_go() {
        in_namespace(async || {
            tokio::time::pause();
            let (port, watch, known, events) = watched(UP, true).await;
            let ports = [port];
            let are_up = async |members| {
                ports[0].members.set(Some(members));
                looks().await;
            };
            let story = async {
                // They have not found each other yet.
                are_up([false, false]).await;
                assert_eq!(told(&events).await, [""; 0]);
                are_up([true, true]).await;
                tokio::time::sleep(AT_FIRST).await;
                assert_eq!(told(&events).await, [""; 0]);
                are_up([true, false]).await;
                assert_eq!(told(&events).await, ["port wan: member b down"]);
                assert!(!known.describe().members[1].up && known.describe().members[0].up);
                are_up([true, true]).await;
                assert_eq!(told(&events).await[1..], ["port wan: member b up"]);
            };
            tokio::select! { () = watch.watch(&ports) => unreachable!("it never ends"), () = story => {} }
        });
    }

    #[test]
    fn after_an_upgrade_a_nic_has_a_moment_to_find_its_link_again() {
        in_namespace(async || {
            tokio::time::pause();
            let (port, watch, _, events) = watched(DOWN, true).await;
            let ports = [port];
            let story = async {
                looks().await;
                assert!(has_carrier());
                tokio::time::sleep(AT_FIRST).await;
                assert!(!has_carrier());
                assert_eq!(told(&events).await, ["port wan: link down"]);
            };
            tokio::select! { () = watch.watch(&ports) => unreachable!("it never ends"), () = story => {} }
        });
    }
}
