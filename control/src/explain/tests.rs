//! Questions to a router of two ports and six services, and the answers.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use dataplane::engine::{BURST, Engine};
use dataplane::fib::{Adjacency, Fib, Route, Via};
use dataplane::snapshot::{DestSpec, PortSpec, ServiceSpec};
use dataplane::table::HashKey;

use super::*;
use crate::config::{self, Config};
use crate::list;

const CONFIG: &str = r#"
[workers]
cores = [1]
[[port]]
name = "wan"
device = "net_null"
[[port]]
name = "lan"
device = "net_null"
[[service]]
address = "192.0.2.10:80"
protocol = "tcp"
mode = "nat"
scheduler = "wrr"
[[service.server]]
address = "10.0.0.1:8080"
weight = 2
[[service.server]]
address = "10.0.0.2:8080"
[[service.server]]
address = "10.0.0.3:8080"
weight = 0
[[service.server]]
address = "10.0.0.9:8080"
[[service]]
address = "192.0.2.10:53"
protocol = "udp"
mode = "nat"
scheduler = "sh"
[[service.server]]
address = "10.0.0.1:53"
weight = 0
[[service]]
address = "192.0.2.20:80"
mode = "tunnel"
scheduler = "wlc"
tunnel = { encapsulation = "gue", source = "10.0.0.254" }
[[service.server]]
address = "10.0.0.1"
[[service]]
address = "192.0.2.30:80"
mode = "dr"
scheduler = "maglev"
[[service.server]]
address = "10.0.0.1"
[[service.server]]
address = "10.0.0.3"
[[service]]
address = "192.0.2.30:81"
mode = "dr"
scheduler = "rendezvous"
[[service.server]]
address = "10.0.0.1"
weight = 5
[[service]]
address = "192.0.2.30:82"
mode = "dr"
scheduler = "p2c"
[[service.server]]
address = "10.0.0.1"
"#;

struct Rig {
    config: Config,
    snapshot: Snapshot,
    table: Arc<Table>,
    now: Tick,
}

impl Rig {
    fn new() -> Rig {
        Rig::of(CONFIG)
    }

    fn of(config: &str) -> Rig {
        let config = config::parse(Path::new("x.toml"), config.as_bytes().to_vec()).unwrap();
        let mut ids = 1..;
        let specs: Vec<ServiceSpec> = config.services.iter().map(|service| spec(service, &mut ids)).collect();
        let ports = vec![PortSpec { mac: [2, 0, 0, 0, 0, 1] }, PortSpec { mac: [2, 0, 0, 0, 0, 2] }];
        let routes = [
            Route { prefix: 0, length: 0, via: Via::Gateway(0, 0xC000_02FE) },
            Route { prefix: 0x0A00_0000, length: 24, via: Via::OnLink(1) },
        ];
        let mac = |last| [2, 0, 0, 0, 2, last];
        let servers =
            (1..=3).map(|n| ((1, 0x0A00_0000 + n), Adjacency::new(1, 1500, mac(n as u8), ports[1].mac)));
        let gateway = ((0, 0xC000_02FE), Adjacency::new(0, 1500, [2, 0, 0, 0, 9, 9], ports[0].mac));
        let fib = Fib::new(routes, servers.chain([gateway]).collect::<Vec<_>>());
        let snapshot = Snapshot::new(7, ports.clone(), &specs, [], fib);
        let table = Arc::new(Table::new(64, HashKey { blind: 5, factor: 7 }));
        Rig { config, snapshot, table, now: Tick(1000) }
    }

    fn ask(&self, words: &str) -> Result<api::Explanation> {
        let mut words = words.split(' ');
        let mut question = api::Question {
            source: words.next().unwrap().parse()?,
            destination: words.next().unwrap().parse()?,
            protocol: None,
            flags: None,
            port: None,
            length: None,
            fragment: None,
            id: None,
        };
        for word in words {
            match word.split_once('=').unwrap() {
                ("proto", value) => question.protocol = Some(value.to_owned()),
                ("flags", value) => question.flags = Some(value.to_owned()),
                ("port", value) => question.port = Some(value.to_owned()),
                ("fragment", value) => question.fragment = Some(value.to_owned()),
                ("id", value) => question.id = Some(value.parse()?),
                (_, value) => question.length = Some(value.parse()?),
            }
        }
        let down = |_: &Service, server: &Server| {
            (server.address.ip() == Ipv4Addr::new(10, 0, 0, 2)).then(|| "connection refused".to_owned())
        };
        let Rig { config, snapshot, table, now } = self;
        let (services, ports, marks) = (&config.services[..], &config.ports[..], &config.marks);
        Explainer { services, ports, marks, snapshot, table, now: *now, down: &down }.explain(&question)
    }

    fn text(&self, words: &str) -> String {
        let mut out = Vec::new();
        list::explanation(&mut out, &self.ask(words).unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Has the packet come in really.
    fn push(&self, source: &str, destination: &str, port: PortIndex, flags: u8) {
        self.push_frame(source, destination, port, flags, |_| ());
    }

    fn push_frame(
        &self,
        source: &str,
        destination: &str,
        port: PortIndex,
        flags: u8,
        change: impl Fn(&mut Vec<u8>),
    ) {
        self.push_made(Protocol::Tcp, source, destination, port, flags, change);
    }

    fn push_made(
        &self,
        protocol: Protocol,
        source: &str,
        destination: &str,
        port: PortIndex,
        flags: u8,
        change: impl Fn(&mut Vec<u8>),
    ) {
        let made = Made {
            protocol,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            flags,
            ttl: 64,
            length: 44,
        };
        let mut burst = [made.frame(&[2; 6], &self.snapshot.ports[usize::from(port)].mac)];
        change(&mut burst[0]);
        let engine = Engine::new(0, self.table.clone(), Arc::default());
        let mut verdicts = [Verdict::Drop(Drop::Runt); BURST];
        engine.process(&self.snapshot, self.now, port, &mut burst, &mut verdicts, &mut ());
        assert!(matches!(verdicts[0], Verdict::Forward(_)));
    }
}

fn spec(service: &Service, ids: &mut std::ops::RangeFrom<u32>) -> ServiceSpec {
    let dest = |server: &Server| DestSpec {
        weight: server.weight,
        last_weight: server.weight.max(1),
        up: server.address.ip() != Ipv4Addr::new(10, 0, 0, 2),
        ..DestSpec::new(DestId::new(ids.next().unwrap()).unwrap(), server.address)
    };
    ServiceSpec {
        scheduler: service.scheduler,
        flags: service.flags.clone(),
        timeouts: service.timeouts,
        sloppy: service.sloppy.of(service.protocol),
        one_packet: service.one_packet,
        helper: service.helper,
        persistence: service.persistence,
        tunnel: service.tunnel,
        dests: service.servers.iter().map(dest).collect(),
        ..ServiceSpec::new(service.address, service.protocol, service.mode)
    }
}

const CLIENT: &str = "198.51.100.7:40112";
const VIP: &str = "192.0.2.10:80";

#[test]
fn a_first_packet_and_then_its_connection() {
    let mut rig = Rig::new();
    let new = "
packet       tcp 198.51.100.7:40112 -> 192.0.2.10:80 [S], 40 bytes
comes in on  wan (198.51.100.7 is reached through it)
service      tcp 192.0.2.10:80, nat, wrr
direction    in, to a real server
connection   none
scheduler    10.0.0.1:8080; wrr: its turn, connection 1 of 1; all workers share the turns
             not 10.0.0.2:8080: down: connection refused
             not 10.0.0.3:8080: weight 0
             not 10.0.0.9:8080: the MAC of 10.0.0.9 is not known
afterwards   SYN_RECV with 10.0.0.1:8080, forgotten in 60 s
source       198.51.100.7:40112
destination  192.0.2.10:80 -> 10.0.0.1:8080
ttl          64 -> 63
source mac   02:00:00:00:09:09 -> 02:00:00:00:00:02
dest. mac    02:00:00:00:00:01 -> 02:00:00:00:02:01
next hop     10.0.0.1 on lan, 02:00:00:00:02:01
verdict      forward, out of lan
";
    let question = format!("{CLIENT} {VIP}");
    assert_eq!(rig.text(&question), new[1..]);
    assert_eq!(rig.text(&question), new[1..], "asking changes nothing");

    rig.push(CLIENT, VIP, 0, SYN);
    rig.push(CLIENT, VIP, 0, 0x10);
    rig.now.0 += 4 * 30;
    let reply = "
packet       tcp 10.0.0.1:8080 -> 198.51.100.7:40112 [FA], 40 bytes
comes in on  lan (10.0.0.1 is reached through it)
from server  tcp 10.0.0.1:8080
service      tcp 192.0.2.10:80, nat, wrr
direction    out, to a client
connection   ESTABLISHED with 10.0.0.1:8080, forgotten in 870 s, silent for 30 s
afterwards   FIN_WAIT with 10.0.0.1:8080, forgotten in 120 s
source       10.0.0.1:8080 -> 192.0.2.10:80
destination  198.51.100.7:40112
ttl          64 -> 63
source mac   02:00:00:00:02:01 -> 02:00:00:00:00:01
dest. mac    02:00:00:00:00:02 -> 02:00:00:00:09:09
next hop     192.0.2.254 on wan, 02:00:00:00:09:09
verdict      forward, out of wan
";
    assert_eq!(rig.text(&format!("10.0.0.1:8080 {CLIENT} flags=FA")), reply[1..]);
}

#[test]
fn a_packet_inside_of_another_one() {
    let rig = Rig::new();
    let told = "
service      tcp 192.0.2.20:80, tunnel, wlc
direction    in, to a real server
connection   none
scheduler    10.0.0.1:80; wlc: the fewest connections for its weight of 1 (0 active, 0 inactive, weight 1)
afterwards   SYN_RECV with 10.0.0.1:80, forgotten in 60 s
source       198.51.100.7:40112
destination  192.0.2.20:80
ttl          64 -> 63
source mac   02:00:00:00:09:09 -> 02:00:00:00:00:02
dest. mac    02:00:00:00:00:01 -> 02:00:00:00:02:01
inside of    gue:6080:-c 10.0.0.254 -> 10.0.0.1, 72 bytes
next hop     10.0.0.1 on lan, 02:00:00:00:02:01
verdict      forward, out of lan
";
    let text = rig.text(&format!("{CLIENT} 192.0.2.20:80"));
    assert!(text.ends_with(&told[1..]), "{text}");
    let text = rig.text(&format!("{CLIENT} 192.0.2.20:80 length=1469"));
    assert!(
        text.ends_with("verdict      drop, too_big: Longer than the MTU of the output port.\n"),
        "{text}"
    );
}

#[test]
fn schedulers_that_hash_the_5_tuple() {
    let rig = Rig::new();
    for (port, told) in [
        (80, "maglev: the 5-tuple hashes to row 60832 of 65537"),
        (81, "rendezvous: the best score of 1 for this 5-tuple (weight 5)"),
        (82, "p2c: the fewest connections for its weight of 1 (0 active, 0 inactive, weight 1)"),
    ] {
        let text = rig.text(&format!("{CLIENT} 192.0.2.30:{port}"));
        assert!(text.contains(&format!("; {told}\n")), "{text}");
    }
    let [one, other] = ["10.0.0.1:80", "10.0.0.3:80"].map(|server| server.parse().unwrap());
    let reason = dataplane::scheduler::Reason::Row { row: 7, rows: 65537, owner: DestId::new(1).unwrap() };
    let why = |chosen| words::why(&rig.config.services[3], &reason, chosen, |_| Some(one));
    let row = "maglev: the 5-tuple hashes to row 7 of 65537";
    assert_eq!(why(Some(one)), row);
    let full = format!("{row}, that of 10.0.0.1:80, which is full");
    assert_eq!(why(Some(other)), format!("{full}; of the others the best score decides"));
    assert_eq!(why(None), format!("{full}, as are all others"));
}

/// Each way out has its name, its sentence, and what an operator would look for next.
#[test]
fn what_is_not_forwarded_is_told_why() {
    let rig = Rig::new();
    for (question, end) in [
        (
            "198.51.100.7:1 192.0.2.10:81 proto=tcp",
            "service      there is no service tcp/192.0.2.10:81; those at 192.0.2.10 are tcp 80, udp 53; and \
             198.51.100.7 is no real server's address\n\
             verdict      punt to Linux, no_service: No service, and no reply of a connection that is known.\n",
        ),
        (
            "10.0.0.1:22 198.51.100.7:1 flags=SA",
            "service      there is no service tcp/198.51.100.7:1, nor another one at 198.51.100.7; and the real server \
             10.0.0.1 has tcp 8080, udp 53, not tcp 22\n\
             verdict      punt to Linux, no_service: No service, and no reply of a connection that is known.\n",
        ),
        (
            "198.51.100.7:1 192.0.2.10:80 flags=A",
            "connection   none\n\
             verdict      punt to Linux, no_connection: To a service, but of no connection, and does not begin one.\n",
        ),
        (
            "198.51.100.7:1 192.0.2.10:53 proto=udp",
            "scheduler    nobody; sh: the client address hashes to row ROW of 256, that of 10.0.0.1:53, which takes no \
             new connections; no fallback is set\n             not 10.0.0.1:53: weight 0\n\
             verdict      drop, no_server: The service has no usable real server.\n",
        ),
        (
            "198.51.100.7:1 192.0.2.10:80 length=2000",
            "next hop     10.0.0.1 on lan, 02:00:00:00:02:01\n\
             verdict      drop, too_big: Longer than the MTU of the output port.\n",
        ),
    ] {
        let text = rig.text(question);
        let row = text.split("to row ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(text.ends_with(&end.replace("ROW", row)), "{question}:\n{text}");
    }
}

#[test]
fn fragments() {
    let rig = Rig::new();
    let question = format!("{CLIENT} {VIP} fragment=later id=7 length=1500");
    let waits = "
packet       tcp 198.51.100.7:0 -> 192.0.2.10:0, 1500 bytes
comes in on  wan (198.51.100.7 is reached through it)
fragment     a later one of datagram 7: it has no ports, and follows the first, which has not come in the last 30 s
verdict      hold: It waits for the first fragment of its datagram, a second at the most.
";
    assert_eq!(rig.text(&question), waits[1..]);
    let first = rig.text(&format!("{CLIENT} {VIP} fragment=first id=7"));
    assert!(
        first.contains("\nfragment     the first of datagram 7: it goes as a whole packet does"),
        "{first}"
    );
    assert!(first.ends_with("\nverdict      forward, out of lan\n"), "{first}");
    assert_eq!(rig.text(&question), waits[1..], "asking notes nothing");

    let piece = Piece { is_first: true, identification: 7 };
    rig.push_frame(CLIENT, VIP, 0, SYN, |frame| piece.apply(frame));
    let follows = "
packet       tcp 198.51.100.7:0 -> 192.0.2.10:0, 1500 bytes
comes in on  wan (198.51.100.7 is reached through it)
fragment     a later one of datagram 7: it has no ports, and follows the first, which went with a connection of 10.0.0.1:8080
service      tcp 192.0.2.10:80, nat, wrr
source       198.51.100.7:0
destination  192.0.2.10:0 -> 10.0.0.1:0
ttl          64 -> 63
source mac   02:00:00:00:09:09 -> 02:00:00:00:00:02
dest. mac    02:00:00:00:00:01 -> 02:00:00:00:02:01
next hop     10.0.0.1 on lan, 02:00:00:00:02:01
verdict      forward, out of lan
";
    assert_eq!(rig.text(&question), follows[1..]);
}

#[test]
fn what_has_no_ports_goes_with_ike() {
    const IKE: &str = "[[service]]\naddress = '192.0.2.40:500'\nprotocol = 'udp'\nmode = 'nat'\nhelper = 'ipsec'\n\
        [[service.server]]\naddress = '10.0.0.1:500'\n";
    let rig = Rig::of(&format!("{CONFIG}{IKE}"));
    let question = "198.51.100.7:9 192.0.2.40:9 proto=esp";
    let early = rig.ask(question).unwrap();
    assert_eq!((early.verdict.as_str(), early.reason.as_deref()), ("punt", Some("other_protocol")));
    assert_eq!((early.packet.protocol.as_str(), early.service), ("esp", None));

    rig.push_made(Protocol::Udp, "198.51.100.7:500", "192.0.2.40:500", 0, 0, |_| ());
    let follows = "
packet       esp 198.51.100.7:0 -> 192.0.2.40:0, 28 bytes
comes in on  wan (198.51.100.7 is reached through it)
service      udp 192.0.2.40:500, nat, maglev
direction    in, to a real server
connection   UDP with 10.0.0.1:500, forgotten in 300 s, silent for 0 s
afterwards   UDP with 10.0.0.1:500, forgotten in 300 s
source       198.51.100.7:0
destination  192.0.2.40:0 -> 10.0.0.1:0
ttl          64 -> 63
source mac   02:00:00:00:09:09 -> 02:00:00:00:00:02
dest. mac    02:00:00:00:00:01 -> 02:00:00:00:02:01
next hop     10.0.0.1 on lan, 02:00:00:00:02:01
verdict      forward, out of lan
";
    assert_eq!(rig.text(question), follows[1..]);
    let reply = rig.ask("10.0.0.1:1 198.51.100.7:1 proto=esp").unwrap();
    assert_eq!((reply.verdict.as_str(), reply.direction.as_deref()), ("forward", Some("out")));
    let ah = rig.ask("198.51.100.7:9 192.0.2.40:9 proto=ah").unwrap();
    assert_eq!((ah.packet.protocol.as_str(), ah.reason.as_deref()), ("ah", Some("other_protocol")));
}

#[test]
fn wrong_questions() {
    let rig = Rig::new();
    for (words, expected) in [
        ("proto=dccp", "protocol: there is no \"dccp\" here; expected tcp, udp, sctp, esp or ah"),
        (
            "flags=S proto=sctp",
            "flags: a packet of SCTP has none, and is an INIT here; expected them with tcp only",
        ),
        ("flags=SX", "flags: \"SX\" are none; expected some of FSRPAUEC, e.g. SA"),
        ("flags=S proto=udp", "flags: a packet of UDP has none; expected them with tcp only"),
        ("flags=S proto=esp", "flags: a packet of ESP has none; expected them with tcp only"),
        ("port=eth7", "port: there is no \"eth7\"; expected wan or lan"),
        ("fragment=middle", "fragment: there is no \"middle\"; expected first or later"),
        (
            "fragment=first length=45",
            "length: a first fragment has a multiple of 8 bytes behind its header, not 25; expected e.g. 44",
        ),
        ("length=39", "length: 39 bytes are no tcp packet; expected 40 at least"),
    ] {
        let error = rig.ask(&format!("{CLIENT} {VIP} {words}")).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert_eq!(rig.ask(&format!("{CLIENT} {VIP} port=lan")).unwrap().port.why, "as asked");
}
