//! Live changes, reloads and leaving servers, against what an operator would expect.

use std::path::Path;
use std::time::Duration;

use dataplane::service::Scheduler;

use super::*;
use crate::config::{self, Config};

/// A file with this, whose router has one worker and one port.
pub(crate) fn config(text: &str) -> Config {
    let text = format!("[workers]\ncores = [0]\n[[port]]\nname = 'wan'\ndevice = 'net_null0'\n{text}");
    config::parse(Path::new("f"), text.into_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// The services of a file.
pub(crate) fn services(text: &str) -> Vec<Service> {
    config(text).services
}

pub(crate) const WEB: &str = "[[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n\
    [[service.server]]\naddress = '10.0.0.11:8080'\n\
    [[service.server]]\naddress = '10.0.0.12:8080'\n";

pub(crate) fn key() -> ServiceKey {
    "tcp/192.0.2.10:80".parse().unwrap()
}

pub(crate) fn address(last: u8) -> SocketAddr {
    SocketAddr::new([10, 0, 0, last].into(), 8080)
}

pub(crate) fn server(services: &[Service], last: u8) -> Option<Server> {
    server_of(service_of(services, key())?, address(last)).copied()
}

pub(crate) fn weigh(services: &mut Services, last: u8, weight: u32) {
    let server = Server { weight, ..server(services.running(), last).unwrap() };
    services.set_server(key(), address(last), Some(server), None, Instant::now());
}

pub(crate) fn reload(all: &mut Services, file: Vec<Service>, now: Instant) -> Vec<String> {
    let plan = all.basis().plan(Arc::new(file));
    assert!(all.fits(&plan));
    all.carry_out(plan, now)
}

fn busy(_: ServiceKey, _: ServerKey) -> bool {
    true
}

fn idle(_: ServiceKey, _: ServerKey) -> bool {
    false
}

#[test]
fn a_live_weight_outlives_reloads_that_leave_the_server_alone() {
    let mut all = Services::new(services(WEB));
    weigh(&mut all, 11, 7);
    let now = Instant::now();
    assert_eq!(reload(&mut all, services(&WEB.replace("nat", "nat'\nscheduler = 'rr")), now), [""; 0]);
    assert_eq!(server(all.running(), 11).unwrap().weight, 7);
    assert_eq!(server(all.file(), 11).unwrap().weight, 1);

    // Whoever edits the entry has the last word.
    let edited = WEB.replace("10.0.0.11:8080'", "10.0.0.11:8080'\nweight = 2");
    assert_eq!(reload(&mut all, services(&edited), now), ["server tcp/192.0.2.10:80 10.0.0.11:8080"]);
    assert_eq!(server(all.running(), 11).unwrap().weight, 2);
}

#[test]
fn taken_back_it_is_no_change() {
    let mut all = Services::new(services(WEB));
    weigh(&mut all, 11, 7);
    weigh(&mut all, 11, 1);
    assert_eq!(all.running(), all.file());
    let edited = WEB.replace("10.0.0.11:8080'", "10.0.0.11:8080'\nweight = 2");
    assert_eq!(reload(&mut all, services(&edited), Instant::now()), [""; 0]);
}

#[test]
fn a_preview_changes_nothing() {
    let mut all = Services::new(services(WEB));
    weigh(&mut all, 11, 7);
    let edited = services(&WEB.replace("10.0.0.12:8080'", "10.0.0.12:8080'\nweight = 2"));
    let plan = all.basis().plan(Arc::new(edited));
    let preview = plan.running();
    assert_eq!((server(preview, 11).unwrap().weight, server(preview, 12).unwrap().weight), (7, 2));
    assert_eq!(server(all.running(), 12).unwrap().weight, 1);
    // It is made while others go on; what they change makes it worthless.
    assert!(all.fits(&plan));
    weigh(&mut all, 12, 5);
    assert!(!all.fits(&plan));
    let plan = all.basis().plan(plan.into_file());
    assert_eq!(server(plan.before(), 12).unwrap().weight, 5);
    assert_eq!(server(plan.running(), 12).unwrap().weight, 2, "the file's entry has been edited");
}

#[test]
fn services_are_copied_only_when_they_differ() {
    let mut all = Services::new(services(WEB));
    let shared = |all: &Services| {
        all.running().as_ptr() == all.file().as_ptr() && all.present().as_ptr() == all.file().as_ptr()
    };
    assert!(shared(&all));
    reload(&mut all, services(WEB), Instant::now());
    assert!(shared(&all));
    weigh(&mut all, 11, 7);
    assert!(!shared(&all));
    assert_eq!((server(all.file(), 11).unwrap().weight, server(all.present(), 11).unwrap().weight), (1, 7));
}

#[test]
fn servers_and_services_come_and_go_live() {
    let mut all = Services::new(services(WEB));
    let now = Instant::now();
    let other = services(&WEB.replace("10.0.0.12", "10.0.0.13"));
    all.set_server(key(), address(13), server(&other, 13), None, now);
    all.set_server(key(), address(12), None, None, now);
    assert!(server(all.running(), 13).is_some() && server(all.running(), 12).is_none());
    assert_eq!(all.running()[0].servers.len(), 2);
    // Of the same file nothing is new.
    assert_eq!(reload(&mut all, services(WEB), now), [""; 0]);
    assert!(server(all.running(), 13).is_some() && server(all.running(), 12).is_none());
    // The file has the server itself now.
    let both = format!("{WEB}[[service.server]]\naddress = '10.0.0.13:8080'\nweight = 5\n");
    assert_eq!(reload(&mut all, services(&both), now).len(), 1);
    assert_eq!(server(all.running(), 13).unwrap().weight, 5);

    let dns = services("[[service]]\naddress = '192.0.2.10:53'\nprotocol = 'udp'\nmode = 'nat'\n").remove(0);
    let dns_key = ServiceKey::of(&dns);
    all.set_service(dns_key, Some((dns, String::new())), now);
    all.set_service(key(), None, now);
    assert_eq!(all.running().iter().map(ServiceKey::of).collect::<Vec<_>>(), [dns_key]);
    // Without its servers' changes: it comes back as the file has it.
    let again = services(&both).remove(0);
    all.set_service(key(), Some((again, both)), now);
    assert_eq!(all.running().len(), 2);
    assert_eq!(server(all.running(), 13).unwrap().weight, 5);
}

#[test]
fn a_service_that_was_removed_and_added_again_is_the_new_one() {
    let mut all = Services::new(services(WEB));
    let now = Instant::now();
    let text = WEB.replace("mode", "scheduler = 'rr'\nmode");
    all.set_service(key(), None, now);
    all.set_service(key(), Some((services(&text).remove(0), text.clone())), now);
    assert_eq!(all.running(), services(&text));
    weigh(&mut all, 11, 7);
    let saved = save::save(WEB, all.file(), all.running(), |key| all.text_of(key)).unwrap();
    assert_eq!(services(&saved), all.running(), "{saved}");
    assert_eq!(reload(&mut all, services(WEB), now), [""; 0], "the file says what it said");
    assert_eq!(server(all.running(), 11).unwrap().weight, 7);
    // Overruled by the file, its text is of no use any more.
    reload(&mut all, services(&WEB.replace("mode", "quorum = 2\nmode")), now);
    assert_eq!((all.running()[0].scheduler, all.running()[0].availability.quorum), (Scheduler::Maglev, 2));
    assert_eq!(all.text_of(key()), None);
    assert_eq!(server(all.running(), 11).unwrap().weight, 7, "of the server the file says what it said");
}

#[test]
fn a_removed_server_drains_until_it_is_idle_or_late() {
    for (later, connections, stays) in [
        (Duration::from_secs(10), busy as fn(_, _) -> _, true),
        (Duration::from_secs(10), idle, false),
        (Duration::from_secs(301), busy, false),
    ] {
        let mut all = Services::new(services(WEB));
        let now = Instant::now();
        let one = &WEB[..WEB.rfind("[[").unwrap()];
        reload(&mut all, services(one), now);
        assert!(server(all.running(), 12).is_none());
        let leaving = server(all.present(), 12).unwrap();
        assert_eq!((leaving.weight, leaving.check), (0, false));
        assert_eq!(all.expire(now + later, connections), !stays);
        assert_eq!(server(all.present(), 12).is_some(), stays);
    }
}

#[test]
fn one_that_comes_back_is_itself_again() {
    let mut all = Services::new(services(WEB));
    let now = Instant::now();
    reload(&mut all, services(""), now);
    assert!(all.running().is_empty());
    assert_eq!(all.present()[0].servers.len(), 2, "a removed service drains, too");
    reload(&mut all, services(WEB), now);
    assert_eq!(all.present().as_slice(), all.running());
    assert!(!all.expire(now + Duration::from_secs(3600), idle));
}

#[test]
fn what_is_dropped_or_moves_on_by_itself_does_not_stay() {
    let now = Instant::now();
    for (text, resets) in [
        (WEB.replace("mode", "on_remove = 'drop'\nmode"), None),
        (WEB.replace("mode", "protocol = 'udp'\nmode"), None),
        (WEB.replace("mode", "on_remove = 'reset'\nmode"), Some(true)),
        (WEB.to_owned(), Some(false)),
    ] {
        let mut all = Services::new(services(&text));
        reload(&mut all, services(""), now);
        let first =
            all.present().first().map(|service| all.is_resetting(ServiceKey::of(service), address(11)));
        assert_eq!(first, resets, "{text}");
    }
    // Another mode is another server; it cannot serve the old one's connections.
    let mut all = Services::new(services(WEB));
    let direct = WEB.replace("nat", "dr").replace(":8080", "");
    reload(&mut all, services(&direct), now);
    assert_eq!(all.present().as_slice(), all.running());
}

#[test]
fn drained_until_a_deadline_then_disabled() {
    let mut all = Services::new(services(WEB));
    let now = Instant::now();
    let drained = Server { state: ServerState::Drained, ..server(all.running(), 11).unwrap() };
    let until = now + Duration::from_secs(60);
    all.set_server(key(), address(11), Some(drained), Some(until), now);
    assert_eq!(all.deadline(key(), address(11)), Some(until));
    assert!(!all.expire(now + Duration::from_secs(59), busy));
    assert!(server(all.present(), 11).is_some());
    assert!(all.expire(until, busy));
    assert_eq!(server(all.running(), 11).unwrap().state, ServerState::Disabled);
    assert!(server(all.running(), 12).is_some());
    assert!(server(all.present(), 11).is_none());
}
