//! The families: a name, a line of help, a type, and where the values come from.
//!
//! Names are by Prometheus' conventions: base units, `_total` for what only grows (the encoder adds it), `incoming` for
//! what goes to a real server and `outgoing` for what comes back, as node_exporter has it of IPVS.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use dataplane::service::State;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::{Scrape, SnatBlocks};
use crate::admin::api::{Port, Server, Service, Stats, Worker};
use crate::events::Tally;
use crate::health::{BOUNDS, Checks};

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut families = Families(encoder);
        families.program(self)?;
        families.configuration(self)?;
        families.addresses(&self.services)?;
        families.services(&self.services)?;
        families.servers(&self.services)?;
        families.checks(&self.checks)?;
        families.workers(&self.counters.workers)?;
        families.table(self)?;
        families.ports(&self.counters.ports)?;
        self.sync.as_ref().map_or(Ok(()), |sync| families.peers(sync))
    }
}

pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn program(&mut self, scrape: &Scrape) -> Result<(), Error> {
        let versions = [("version", env!("CARGO_PKG_VERSION")), ("dpdk", &scrape.dpdk)];
        self.gauges("build_info", "Always 1; which RVS this is, and with which DPDK", [(versions, 1u64)])?;
        let help = "When RVS was started, in seconds since 1970; it has been up for time() minus this";
        self.gauges("start_time_seconds", help, alone(since_1970(scrape.start)))
    }

    fn configuration(&mut self, scrape: &Scrape) -> Result<(), Error> {
        let help = "How many snapshots have been given to the workers: by reloads, and by changes of health and of Linux' routes";
        self.gauges("snapshot_generation", help, alone(scrape.counters.generation))?;
        let applied = scrape.events.get("reload_applied");
        let refused = scrape.events.get("reload_refused");
        let count =
            |result, tally: Option<&Tally>| ([("result", result)], tally.map_or(0, |tally| tally.count));
        let reloads = [count("applied", applied), count("refused", refused)];
        self.counters("reloads", "Reloads of the configuration, by result", reloads)?;
        // The configuration of the start counts as applied then.
        let (applied, refused) = (applied.map_or(scrape.start, |tally| tally.last), refused);
        let in_force = refused.is_none_or(|refused| refused.last < applied);
        let help = "Whether the configuration that was read last is in force (1) or was refused (0)";
        self.gauges("last_reload_successful", help, alone(u64::from(in_force)))?;
        let help = "When the configuration in force was put there, in seconds since 1970";
        self.gauges("last_reload_success_timestamp_seconds", help, alone(since_1970(applied)))
    }

    fn addresses(&mut self, services: &[Service]) -> Result<(), Error> {
        let standing = |address, withdrawn: &Option<String>| (address, u64::from(withdrawn.is_none()));
        let stands = |service: &Service| match &service.mark {
            None => vec![standing(service.address.ip(), &service.withdrawn)],
            Some(mark) => mark.addresses.iter().map(|face| standing(face.address, &face.withdrawn)).collect(),
        };
        let addresses: BTreeMap<IpAddr, u64> = services.iter().flat_map(stands).collect();
        let samples =
            addresses.iter().map(|(address, announced)| ([("address", address.to_string())], *announced));
        let help = "Whether the virtual address is announced (1) or withdrawn (0)";
        self.gauges("address_announced", help, samples)
    }

    fn services(&mut self, services: &[Service]) -> Result<(), Error> {
        let names: Vec<String> = services.iter().map(name).collect();
        for (family, help, value) in TRAFFIC {
            let samples = services.iter().zip(&names);
            let samples =
                samples.map(|(service, name)| ([("service", name.as_str())], value(&service.stats)));
            self.counters(&format!("service_{family}"), &format!("{help}, by service"), samples)?;
        }
        let gates = || {
            let gates = services.iter().zip(&names);
            gates.filter_map(|(service, name)| Some(([("service", name.as_str())], service.syn_flood?)))
        };
        let help = "Whether the service is under a flood of SYNs (1), which leave nothing in the table; of services with half_open_rate";
        let shut = gates().map(|(labels, flood)| (labels, u64::from(flood.shut)));
        self.gauges("service_syn_flood", help, shut)?;
        let help = "SYNs of floods, of services with half_open_rate";
        self.counters("service_syn_flood_syns", help, gates().map(|(labels, flood)| (labels, flood.syns)))?;
        Ok(())
    }

    fn servers(&mut self, services: &[Service]) -> Result<(), Error> {
        let named = services.iter().map(|service| (name(service), service));
        let all: Vec<(String, String, &Server)> = named
            .flat_map(|(name, service)| {
                service.servers.iter().map(move |server| (name.clone(), server.address.to_string(), server))
            })
            .collect();
        let samples = |value: fn(&Server) -> u64| {
            all.iter().map(move |(service, server, facts)| {
                ([("service", service.as_str()), ("server", server.as_str())], value(facts))
            })
        };
        let help = "Whether the server takes new connections, as far as its health checks go";
        self.gauges("server_up", help, samples(|server| u64::from(server.up)))?;
        let help = "The server's weight as configured, also while it is down";
        self.gauges("server_weight", help, samples(|server| u64::from(server.weight)))?;
        let help =
            "The weight that the server has now: 0 while it is down or drained, less while it starts slowly";
        self.gauges("server_effective_weight", help, samples(|server| u64::from(server.effective_weight)))?;
        let help = "Connections of the server in a state that counts as active";
        self.gauges("server_active_connections", help, samples(|server| server.active))?;
        let help = "Connections of the server in any other state";
        self.gauges("server_inactive_connections", help, samples(|server| server.inactive))?;
        let help = "Clients whose next connections go to the server, in a persistent service";
        self.gauges("server_persistent_clients", help, samples(|server| server.persistent))?;
        for (family, help, value) in TRAFFIC {
            let samples = all.iter().map(|(service, server, facts)| {
                let labels = [("service", service.as_str()), ("server", server.as_str())];
                (labels, value(&facts.stats))
            });
            self.counters(&format!("server_{family}"), &format!("{help}, by server"), samples)?;
        }
        Ok(())
    }

    fn checks(&mut self, checks: &[Checks]) -> Result<(), Error> {
        let results = checks.iter().flat_map(|checks| {
            let passed = checks.passed.iter().sum();
            [
                ("passed", passed),
                ("failed", checks.failed),
                ("timed_out", checks.timed_out),
                ("unknown", checks.unknown),
            ]
            .map(|(result, count)| ([("kind", checks.kind), ("result", result)], count))
        });
        let help = "Health checks by kind and result; unknown: it could not be made for want of something on this machine";
        self.counters("health_checks", help, results)?;
        let help = "How long the health checks that passed have taken";
        let mut family =
            self.0.encode_descriptor("health_check_duration_seconds", help, None, MetricType::Histogram)?;
        for checks in checks {
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(checks.passed).collect();
            let count = checks.passed.iter().sum();
            let labels = [("kind", checks.kind)];
            let mut series = family.encode_family(&labels)?;
            series.encode_histogram::<NoLabelSet>(checks.seconds, count, &buckets, None)?;
        }
        Ok(())
    }

    fn workers(&mut self, workers: &[Worker]) -> Result<(), Error> {
        let names: Vec<[String; 2]> =
            workers.iter().map(|worker| [worker.index.to_string(), worker.core.to_string()]).collect();
        let all = || workers.iter().zip(&names);
        let labels = |[worker, core]: &'_ [String; 2]| [("worker", worker.clone()), ("core", core.clone())];
        for (family, help, value) in WORK {
            let samples = all().map(|(worker, name)| (labels(name), value(worker)));
            self.counters(family, help, samples)?;
        }
        let help = "Fragments that wait now for the first of their datagram";
        self.gauges(
            "worker_waiting_fragments",
            help,
            all().map(|(worker, name)| (labels(name), worker.waiting)),
        )?;
        for (family, help, reasons) in REASONS {
            let samples = all().flat_map(|(worker, [index, core])| {
                reasons(worker).iter().map(move |(reason, count)| {
                    let labels = [("worker", index.as_str()), ("core", core), ("reason", reason)];
                    (labels, *count)
                })
            });
            self.counters(family, help, samples)?;
        }
        Ok(())
    }

    fn table(&mut self, scrape: &Scrape) -> Result<(), Error> {
        let table = scrape.counters.table;
        let help = "How many connections the table has room for";
        self.gauges("table_slots", help, alone(table.slots))?;
        let help = "How many slots of the table are taken by connections";
        self.gauges("table_connections", help, alone(table.connections))?;
        let help = "Mappings of source NAT that there are, of all pools";
        self.gauges("snat_mappings", help, alone(scrape.counters.mappings))?;
        let states = State::ALL.iter().zip(scrape.states);
        let states = states.map(|(state, count)| ([("state", state.name())], count));
        let help = "Connections by state, as of at most half a minute ago";
        self.gauges("table_state_connections", help, states)?;
        let taken = scrape.local_ports.iter().map(|ports| {
            ([("address", ports.address.to_string()), ("protocol", ports.protocol.to_owned())], ports.taken)
        });
        let help = "Ports of the local address that connections have, with mode fullnat";
        self.gauges("local_ports_taken", help, taken)?;
        let blocks = |value: fn(&SnatBlocks) -> u32| {
            scrape.snat_blocks.iter().map(move |blocks| {
                let labels =
                    [("address", blocks.address.to_string()), ("protocol", blocks.protocol.to_owned())];
                (labels, u64::from(value(blocks)))
            })
        };
        let help = "Blocks of ports of the address of source NAT that hosts inside have";
        self.gauges("snat_blocks_used", help, blocks(|blocks| blocks.used))?;
        let help = "Blocks of ports of the address of source NAT that nobody has";
        self.gauges("snat_blocks_free", help, blocks(|blocks| blocks.free))
    }

    fn ports(&mut self, ports: &[Port]) -> Result<(), Error> {
        let known =
            || ports.iter().filter_map(|port| Some(([("port", port.name.clone())], port.device.as_ref()?)));
        let up = known().map(|(labels, device)| (labels, u64::from(device.link_up)));
        self.gauges("port_link_up", "Whether the port has a link (1) or not (0)", up)?;
        let speed = known().filter(|(_, device)| device.link_up);
        let speed =
            speed.filter_map(|(labels, device)| Some((labels, u64::from(device.link_speed?) * 1_000_000)));
        self.gauges(
            "port_link_speed",
            "What the port and the other end have agreed upon, in bits a second",
            speed,
        )?;
        let members = ports.iter().filter_map(|port| Some((port, &port.device.as_ref()?.members)));
        let members = members.flat_map(|(port, members)| members.iter().map(move |member| (port, member)));
        let members = members.map(|(port, member)| {
            ([("port", port.name.clone()), ("member", member.name.clone())], u64::from(member.up))
        });
        let help = "Whether a bond can send by this member (1) or not (0)";
        self.gauges("port_member_up", help, members)
    }

    /// A family of what only grows.
    pub(super) fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// A family of what goes up and down.
    pub(super) fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// A family's name after its subject, its help, and its value.
pub(super) type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

const TRAFFIC: [Family<Stats>; 5] = [
    ("connections", "Connections scheduled", |stats| stats.connections),
    ("incoming_packets", "Packets from clients to real servers", |stats| stats.packets_in),
    (
        "outgoing_packets",
        "Packets from real servers to clients; 0 unless the mode is nat or fullnat",
        |stats| stats.packets_out,
    ),
    ("incoming_bytes", "Bytes of IP packets from clients to real servers", |stats| stats.bytes_in),
    (
        "outgoing_bytes",
        "Bytes of IP packets from real servers to clients; 0 unless the mode is nat or fullnat",
        |stats| stats.bytes_out,
    ),
];

const WORK: [Family<Worker>; 11] = [
    ("worker_polls", "Looks at a receive queue", |worker| worker.polls),
    ("worker_empty_polls", "Looks at a receive queue that found nothing", |worker| worker.empty_polls),
    ("worker_bursts", "Looks at a receive queue that found packets", |worker| worker.bursts),
    (
        "worker_received_packets",
        "Packets taken from receive queues: forwarded + punted + dropped, and fragments that wait",
        |worker| worker.received,
    ),
    ("worker_forwarded_packets", "Packets sent on to a real server or a client, or routed", |worker| {
        worker.forwarded
    }),
    ("worker_routed_packets", "Packets that concern no service, and were routed", |worker| worker.routed),
    ("worker_routed_bytes", "Bytes of IP packets that concern no service, and were routed", |worker| {
        worker.routed_bytes
    }),
    ("worker_held_fragments", "Fragments that had to wait for the first of their datagram", |worker| {
        worker.held
    }),
    (
        "worker_ftp_unchanged_replies",
        "Replies 227 of FTP servers that do not name the virtual address",
        |worker| worker.ftp_unchanged,
    ),
    ("worker_injected_packets", "Packets of Linux that were sent out of a port", |worker| worker.injected),
    ("worker_inject_dropped_packets", "Packets of Linux that a port did not take", |worker| {
        worker.inject_dropped
    }),
];

type Reasons = fn(&Worker) -> &BTreeMap<String, u64>;

const REASONS: [(&str, &str, Reasons); 2] = [
    ("worker_punted_packets", "Packets handed to Linux, by reason", |worker| &worker.punted),
    ("worker_dropped_packets", "Packets dropped, by reason", |worker| &worker.dropped),
];

/// The one series of a family without labels.
pub(super) fn alone<V>(value: V) -> [([(&'static str, &'static str); 0], V); 1] {
    [([], value)]
}

/// As the logs name it.
fn name(service: &Service) -> String {
    service.name()
}

fn since_1970(time: SystemTime) -> f64 {
    // To the millisecond: more digits say nothing. A clock before 1970 is one that has not been set.
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_millis() as f64 / 1000.0)
}
