//! Captures in; lines, counters, files and differences out.

use std::net::SocketAddr;

use dataplane::service::Protocol;
use dataplane::wire::made::{self, Made};
use pcap_file::pcap::{PcapReader, RawPcapPacket};

use super::*;
use crate::config;

const CONFIG: &str = r#"
[workers]
cores = [1, 2]
[table]
connections = 1024
[[port]]
name = "wan"
device = "net_null"
addresses = ["192.0.2.1/24"]
[[port]]
name = "lan"
device = "net_null"
addresses = ["10.0.0.1/24"]
[[service]]
address = "192.0.2.10:80"
mode = "nat"
scheduler = "rr"
sorry_server = "10.0.0.99:80"
[[service.server]]
address = "10.0.0.11:8080"
[[service.server]]
address = "10.0.0.12:8080"
[[service]]
address = "192.0.2.10:81"
mode = "nat"
scheduler = "lc"
timeouts = { syn_recv = 1 }
[[service.server]]
address = "10.0.0.11:81"
[[service.server]]
address = "10.0.0.12:81"
"#;

const CLIENT: &str = "198.51.100.7:40112";

/// A directory of captures.
struct Bench {
    config: Config,
    directory: tempfile::TempDir,
}

/// A packet: milliseconds, source, destination, flags.
type Sent<'a> = (u64, &'a str, &'a str, &'a str);

impl Bench {
    fn new() -> Bench {
        let config = config::parse(Path::new("x.toml"), CONFIG.as_bytes().to_vec()).unwrap();
        Bench { config, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a capture of packets to the MAC of the port with this number.
    fn capture(&self, name: &str, port: u8, packets: &[Sent<'_>]) -> PathBuf {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for &(millis, source, destination, flags) in packets {
            let made = Made {
                protocol: Protocol::Tcp,
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                flags: made::flags(flags).unwrap(),
                ttl: 64,
                length: 0,
            };
            let data = made.frame(&[2, 0, 0, 0, 9, 9], &[2, 0, 0, 0, 0, port]);
            let time = std::time::Duration::from_millis(1_000_000 + millis);
            writer.write_packet(&PcapPacket::new(time, data.len() as u32, &data)).unwrap();
        }
        let path = self.path(name);
        std::fs::write(&path, writer.into_writer()).unwrap();
        path
    }

    fn run(&self, order: &Order) -> (Result<End>, String) {
        let mut out = Vec::new();
        let end = run(&self.config, order, &mut out);
        (end, String::from_utf8(out).unwrap())
    }

    /// What is said when all goes well.
    fn said(&self, order: &Order) -> String {
        let (end, out) = self.run(order);
        assert_eq!(end.unwrap(), End { agrees: true, hints: Vec::new() }, "{out}");
        out
    }

    fn refused(&self, order: &Order) -> String {
        let (end, _) = self.run(order);
        format!("{:#}", end.unwrap_err()).replace(&self.directory.path().display().to_string(), "D")
    }
}

fn of(port: &str, path: PathBuf) -> PortFile {
    (port.to_owned(), path)
}

fn order(inputs: impl IntoIterator<Item = PortFile>) -> Order {
    Order { inputs: inputs.into_iter().collect(), ..Order::default() }
}

fn down(address: &str) -> Down {
    let server: SocketAddr = address.parse().unwrap();
    Down { address: server.ip(), port: Some(server.port()) }
}

#[test]
fn a_tunnel_begins_at_the_ports_own_address() {
    let tunnel = CONFIG.replacen("mode = \"nat\"", "mode = \"tunnel\"", 1).replace(":8080", "");
    let config = config::parse(Path::new("x.toml"), tunnel.as_bytes().to_vec()).unwrap();
    let bench = Bench { config, ..Bench::new() };
    let requests = bench.capture("requests", 1, &[(0, CLIENT, "192.0.2.10:80", "S")]);
    let out = bench.said(&order([of("wan", requests)]));
    assert!(out.contains("forward, out of lan; tcp/192.0.2.10:80 to 10.0.0.12:80; new, SYN_RECV"), "{out}");
}

#[test]
fn a_line_a_packet_in_the_order_of_time() {
    let bench = Bench::new();
    let requests = bench.capture(
        "requests",
        1,
        &[
            (0, CLIENT, "192.0.2.10:80", "S"),
            (2, CLIENT, "192.0.2.10:80", "A"),
            (3, CLIENT, "192.0.2.10:9", "S"),
        ],
    );
    let replies = bench.capture(
        "replies",
        2,
        &[(1, "10.0.0.12:8080", CLIENT, "SA"), (4, "10.0.0.12:8080", CLIENT, "R")],
    );
    let mut order = order([of("wan", requests), of("lan", replies)]);
    let lines = bench.said(&order);
    let expected = [
        "1 0.000000000 wan: tcp 198.51.100.7:40112 > 192.0.2.10:80 [S] 60 bytes; forward, out of lan; \
         tcp/192.0.2.10:80 to 10.0.0.12:8080; new, SYN_RECV; rr: its turn, connection 1 of 2; all workers share the turns; \
         eth.dst 02:00:00:00:00:01 -> 02:00:0a:00:00:0c, eth.src 02:00:00:00:09:09 -> 02:00:00:00:00:02, ip.ttl 64 -> 63, \
         ip.checksum ",
        "2 0.001000000 lan: tcp 10.0.0.12:8080 > 198.51.100.7:40112 [SA] 60 bytes; forward, out of wan; \
         tcp/192.0.2.10:80 from 10.0.0.12:8080; SYN_RECV; eth.dst 02:00:00:00:00:02 -> 02:00:00:00:00:fe, ",
        "3 0.002000000 wan: tcp 198.51.100.7:40112 > 192.0.2.10:80 [A] 60 bytes; forward, out of lan; \
         tcp/192.0.2.10:80 to 10.0.0.12:8080; SYN_RECV -> ESTABLISHED; ",
        "4 0.003000000 wan: tcp 198.51.100.7:40112 > 192.0.2.10:9 [S] 60 bytes; punt, no_service\n",
        "5 0.004000000 lan: tcp 10.0.0.12:8080 > 198.51.100.7:40112 [R] 60 bytes; forward, out of wan; \
         tcp/192.0.2.10:80 from 10.0.0.12:8080; ESTABLISHED -> CLOSE; ",
    ];
    assert_eq!(lines.lines().count(), expected.len());
    for (line, expected) in lines.split_inclusive('\n').zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }

    order.json = true;
    let lines: Vec<serde_json::Value> =
        bench.said(&order).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = &lines[0];
    assert_eq!((&first["time"], &first["number"]), (&"1000.000000000".into(), &1.into()), "{first:#}");
    assert_eq!((&first["protocol"], &first["source"]), (&"tcp".into(), &CLIENT.into()));
    assert_eq!((&first["direction"], &first["service"]), (&"in".into(), &"tcp/192.0.2.10:80".into()));
    assert_eq!(first["connection"], serde_json::json!({ "before": null, "after": "SYN_RECV" }));
    let rewritten = serde_json::json!({ "field": "tcp.dstport", "at": 36, "from": "80", "to": "8080" });
    assert!(first["rewrite"].as_array().unwrap().contains(&rewritten), "{first:#}");
    assert_eq!((&lines[3]["verdict"], &lines[3]["reason"]), (&"punt".into(), &"no_service".into()));
    assert_eq!(lines[3].get("service"), None);
}

#[test]
fn lines_of_ipv6() {
    let text = CONFIG
        .replace("192.0.2.1/24\"", "192.0.2.1/24\", \"2001:db8::1/64\"")
        .replace("10.0.0.1/24\"", "10.0.0.1/24\", \"2001:db8:a::1/64\"")
        .replace("\"192.0.2.10:80\"", "\"[2001:db8::10]:80\"")
        .replace("\"10.0.0.99:80\"", "\"[2001:db8:a::99]:80\"")
        .replace("10.0.0.11:8080", "[2001:db8:a::11]:8080")
        .replace("10.0.0.12:8080", "[2001:db8:a::12]:8080");
    let config = config::parse(Path::new("x.toml"), text.into_bytes()).unwrap();
    let bench = Bench { config, ..Bench::new() };
    let (client, service) = ("[2001:db8:c::7]:40112", "[2001:db8::10]:80");
    let requests = bench.capture("requests", 1, &[(0, client, service, "S")]);
    let replies = bench.capture("replies", 2, &[(1, "[2001:db8:a::12]:8080", client, "SA")]);
    let mut order = order([of("wan", requests), of("lan", replies)]);
    let expected = [
        "1 0.000000000 wan: tcp [2001:db8:c::7]:40112 > [2001:db8::10]:80 [S] 74 bytes; forward, out of lan; \
         tcp/[2001:db8::10]:80 to [2001:db8:a::12]:8080; new, SYN_RECV; rr: its turn, connection 1 of 2; all workers share the turns; \
         eth.dst 02:00:00:00:00:01 -> 02:06:00:00:00:12, eth.src 02:00:00:00:09:09 -> 02:00:00:00:00:02, \
         ipv6.hlim 64 -> 63, ipv6.dst 2001:db8::10 -> 2001:db8:a::12, tcp.dstport 80 -> 8080, tcp.checksum ",
        "2 0.001000000 lan: tcp [2001:db8:a::12]:8080 > [2001:db8:c::7]:40112 [SA] 74 bytes; forward, out of wan; \
         tcp/[2001:db8::10]:80 from [2001:db8:a::12]:8080; SYN_RECV; eth.dst 02:00:00:00:00:02 -> 02:06:00:00:00:fe, ",
    ];
    let lines = bench.said(&order);
    assert_eq!(lines.lines().count(), expected.len());
    for (line, expected) in lines.lines().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    order.down = vec![down("[2001:db8:a::12]:8080")];
    assert!(bench.said(&order).contains("to [2001:db8:a::11]:8080; new"));
    order.down = vec![down("[2001:db8:a::12]:9")];
    let refused = "--down: [2001:db8:a::12]:9 is no real server; expected one of the configuration's";
    assert_eq!(bench.refused(&order), refused);
}

#[test]
fn servers_that_are_down_and_who_serves_instead() {
    let bench = Bench::new();
    let packets: Vec<String> = (1..=4).map(|port| format!("198.51.100.7:{port}")).collect();
    let packets: Vec<Sent<'_>> =
        packets.iter().map(|client| (0, client.as_str(), "192.0.2.10:80", "S")).collect();
    let mut order = order([of("wan", bench.capture("x", 1, &packets))]);
    (order.summary, order.json) = (true, true);
    let connections = |down: &[Down]| {
        let order = Order { down: down.to_vec(), ..order.clone() };
        let summary: serde_json::Value = serde_json::from_str(&bench.said(&order)).unwrap();
        let servers =
            summary["servers"].as_array().unwrap().iter().filter(|server| server["connections"] != 0);
        servers
            .map(|server| format!("{} {}", server["address"].as_str().unwrap(), server["connections"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(connections(&[]), ["10.0.0.11:8080 2", "10.0.0.12:8080 2"]);
    assert_eq!(connections(&[down("10.0.0.11:8080")]), ["10.0.0.12:8080 4"]);
    let whole = Down { address: "10.0.0.12".parse().unwrap(), port: None };
    assert_eq!(connections(&[down("10.0.0.11:8080"), whole]), ["10.0.0.99:80 4"]);
    order.down = vec![down("10.0.0.11:9")];
    assert_eq!(
        bench.refused(&order),
        "--down: 10.0.0.11:9 is no real server; expected one of the configuration's"
    );
}

/// With least connections a new one goes to who has none; connections that nobody hears of any more are swept, and do not count.
#[test]
fn what_expires_is_swept_by_the_packets_own_time() {
    let bench = Bench::new();
    let one = |millis| (millis, CLIENT, "192.0.2.10:81", "S");
    let others: Vec<String> = (1..=3).map(|port| format!("198.51.100.8:{port}")).collect();
    let other = |millis, index: usize| (millis, others[index].as_str(), "192.0.2.10:81", "S");
    let servers = |packets: &[Sent<'_>]| {
        let order = Order { json: true, ..order([of("wan", bench.capture("x", 1, packets))]) };
        let server = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["server"].clone();
        bench.said(&order).lines().map(|line| server(line).as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (first, second) = ("10.0.0.12:81", "10.0.0.11:81");
    assert_eq!(servers(&[one(0), other(1, 0), other(2, 1), other(3, 2)]), [first, second, first, second]);
    assert_eq!(servers(&[one(0), other(1, 0), other(2, 1), other(60_000, 2)]), [first, second, first, first]);
}

#[test]
fn what_leaves_is_written_and_compared() {
    let bench = Bench::new();
    let syn = |millis, port: u16| (millis, format!("198.51.100.7:{port}"));
    let clients = [syn(5, 1), syn(3, 2), syn(9, 3)];
    let packets: Vec<Sent<'_>> =
        clients.iter().map(|(millis, client)| (*millis, client.as_str(), "192.0.2.10:80", "S")).collect();
    let written = bench.path("out");
    let mut order = order([of("wan", bench.capture("x", 1, &packets))]);
    order.outputs = vec![of("lan", written.clone())];
    order.summary = true;
    let summary = bench.said(&order);
    for line in ["received", "  forwarded", "lan: sent", "connections", "wan: received"] {
        assert!(summary.contains(&format!("{line:<26} {:>12}\n", 3)), "{line}: {summary}");
    }
    assert!(summary.contains(&format!("late                       {:>12}\n", 1)), "{summary}");
    assert!(summary.contains(
        "tcp/192.0.2.10:80 10.0.0.12:8080: connections 2, packets in 2, out 0, bytes in 80, out 0\n"
    ));

    let read = |path: &Path| {
        let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
        let next = |packet: RawPcapPacket<'_>| (packet.ts_sec, packet.ts_frac, packet.data.to_vec());
        std::iter::from_fn(|| Some(next(reader.next_raw_packet()?.unwrap()))).collect::<Vec<_>>()
    };
    let out = read(&written);
    let times: Vec<_> = out.iter().map(|(seconds, nanos, _)| (*seconds, *nanos)).collect();
    assert_eq!(times, [(1000, 5_000_000), (1000, 3_000_000), (1000, 9_000_000)]);
    assert_eq!(out[0].2[30..34], [10, 0, 0, 12]);

    // The same is expected; then one packet less, one more, another one.
    let expected = bench.path("expected");
    let compare = |packets: &[&(u32, u32, Vec<u8>)]| {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (_, _, data) in packets {
            writer.write_packet(&PcapPacket::new(Default::default(), data.len() as u32, data)).unwrap();
        }
        std::fs::write(&expected, writer.into_writer()).unwrap();
        let order = Order {
            expected: vec![of("lan", expected.clone())],
            outputs: Vec::new(),
            summary: true,
            ..order.clone()
        };
        let (end, out) = bench.run(&order);
        let differences = out.lines().find(|line| line.starts_with("lan: differences")).unwrap().to_owned();
        let told: Vec<String> = out
            .lines()
            .take_while(|line| *line != summary.lines().next().unwrap())
            .map(str::to_owned)
            .collect();
        (end.unwrap().agrees, told, differences.split_whitespace().last().unwrap().to_owned())
    };
    let [a, b, c] = [&out[0], &out[1], &out[2]];
    assert_eq!(compare(&[a, b, c]), (true, vec![], "0".to_owned()));
    let unexpected = "lan: packet 3 (packet 3 that came in) is not expected: there are no more in the file";
    assert_eq!(compare(&[a, b]), (false, vec![unexpected.to_owned()], "1".to_owned()));
    let missing = "lan: packet 4 is missing, and 1 behind it".to_owned();
    assert_eq!(compare(&[a, b, c, a, b]), (false, vec![missing], "2".to_owned()));
    let mut other = b.clone();
    other.2[22] = 9;
    let differs =
        "lan: packet 2 (packet 2 that came in) differs from byte 22 on: ip.ttl (byte 22): expected 9, got 63";
    assert_eq!(compare(&[a, &other, c]), (false, vec![differs.to_owned()], "1".to_owned()));
}

#[test]
fn a_packet_that_was_not_captured_whole_is_skipped_and_said() {
    let bench = Bench::new();
    let path = bench.capture("x", 1, &[(0, CLIENT, "192.0.2.10:80", "S")]);
    let mut bytes = std::fs::read(&path).unwrap();
    // The length of what was captured, and that much of it.
    let at = 24 + 8;
    bytes[at..at + 4].copy_from_slice(&40u32.to_ne_bytes());
    bytes.truncate(24 + 16 + 40);
    std::fs::write(&path, bytes).unwrap();
    let order = order([of("wan", path.clone())]);
    assert_eq!(bench.said(&order), "1 0.000000000 wan: 60 bytes; skip, 40 of its 60 bytes were captured\n");
    let summary = bench.said(&Order { summary: true, ..order.clone() });
    assert!(summary.contains(&format!("skipped                    {:>12}\n", 1)), "{summary}");
    let expected = vec![of("wan", path)];
    assert_eq!(
        bench.refused(&Order { expected, ..order }),
        "D/x: 40 of the 60 bytes of a packet were captured; expected whole packets, to compare them"
    );
}

#[test]
fn a_capture_of_another_machine_is_noticed() {
    let bench = Bench::new();
    let order = order([of("wan", bench.capture("x", 7, &[(0, CLIENT, "192.0.2.10:80", "S"); 2]))]);
    let (end, out) = bench.run(&order);
    assert!(out.ends_with("drop, other_host\n"), "{out}");
    let hint = "wan: no packet is to its MAC, 02:00:00:00:00:01, but e.g. to 02:00:00:00:00:07; \
                expected --mac wan=02:00:00:00:00:07?";
    assert_eq!(end.unwrap().hints, [hint]);
    let given = Given { macs: vec![("wan".to_owned(), [2, 0, 0, 0, 0, 7])], ..Given::default() };
    assert!(bench.said(&Order { given, ..order }).contains("forward, out of lan"));
}

#[test]
fn orders_that_make_no_sense() {
    let bench = Bench::new();
    let x = bench.capture("x", 1, &[(0, CLIENT, "192.0.2.10:80", "S")]);
    let good = order([of("wan", x.clone())]);
    let unknown = "there is no port \"eth0\"; expected wan or lan";
    assert_eq!(bench.refused(&order([of("eth0", x.clone())])), format!("--in: {unknown}"));
    let with = |expected: Vec<PortFile>, outputs: Vec<PortFile>| Order { expected, outputs, ..good.clone() };
    assert_eq!(bench.refused(&with(vec![of("eth0", x.clone())], vec![])), format!("--expect: {unknown}"));
    assert_eq!(bench.refused(&with(vec![], vec![of("eth0", bench.path("y"))])), format!("--out: {unknown}"));
    assert_eq!(
        bench.refused(&with(vec![of("lan", x.clone()), of("lan", x.clone())], vec![])),
        "--expect: lan is there twice; expected one file a port"
    );
    assert_eq!(
        bench.refused(&with(vec![], vec![of("lan", x.clone())])),
        "--out: D/x is named before; expected a file of its own"
    );
    assert_eq!(
        bench.refused(&with(vec![], vec![of("lan", bench.path("none/y"))])),
        "D/none/y: No such file or directory (os error 2)"
    );
    assert!(bench.refused(&order([of("wan", bench.path("none"))])).starts_with("D/none: No such file"));
    assert!(!bench.path("y").exists(), "nothing is written when something is wrong");
}

/// Two tagged networks on one wire: a request leaves with the servers' tag, and a reply with the clients'.
#[test]
fn a_router_on_a_stick() {
    let wan = "name = \"wan\"\ndevice = \"net_null\"\n";
    let stick = CONFIG
        .replacen(
            "[[port]]\nname = \"wan\"",
            "[[port]]\nname = \"trunk\"\ndevice = \"net_null\"\n[[vlan]]\nname = \"wan\"",
            1,
        )
        .replacen("[[port]]\nname = \"lan\"", "[[vlan]]\nname = \"lan\"", 1)
        .replacen(
            "\ndevice = \"net_null\"\naddresses = [\"192",
            "\nport = \"trunk\"\nid = 100\naddresses = [\"192",
            1,
        )
        .replacen(
            "\ndevice = \"net_null\"\naddresses = [\"10.",
            "\nport = \"trunk\"\nid = 200\naddresses = [\"10.",
            1,
        );
    assert!(!stick.contains(wan), "{stick}");
    let config = config::parse(Path::new("x.toml"), stick.into_bytes()).unwrap();
    let bench = Bench { config, ..Bench::new() };
    let packets = [(0, CLIENT, "192.0.2.10:80", "S"), (1, "10.0.0.12:8080", CLIENT, "SA")];
    let plain = bench.capture("plain", 1, &packets);
    let mut reader = PcapReader::new(std::fs::File::open(plain).unwrap()).unwrap();
    let mut writer = PcapWriter::new(Vec::new()).unwrap();
    for id in [100, 200] {
        let packet = reader.next_packet().unwrap().unwrap();
        let mut data = packet.data.to_vec();
        data.splice(12..12, [0x81, 0x00, 0, id]);
        writer.write_packet(&PcapPacket::new(packet.timestamp, data.len() as u32, &data)).unwrap();
    }
    let tagged = bench.path("tagged");
    std::fs::write(&tagged, writer.into_writer()).unwrap();

    let out = bench.path("out");
    let said = bench.said(&Order { outputs: vec![of("trunk", out.clone())], ..order([of("trunk", tagged)]) });
    assert!(said.contains("forward, out of lan;") && said.contains("forward, out of wan;"), "{said}");
    let mut reader = PcapReader::new(std::fs::File::open(out).unwrap()).unwrap();
    let tags: Vec<Vec<u8>> =
        std::iter::from_fn(|| Some(reader.next_packet()?.unwrap().data[12..18].to_vec())).collect();
    assert_eq!(tags, [[0x81, 0x00, 0, 200, 0x08, 0x00], [0x81, 0x00, 0, 100, 0x08, 0x00]]);
}
