//! A router that gives every kind of answer.

use std::collections::BTreeMap;

use crate::admin::{
    Backend, Connections, Departure, Flush, Order, Pools, Stop, api, capture, explain, upgrade,
};
use crate::config;
use crate::events::{Events, Kind};
use crate::ids::ServiceKey;
use crate::metrics::Format;
use crate::services::save;
use crate::stages::Stages;

/// How much it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answers {
    /// Everything that can be there is.
    Full,
    /// Everything that can be missing is.
    Sparse,
    /// The director is gone.
    None,
}

#[derive(Clone)]
pub struct Example {
    answers: Answers,
    events: Events,
}

impl Example {
    pub fn new(answers: Answers) -> Example {
        let events = Events::with_capacity(100);
        kinds().into_iter().for_each(|kind| events.publish(kind));
        Example { answers, events }
    }

    fn there(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.answers != Answers::None, "the director is gone");
        Ok(())
    }

    fn maybe<T>(&self, value: T) -> Option<T> {
        (self.answers == Answers::Full).then_some(value)
    }

    fn list<T>(&self, value: T) -> Vec<T> {
        self.maybe(value).into_iter().collect()
    }

    fn changes(&self) -> Vec<api::Change> {
        let signs = [api::Sign::Added, api::Sign::Removed, api::Sign::Changed];
        let change = |sign| api::Change {
            sign,
            service: self.maybe("tcp/192.0.2.10:80".to_owned()),
            server: self.maybe("10.0.0.11:8080".parse().unwrap()),
            what: String::new(),
        };
        signs.map(change).into()
    }

    fn server(&self) -> api::Server {
        api::Server {
            address: "10.0.0.11:8080".parse().unwrap(),
            mode: "nat".to_owned(),
            weight: 3,
            effective_weight: 0,
            state: "drained".to_owned(),
            remaining: self.maybe(60),
            up: false,
            reason: self.maybe("connection refused".to_owned()),
            active: 1,
            inactive: 2,
            upper_threshold: self.maybe(9),
            lower_threshold: self.maybe(5),
            persistent: 3,
            stats: api::Stats::default(),
            rates: api::Rates::default(),
        }
    }

    fn worker(&self) -> api::Worker {
        let counted = |name: &str| self.list((name.to_owned(), 1)).into_iter().collect::<BTreeMap<_, _>>();
        api::Worker { punted: counted("local"), dropped: counted("table_full"), ..api::Worker::default() }
    }
}

impl Backend for Example {
    async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        self.there()?;
        Ok(vec![api::Service {
            protocol: "tcp".to_owned(),
            address: "192.0.2.10:80".parse()?,
            mark: self.maybe(api::Mark {
                number: 10,
                addresses: vec![api::Face {
                    protocol: "tcp".to_owned(),
                    address: "192.0.2.10".parse()?,
                    ports: self.list("80".to_owned()),
                    incoming: self.list("wan".to_owned()),
                    withdrawn: self.maybe("rvs stops".to_owned()),
                }],
            }),
            ports: self.list("8080-8090".to_owned()),
            scheduler: "sh".to_owned(),
            flags: self.list("sh-port".to_owned()),
            mode: "nat".to_owned(),
            one_packet: true,
            helper: self.maybe("ftp".to_owned()),
            at_risk: true,
            persistence: self.maybe(api::Persistence { timeout: 300, prefix: 32 }),
            tunnel: self.maybe("ipip".to_owned()),
            withdrawn: self.maybe("rvs stops".to_owned()),
            syn_flood: self.maybe(api::SynFlood { shut: true, syns: 12 }),
            stats: api::Stats { bytes_in: u64::MAX, ..api::Stats::default() },
            rates: api::Rates::default(),
            servers: vec![self.server()],
        }])
    }

    async fn connections(&self) -> anyhow::Result<Connections> {
        self.there()?;
        let connection = api::Connection {
            local: self.maybe("10.0.0.100:2000".parse()?),
            protocol: "tcp".to_owned(),
            client: "198.51.100.7:40112".parse()?,
            virtual_: "192.0.2.10:80".parse()?,
            server: "10.0.0.11:8080".parse()?,
            state: "ESTABLISHED".to_owned(),
            expires: 900,
        };
        Ok(Box::new(vec![connection; 2].into_iter()))
    }

    async fn counters(&self) -> anyhow::Result<api::Counters> {
        self.there()?;
        let hashed = api::Hashed { addresses: true, tcp_ports: true, udp_ports: false };
        let device = api::Device {
            name: "0000:01:00.0".to_owned(),
            driver: "net_ixgbe".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            node: self.maybe(1),
            mtu: 1500,
            max_queues: 16,
            rx_descriptors: 1024,
            tx_descriptors: 512,
            hashed_side: "source".to_owned(),
            rss: self.list("ipv4-tcp".to_owned()),
            rx_offloads: self.list("VLAN_STRIP".to_owned()),
            tx_offloads: self.list("VLAN_INSERT".to_owned()),
            promiscuous: self.maybe(true),
            link_up: true,
            link_speed: self.maybe(10_000),
            trouble: self.maybe("removed".to_owned()),
            members: self.list(api::Member {
                name: "0000:01:00.0".to_owned(),
                up: true,
                sends: true,
                link_up: true,
                link_speed: self.maybe(10_000),
            }),
        };
        let vlan = self.maybe(api::Vlan { port: "wan".to_owned(), id: 100 });
        let (hashed, device) = (self.maybe(hashed), self.maybe(device));
        let port = api::Port { name: "wan".to_owned(), queues: 2, hashed, device, vlan };
        let table = api::Table::default();
        Ok(api::Counters {
            generation: 1,
            table,
            mappings: 3,
            workers: vec![self.worker()],
            ports: vec![port],
        })
    }

    async fn snat(&self) -> anyhow::Result<Pools> {
        self.there()?;
        let (inside, outside) = ("10.0.0.11".parse()?, "192.0.2.50".parse()?);
        let host = api::SnatHost { inside, outside, blocks: 2, tcp: 3, udp: 1, icmp: 0 };
        let (inside, hosts) = (self.list("10.0.0.0/24".to_owned()), self.list(host));
        let blocks = api::SnatBlocks { all: 126, tcp: 1, udp: 1, icmp: 0 };
        let (outside, mappings) = (self.list(outside), 4);
        let pool = api::SnatPool { inside, outside, mappings, room: 65_536, blocks, hosts };
        Ok(Box::new(|| vec![pool]))
    }

    async fn reload(&self, dry_run: bool) -> anyhow::Result<api::Reloaded> {
        self.there()?;
        let overruled = self.list("server tcp/192.0.2.10:80 10.0.0.11:8080".to_owned());
        Ok(api::Reloaded {
            generation: 2,
            services: 1,
            servers: 3,
            changes: self.changes(),
            overruled,
            dry_run,
        })
    }

    /// Reads the settings of a service as the director does.
    async fn change(&self, order: Order) -> anyhow::Result<api::Changed> {
        self.there()?;
        if let Order::AddService(settings) = order {
            config::parse_services(&save::text_of(&settings)?)?;
        }
        Ok(api::Changed { generation: 3, changes: self.changes(), holds: "until then".to_owned() })
    }

    async fn diff(&self) -> anyhow::Result<Vec<api::Change>> {
        self.there()?;
        Ok(self.changes())
    }

    async fn sync(&self) -> anyhow::Result<api::Sync> {
        self.there()?;
        let peer = api::Peer {
            address: "10.9.0.2:8848".parse().unwrap(),
            standing: "together".into(),
            version: 2,
            waiting: 0,
            lag_us: 0,
            sent_a_second: 0,
            received_a_second: 0,
            bulk: Some(0.5),
            counts: api::PeerCounts {
                sent: 3,
                sent_bytes: 300,
                connections_sent: 2,
                connections_confirmed: 2,
                received: 3,
                received_bytes: 300,
                connections_received: 1,
                bulks: 1,
                ..api::PeerCounts::default()
            },
        };
        let ipvs = api::Ipvs {
            role: "both".into(),
            interface: "eth2".into(),
            syncid: 5,
            directors: vec!["10.9.0.3".parse().unwrap()],
            adopted: api::Adopted { new: 1, ..api::Adopted::default() },
            counts: api::IpvsCounts {
                received: 3,
                connections_received: 6,
                sent: 2,
                connections_sent: 40,
                ..api::IpvsCounts::default()
            },
        };
        Ok(api::Sync { ready: true, peers: vec![peer], ipvs: Some(ipvs), ..api::Sync::default() })
    }

    async fn upgrade(&self, _: upgrade::Question) -> anyhow::Result<api::Upgrading> {
        self.there()?;
        let (from, to) = ("0.1.0".to_owned(), "0.2.0".to_owned());
        Ok(api::Upgrading { id: "7".to_owned(), from, to, binary: "/usr/local/sbin/rvs".to_owned() })
    }

    fn upgraded(&self) -> api::Upgrades {
        let stage = api::Stage { name: "EAL".to_owned(), us: 200_000 };
        let (from, to) = ("0.1.0".to_owned(), "0.2.0".to_owned());
        let error = self.maybe("no such file".to_owned());
        let last = api::Upgrade { id: "7".to_owned(), from, to, gap_us: 300_000, stages: vec![stage], error };
        api::Upgrades { last: self.maybe(last) }
    }

    async fn stop(&self, _: Stop) -> anyhow::Result<Departure> {
        self.there()?;
        let text = "the traffic has left".to_owned();
        let leaving = api::Leaving { state: "stopping".to_owned(), packets: 0, remaining: 29, text };
        Ok(Box::pin(futures_util::stream::iter([leaving])))
    }

    async fn save(&self) -> anyhow::Result<api::Saved> {
        self.there()?;
        Ok(api::Saved { path: "/etc/rvs/rvs.toml".to_owned(), changes: self.changes() })
    }

    /// Reads a service's name as the director does.
    async fn flush(&self, filter: api::Filter) -> anyhow::Result<Flush> {
        self.there()?;
        let service = filter.service.map(|service| service.parse::<ServiceKey>());
        service.transpose().map_err(anyhow::Error::msg)?;
        Ok(Box::new(|| 3))
    }

    async fn metrics(&self, format: Format) -> anyhow::Result<String> {
        self.there()?;
        Ok(format!("{format:?}\n"))
    }

    fn events(&self) -> &Events {
        &self.events
    }

    async fn capture(&self, _: capture::Question) -> anyhow::Result<capture::Pieces> {
        self.there()?;
        Ok(Box::pin(futures_util::stream::iter([vec![10, 13, 13, 10]])))
    }

    async fn explain(&self, question: explain::Question) -> anyhow::Result<explain::Explanation> {
        self.there()?;
        let packet = explain::Packet {
            protocol: "tcp".to_owned(),
            source: question.source,
            destination: question.destination,
            flags: "S".to_owned(),
            ttl: u8::MAX,
            length: u16::MAX,
            source_mac: "02:00:00:00:00:01".to_owned(),
            destination_mac: "02:00:00:00:00:02".to_owned(),
        };
        let server = "10.0.0.11:8080".parse()?;
        let connection =
            explain::Connection { server, state: "ESTABLISHED".to_owned(), idle: 1, expires: 900 };
        Ok(explain::Explanation {
            generation: 1,
            packet: packet.clone(),
            port: explain::Port { name: "wan".to_owned(), why: "as asked".to_owned() },
            fragment: self.maybe("the first one".to_owned()),
            service: self.maybe(explain::Service {
                protocol: "tcp".to_owned(),
                address: "192.0.2.10:80".parse()?,
                mark: self.maybe(10),
                rule: self.maybe(12),
                mode: "nat".to_owned(),
                scheduler: "wlc".to_owned(),
            }),
            endpoint: self.maybe(server),
            unmatched: self.maybe("no service".to_owned()),
            direction: self.maybe("in".to_owned()),
            connection: self.maybe(connection.clone()),
            // A decision can be there and be for nobody.
            decision: Some(explain::Decision {
                server: self.maybe(server),
                why: "least connections".to_owned(),
                unusable: self.list(explain::Unusable { server, why: "down".to_owned() }),
            }),
            tracking: self.maybe("by hash, not at risk".to_owned()),
            afterwards: self.maybe(connection),
            rewritten: self.maybe(packet),
            tunnel: self.maybe(explain::Tunnel {
                encapsulation: "ipip".to_owned(),
                source: "10.0.0.1".parse()?,
                destination: "10.0.0.11".parse()?,
                length: 60,
            }),
            next_hop: Some(explain::NextHop {
                address: self.maybe("10.0.0.11".parse()?),
                port: self.maybe("lan".to_owned()),
                mac: self.maybe("02:00:00:00:00:03".to_owned()),
            }),
            verdict: "forward".to_owned(),
            output: self.maybe("lan".to_owned()),
            reason: self.maybe("no_service".to_owned()),
            meaning: self.maybe("there is none".to_owned()),
        })
    }
}

/// One event of every kind.
pub fn kinds() -> Vec<Kind> {
    let service = || "tcp/192.0.2.10:80".to_owned();
    let server = "10.0.0.11:8080".parse().unwrap();
    let peer = "10.9.0.2:8848".parse().unwrap();
    let address = "192.0.2.10".parse().unwrap();
    let director = "192.0.2.2".parse().unwrap();
    let error = || "no such device".to_owned();
    vec![
        Kind::Started { version: "0.1.0", services: 1, servers: 1, stages: Stages::default() },
        Kind::TableAdopted { connections: 9, removed: 1, milliseconds: 20 },
        Kind::TableRefused { reason: error() },
        Kind::Stopping { signal: "SIGTERM" },
        Kind::Upgrading { version: "0.2.0".to_owned() },
        Kind::Upgraded { from: "0.1.0".to_owned(), version: "0.2.0", milliseconds: 300 },
        Kind::UpgradeFailed { error: error() },
        Kind::ServerUp { service: service(), server, checks: 2 },
        Kind::ServerDown { service: service(), server, checks: 3, reason: error() },
        Kind::ServerHeld { service: service(), server, seconds: 60 },
        Kind::QuorumGained { service: service(), weight: 2 },
        Kind::QuorumLost { service: service(), weight: 1 },
        Kind::HookFailed {
            service: service(),
            hook: "/usr/lib/rvs/page".to_owned(),
            occasion: "down",
            reason: error(),
        },
        Kind::ChangedLive { change: "~ server".to_owned() },
        Kind::ReloadApplied { generation: 2, services: 1, servers: 1 },
        Kind::ReloadRefused { generation: 2, error: error() },
        Kind::TableNearlyFull { connections: 9, slots: 10 },
        Kind::TableRelieved { connections: 1, slots: 10 },
        Kind::OverloadBegins { reason: "tx_full", packets: 1 },
        Kind::OverloadEnds { reason: "tx_full", packets: 9 },
        Kind::SynFloodBegins { service: service(), packets: 1 },
        Kind::SynFloodEnds { service: service(), packets: 9 },
        Kind::AddressTaken { address },
        Kind::AddressGained { address },
        Kind::AddressLost { address },
        Kind::AddressContested { address, mac: "02:00:c0:00:02:02".to_owned() },
        Kind::AddressAnnounced { address },
        Kind::AddressWithdrawn { address, reason: error() },
        Kind::AddressRefused { address, error: error() },
        Kind::PeerJoined { peer },
        Kind::PeerAway { peer },
        Kind::PeerVersion { peer, theirs: 1, ours: 2 },
        Kind::IpvsHeard { director },
        Kind::IpvsOtherSyncid { director, syncid: 7 },
        Kind::LinkUp { port: "wan".to_owned(), speed: Some(10_000) },
        Kind::LinkDown { port: "wan".to_owned() },
        Kind::MemberUp { port: "wan".to_owned(), member: "0000:01:00.0".to_owned() },
        Kind::MemberDown { port: "wan".to_owned(), member: "0000:01:00.0".to_owned() },
        Kind::PortReset { port: "wan".to_owned() },
        Kind::PortRemoved { port: "wan".to_owned() },
        Kind::PortReturned { port: "wan".to_owned() },
        Kind::LinuxLost { error: error() },
        Kind::Missed { events: 7 },
    ]
}
