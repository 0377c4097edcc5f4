//! What an earlier process has left of its services.
//!
//! To the program that it becomes, a process leaves what is running and the file does not say ([`Changes`]). Of one that
//! has died only connections are left, and these say with whom they are: a server that has some and is not wanted any more
//! leaves as it would after a reload, be it that it was leaving already, that it had been added live, or that the file does
//! not have it any more.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::service::{Limits, Mode, Protocol};
use foldhash::{HashMap, HashSet};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::live::{ServerChange, ServiceChange, server_of, service_of};
use super::roster::Told;
use super::{Leaving, Services};
use crate::config::{self, OnRemove, Server, ServerState, Service};
use crate::ids::{Face, ServerKey, ServiceKey};

/// What is running and the file does not say, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    services: Vec<ChangedService>,
    servers: Vec<ChangedServer>,
    /// How long until drained servers are disabled.
    deadlines: Vec<(ServiceKey, SocketAddr, Duration)>,
    /// How long until those that are on their way out have to be gone.
    leaving: Vec<(ServiceKey, SocketAddr, Duration)>,
    /// By which connections go that have no word.
    #[serde(default)]
    rosters: Vec<Told>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ChangedService {
    key: ServiceKey,
    /// Whether the file had one under this key.
    in_file: bool,
    /// What it was added with; none if it was removed.
    text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ChangedServer {
    service: ServiceKey,
    address: SocketAddr,
    was: Option<Settings>,
    now: Option<Settings>,
}

/// A server's, but for its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    weight: u32,
    /// Upper and lower.
    #[serde(default)]
    limits: Option<(u32, u32)>,
    #[serde(default)]
    quic_id: Option<String>,
    check: bool,
    state: String,
}

impl Settings {
    fn of(server: &Server) -> Settings {
        let Server { address: _, weight, limits, quic_id, check, state } = *server;
        let limits = limits.map(|limits| (limits.upper, limits.lower));
        let quic_id = quic_id.map(|id| id.to_string());
        Settings { weight, limits, quic_id, check, state: state.name().to_owned() }
    }

    fn server(&self, address: SocketAddr) -> Result<Server> {
        let Settings { weight, limits, ref quic_id, check, ref state } = *self;
        let limits = limits.map(|(upper, lower)| Limits { upper, lower });
        let state = ServerState::from_name(state).with_context(|| format!("unknown state {state:?}"))?;
        let quic_id = quic_id.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg)?;
        Ok(Server { address, weight, limits, quic_id, check, state })
    }
}

impl Services {
    /// What the program that this one becomes has to know besides the file.
    pub fn changes(&self, now: Instant) -> Changes {
        let service = |(&key, change): (&ServiceKey, &ServiceChange)| ChangedService {
            key,
            in_file: change.was.is_some(),
            text: change.now.as_ref().and_then(|_| self.text_of(key)),
        };
        let server = |(&(service, address), change): (&(ServiceKey, SocketAddr), &ServerChange)| {
            let [was, now] = [&change.was, &change.now].map(|server| server.as_ref().map(Settings::of));
            ChangedServer { service, address, was, now }
        };
        let left = |(&(service, address), until): (&(ServiceKey, SocketAddr), Instant)| {
            (service, address, until.saturating_duration_since(now))
        };
        Changes {
            services: self.live.services.iter().map(service).collect(),
            servers: self.live.servers.iter().map(server).collect(),
            deadlines: self.deadlines.iter().map(|(key, &until)| left((key, until))).collect(),
            leaving: self.leaving.iter().map(|(key, leaving)| left((key, leaving.until))).collect(),
            rosters: self.rosters.told(),
        }
    }

    /// Makes the changes that were made to the predecessor, before anything else. Those that do not hold any more come
    /// back, with the reason if it is not that the file has another entry now.
    pub fn inherit(&mut self, changes: &Changes, now: Instant) -> Vec<String> {
        let mut lost = Vec::new();
        for change in &changes.services {
            let (key, was) = (change.key, service_of(&self.file, change.key).cloned());
            match change.text.as_deref().map(service_in).transpose() {
                Ok(_) if was.is_some() != change.in_file => lost.push(format!("service {key}")),
                Ok(now) => {
                    self.texts.extend(change.text.clone().map(|text| (key, text)));
                    self.live.services.insert(key, ServiceChange { was, now });
                }
                Err(error) => lost.push(format!("service {key} ({error:#})")),
            }
        }
        for ChangedServer { service, address, was, now } in &changes.servers {
            let read = |settings: &Option<Settings>| {
                settings.as_ref().map(|settings| settings.server(*address)).transpose()
            };
            match read(was).and_then(|was| Ok(ServerChange { was, now: read(now)? })) {
                Ok(change) => drop(self.live.servers.insert((*service, *address), change)),
                Err(error) => lost.push(format!("server {service} {address} ({error:#})")),
            }
        }
        lost.extend(self.live.outlive(&self.file));
        for &(service, address, left) in &changes.deadlines {
            self.deadlines.insert((service, address), now + left);
        }
        // What they have taken away has left already, or comes back with its connections.
        self.rosters.inherit(&changes.rosters);
        self.settle(self.live.apply(&self.file), now);
        lost
    }

    /// All servers that packets are forwarded for.
    pub fn members(&self) -> HashSet<(ServiceKey, ServerKey)> {
        let of_service = |service: &Service| {
            let key = ServiceKey::of(service);
            let own: Vec<_> = service.servers.iter().map(|server| ServerKey::of(service, server)).collect();
            own.into_iter().chain(ServerKey::of_sorry(service)).map(move |server| (key, server))
        };
        self.present.iter().flat_map(of_service).collect()
    }

    /// Whether the service of a mark has this face now.
    pub fn has_face(&self, service: ServiceKey, face: Face) -> bool {
        let marked = service_of(&self.running, service).and_then(|service| service.mark.as_ref());
        marked.is_some_and(|marked| marked.faces.contains_key(&face))
    }

    /// Whether a server of an earlier process that is not among [`Self::members`] may keep its connections for now.
    pub fn may_leave(&self) -> impl Fn(ServiceKey, ServerKey) -> bool + '_ {
        let wanted: HashMap<ServiceKey, &Service> =
            self.running.iter().map(|service| (ServiceKey::of(service), service)).collect();
        move |key, server| way_out(wanted.get(&key).copied(), key, server).is_some()
    }

    /// Servers of an earlier process that have connections, and are not wanted any more: from now on they are on their way
    /// out, for as long as its service would have it or, if the predecessor has told, as long as they had left.
    pub fn come_back(
        &mut self,
        members: impl IntoIterator<Item = (ServiceKey, ServerKey)>,
        changes: &Changes,
        now: Instant,
    ) {
        let known = self.members();
        let left: HashMap<(ServiceKey, SocketAddr), Duration> =
            changes.leaving.iter().map(|&(service, address, left)| ((service, address), left)).collect();
        for (key, server) in members.into_iter().filter(|member| !known.contains(member)) {
            let wanted = service_of(&self.running, key);
            let Some(how) = way_out(wanted, key, server) else { continue };
            let service = match wanted {
                Some(wanted) => Ok(Service { servers: Vec::new(), ..wanted.clone() }),
                None => bare(key, server.mode),
            };
            let Ok(service) = service else { continue };
            let time = left.get(&(key, server.address)).copied().unwrap_or(service.availability.drain);
            let address = server.address;
            let server = Server { weight: 0, check: false, ..Server::new(address) };
            self.leaving.insert((key, address), Leaving { service, server, until: now + time, how });
        }
        self.settle(self.running.clone(), now);
    }
}

/// How a server leaves that is not wanted any more; none if its connections end. Of a service that is not wanted itself
/// nothing is known but its key: it has the defaults.
fn way_out(wanted: Option<&Service>, key: ServiceKey, server: ServerKey) -> Option<OnRemove> {
    // UDP flows move on by their next packet.
    if key.protocol != Protocol::Tcp {
        return None;
    }
    let Some(wanted) = wanted else { return Some(OnRemove::Drain) };
    let how = wanted.availability.on_remove;
    let may = match server_of(wanted, server.address) {
        // Under another mode its connections are of no use.
        _ if wanted.mode != server.mode => false,
        // It is disabled, or it would be present.
        Some(_) => how == OnRemove::Reset,
        None => how != OnRemove::Drop,
    };
    may.then_some(how)
}

/// A service of which nothing else is known.
fn bare(key: ServiceKey, mode: Mode) -> Result<Service> {
    let ServiceKey { address, protocol } = key;
    service_in(&format!(
        "[[service]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nmode = \"{mode}\"\n"
    ))
}

/// The one service in a text.
fn service_in(text: &str) -> Result<Service> {
    let mut services = config::parse_services(text)?;
    let service = services.pop().context("expected a service")?;
    ensure!(services.is_empty(), "expected one service");
    Ok(service)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{WEB, address, key, server, services, weigh};
    use super::*;

    /// What becomes of changes in the next program, which reads this file.
    fn next(all: &Services, file: &str, now: Instant) -> (Services, Vec<String>) {
        let text = serde_json::to_string(&all.changes(now)).unwrap();
        let changes: Changes = serde_json::from_str(&text).unwrap();
        let mut next = Services::new(services(file));
        let lost = next.inherit(&changes, now);
        (next, lost)
    }

    const DNS: &str = "[[service]]\naddress = '192.0.2.10:53'\nprotocol = 'udp'\nmode = 'nat'\n";

    fn dns() -> ServiceKey {
        "udp/192.0.2.10:53".parse().unwrap()
    }

    /// Of every kind one.
    fn changed(now: Instant) -> Services {
        let mut all = Services::new(services(&format!("{WEB}{}", DNS.replace(":53", ":54"))));
        weigh(&mut all, 11, 7);
        let drained = Server { state: ServerState::Drained, ..server(all.running(), 12).unwrap() };
        all.set_server(key(), address(12), Some(drained), Some(now + Duration::from_secs(60)), now);
        let new = Server { address: address(13), state: ServerState::Enabled, weight: 3, ..drained };
        all.set_server(key(), address(13), Some(new), None, now);
        all.set_service("udp/192.0.2.10:54".parse().unwrap(), None, now);
        all.set_service(dns(), Some((services(DNS).remove(0), DNS.to_owned())), now);
        all
    }

    #[test]
    fn the_next_program_has_all_changes() {
        let now = Instant::now();
        let all = changed(now);
        let file = format!("{WEB}{}", DNS.replace(":53", ":54"));
        let (mut next, lost) = next(&all, &file, now);
        assert_eq!(lost, [""; 0]);
        assert_eq!(next.running(), all.running());
        assert_eq!(next.present(), all.present());
        assert_eq!(next.text_of(dns()), all.text_of(dns()));
        assert_eq!(next.changes(now), all.changes(now), "and so has the one after it");
        // They are changes as before: a reload leaves them alone, and a deadline comes.
        assert_eq!(super::super::tests::reload(&mut next, services(&file), now), [""; 0]);
        assert!(next.expire(now + Duration::from_secs(60), |_, _| true));
        assert_eq!(server(next.running(), 12).unwrap().state, ServerState::Disabled);
    }

    #[test]
    fn whoever_has_edited_the_file_has_the_last_word() {
        let now = Instant::now();
        let edited = WEB.replace("10.0.0.11:8080'", "10.0.0.11:8080'\nweight = 2");
        let file = format!("{edited}{DNS}").replace("udp'", "udp'\nscheduler = 'rr'");
        let (next, lost) = next(&changed(now), &file, now);
        assert_eq!(
            lost,
            [
                "service udp/192.0.2.10:53",
                "service udp/192.0.2.10:54",
                "server tcp/192.0.2.10:80 10.0.0.11:8080"
            ]
        );
        assert_eq!(server(next.running(), 11).unwrap().weight, 2);
        assert_eq!(server(next.running(), 12).unwrap().state, ServerState::Drained);
        assert_eq!(service_of(next.running(), dns()), service_of(next.file(), dns()));
    }

    #[test]
    fn what_the_next_program_does_not_understand_is_lost_and_said() {
        let now = Instant::now();
        let mut changes = changed(now).changes(now);
        changes.services[0].text = Some(DNS.replace("nat", "teleport"));
        changes.servers[0].now.as_mut().unwrap().state = "asleep".to_owned();
        let mut next = Services::new(services(&format!("{WEB}{}", DNS.replace(":53", ":54"))));
        let lost = next.inherit(&changes, now);
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[0].starts_with("service udp/192.0.2.10:53 (") && lost[0].contains("teleport"));
        assert_eq!(lost[1], "server tcp/192.0.2.10:80 10.0.0.11:8080 (unknown state \"asleep\")");
        assert!(server(next.running(), 13).is_some());
    }

    fn member(last: u8) -> (ServiceKey, ServerKey) {
        (key(), ServerKey { address: address(last), mode: Mode::Nat })
    }

    #[test]
    fn servers_with_connections_come_back_to_leave() {
        let now = Instant::now();
        let removed: ServiceKey = "tcp/192.0.2.99:80".parse().unwrap();
        let direct = ServerKey { mode: Mode::Dr, ..member(14).1 };
        let members = [
            (member(11), true, false),
            // Not in the file: as after a reload without it.
            (member(13), true, true),
            ((removed, member(13).1), true, true),
            // Of no use, or somewhere else with the next packet.
            ((key(), direct), false, false),
            ((dns(), member(13).1), false, false),
        ];
        let mut all = Services::new(services(WEB));
        let known = all.members();
        let goes_on = |member| known.contains(&member) || all.may_leave()(member.0, member.1);
        for (member, expected, _) in members {
            assert_eq!(goes_on(member), expected, "{member:?}");
        }
        let mut changes = Changes::default();
        changes.leaving.push((removed, address(13), Duration::from_secs(5)));
        all.come_back(members.map(|(member, ..)| member), &changes, now);
        for ((service, server), _, leaves) in members {
            assert_eq!(all.is_leaving(service, server.address), leaves, "{service} {server:?}");
        }
        assert_eq!((server(all.present(), 13).unwrap().weight, all.running()), (0, all.file()));
        assert!(service_of(all.present(), removed).is_some());
        all.expire(now + Duration::from_secs(5), |_, _| true);
        assert!(service_of(all.present(), removed).is_none(), "as long as it had left");
        assert!(server(all.present(), 13).is_some());
        all.expire(now + Duration::from_secs(300), |_, _| true);
        assert!(server(all.present(), 13).is_none(), "as long as its service would have it");
    }

    #[test]
    fn they_leave_as_their_service_would_have_it() {
        for (how, comes, resets) in [("drop", false, false), ("reset", true, true), ("drain", true, false)] {
            let mut all =
                Services::new(services(&WEB.replace("mode", &format!("on_remove = '{how}'\nmode"))));
            assert_eq!(all.may_leave()(member(13).0, member(13).1), comes, "{how}");
            all.come_back([member(13)], &Changes::default(), Instant::now());
            assert_eq!(all.is_leaving(key(), address(13)), comes, "{how}");
            assert_eq!(all.is_resetting(key(), address(13)), resets, "{how}");
        }
    }
}
