//! The built program against an invented router: what it prints, and how it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rvs::admin::{self, Backend, Connections, Order, Pools, api, capture, explain, upgrade};
use rvs::events::{Events, Kind};
use rvs::metrics::Format;

/// More connections than fit into any pipe.
const CONNECTIONS: u32 = 300_000;

#[derive(Clone)]
struct Router(Events);

impl Backend for Router {
    async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        let server = api::Server {
            address: "10.0.0.1:80".parse()?,
            mode: "nat".to_owned(),
            weight: 3,
            effective_weight: 3,
            state: "enabled".to_owned(),
            remaining: None,
            up: true,
            reason: None,
            active: 12,
            inactive: 40,
            upper_threshold: None,
            lower_threshold: None,
            persistent: 0,
            stats: api::Stats::default(),
            rates: api::Rates::default(),
        };
        Ok(vec![api::Service {
            protocol: "tcp".to_owned(),
            address: "192.0.2.10:80".parse()?,
            mark: None,
            ports: Vec::new(),
            scheduler: "wlc".to_owned(),
            flags: Vec::new(),
            mode: "nat".to_owned(),
            one_packet: false,
            helper: None,
            at_risk: false,
            persistence: None,
            tunnel: None,
            withdrawn: None,
            syn_flood: None,
            stats: api::Stats { connections: 1200, ..api::Stats::default() },
            rates: api::Rates { connections: 15, ..api::Rates::default() },
            servers: vec![server],
        }])
    }

    async fn connections(&self) -> anyhow::Result<Connections> {
        let connection = |index: u32| api::Connection {
            local: None,
            protocol: "tcp".to_owned(),
            client: std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + index), 40112)),
            virtual_: std::net::SocketAddr::new([192, 0, 2, 10].into(), 80),
            server: std::net::SocketAddr::new([10, 0, 0, 1].into(), 80),
            state: "ESTABLISHED".to_owned(),
            expires: 897,
        };
        Ok(Box::new((0..CONNECTIONS).map(connection)))
    }

    async fn counters(&self) -> anyhow::Result<api::Counters> {
        let table = api::Table { slots: 4096, connections: 52 };
        Ok(api::Counters { generation: 1, table, mappings: 0, workers: Vec::new(), ports: Vec::new() })
    }

    async fn snat(&self) -> anyhow::Result<Pools> {
        let (inside, outside) = ("10.0.0.11".parse()?, "192.0.2.50".parse()?);
        let host = api::SnatHost { inside, outside, blocks: 3, tcp: 12, udp: 700, icmp: 1 };
        let inside = vec!["10.0.0.0/24".to_owned(), "10.1.0.0/16".to_owned()];
        let (outside, mappings, blocks) = (vec![outside], 713, api::SnatBlocks::default());
        let pool = api::SnatPool { inside, outside, mappings, room: 65_536, blocks, hosts: vec![host] };
        Ok(Box::new(|| vec![pool]))
    }

    async fn metrics(&self, _: Format) -> anyhow::Result<String> {
        Ok("rvs_snapshot_generation 1\n".to_owned())
    }

    async fn capture(&self, question: capture::Question) -> anyhow::Result<capture::Pieces> {
        anyhow::ensure!(question.filter != "x", "filter: \"x\" is none; expected host A");
        let rest =
            format!("{} {:?} {:?} {:?}", question.filter, question.one_in, question.count, question.seconds);
        Ok(Box::pin(futures_util::stream::iter([b"pieces: ".to_vec(), rest.into_bytes()])))
    }

    async fn explain(&self, question: explain::Question) -> anyhow::Result<explain::Explanation> {
        anyhow::ensure!(question.port.is_none(), "port: there is no \"x\"; expected wan");
        let text = include_str!("explanation.json");
        Ok(serde_json::from_str(text)?)
    }

    fn events(&self) -> &Events {
        &self.0
    }

    async fn reload(&self, dry_run: bool) -> anyhow::Result<api::Reloaded> {
        let overruled = vec!["server tcp/192.0.2.10:80 10.0.0.2:80".to_owned()];
        Ok(api::Reloaded {
            generation: 2,
            services: 1,
            servers: 3,
            changes: vec![change()],
            overruled,
            dry_run,
        })
    }

    async fn change(&self, order: Order) -> anyhow::Result<api::Changed> {
        let changes = if matches!(order, Order::RemoveService(_)) { vec![] } else { vec![change()] };
        Ok(api::Changed { generation: 3, changes, holds: format!("{order:?}") })
    }

    async fn diff(&self) -> anyhow::Result<Vec<api::Change>> {
        Ok(vec![change()])
    }

    async fn sync(&self) -> anyhow::Result<api::Sync> {
        Ok(api::Sync { ready: true, ..api::Sync::default() })
    }

    async fn upgrade(&self, question: upgrade::Question) -> anyhow::Result<api::Upgrading> {
        let binary = question.binary.unwrap_or_else(|| "/usr/local/sbin/rvs".into());
        anyhow::ensure!(!binary.ends_with("bad"), "{} has not proven itself", binary.display());
        Ok(api::Upgrading {
            id: "7".to_owned(),
            from: "0.1.0".to_owned(),
            to: "0.2.0".to_owned(),
            binary: binary.display().to_string(),
        })
    }

    fn upgraded(&self) -> api::Upgrades {
        let stages = vec![api::Stage { name: "EAL".to_owned(), us: 210_000 }];
        let (id, from, to) = ("7".to_owned(), "0.1.0".to_owned(), "0.2.0".to_owned());
        api::Upgrades { last: Some(api::Upgrade { id, from, to, gap_us: 210_000, stages, error: None }) }
    }

    async fn stop(&self, stop: admin::Stop) -> anyhow::Result<admin::Departure> {
        let leaving = |state: &str| {
            let (state, text) = (state.to_owned(), format!("{state} {stop:?}"));
            api::Leaving { state, packets: 0, remaining: 1, text }
        };
        let lines = [leaving("draining"), leaving("stopping")];
        Ok(Box::pin(futures_util::stream::iter(lines)))
    }

    async fn save(&self) -> anyhow::Result<api::Saved> {
        Ok(api::Saved { path: "/etc/rvs/rvs.toml".to_owned(), changes: vec![change()] })
    }

    async fn flush(&self, _: api::Filter) -> anyhow::Result<admin::Flush> {
        Ok(Box::new(|| 1))
    }
}

fn change() -> api::Change {
    let (service, server) = (Some("tcp/192.0.2.10:80".to_owned()), Some("10.0.0.1:80".parse().unwrap()));
    api::Change { sign: api::Sign::Changed, service, server, what: "weight 1 -> 3".to_owned() }
}

/// What has happened to it.
fn events() -> Events {
    let events = Events::default();
    events.publish(Kind::Started { version: "1.2.3", services: 1, servers: 1, stages: Default::default() });
    let server = "10.0.0.1:80".parse().unwrap();
    events.publish(Kind::ServerUp { service: "tcp/192.0.2.10:80".to_owned(), server, checks: 2 });
    events
}

/// The socket of a router that runs as long as the test.
fn router(directory: &Path) -> PathBuf {
    let path = directory.join("rvs.sock");
    let (bound, wait) = std::sync::mpsc::channel();
    let socket = path.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = admin::bind(&socket, None).await.unwrap();
            bound.send(()).unwrap();
            admin::serve(socket, Router(events()), |connection| drop(tokio::spawn(connection))).await;
        });
    });
    wait.recv().unwrap();
    path
}

fn rvs(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rvs"));
    command.args(words.split_whitespace()).stdin(Stdio::null());
    command
}

/// Exit code, stdout and stderr.
fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn asked(words: &str) -> (i32, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = rvs(words);
    command.arg("-s").arg(router(directory.path()));
    run(command)
}

#[test]
fn services() {
    let expected = format!(
        "RVS version {} (size=4096)\n\
         Prot LocalAddress:Port Scheduler Flags\n  \
           -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  192.0.2.10:80 wlc\n  \
           -> 10.0.0.1:80                  Masq    3      12         40        \n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(asked("list -n"), (0, expected, String::new()));
    let (code, listing, _) = asked("list --json");
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Vec<api::Service>>(&listing).unwrap()[0].stats.connections, 1200);
    assert!(asked("list --stats").1.ends_with("0        0        0        0        0\n"));
    assert!(asked("list --rate").1.contains("TCP  192.0.2.10:80                      15        0 "));
    assert!(asked("list --counters").1.contains("Generation 1, 52 of 4096 table entries in use\n"));
}

#[test]
fn connections() {
    let (code, listing, complaints) = asked("list -c");
    assert_eq!((code, complaints.as_str()), (0, ""));
    assert_eq!(listing.lines().count(), CONNECTIONS as usize + 2);
    let first = "TCP 14:57  ESTABLISHED 10.0.0.0:40112     192.0.2.10:80      10.0.0.1:80";
    assert_eq!(listing.lines().nth(2), Some(first));
}

/// `rvs list -c | head -1`
#[test]
fn a_reader_that_has_seen_enough() {
    let directory = tempfile::tempdir().unwrap();
    let socket = router(directory.path());
    for words in ["list -c", "list -c --json"] {
        let mut command = rvs(words);
        command.arg("-s").arg(&socket).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let output = child.wait_with_output().unwrap();
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), complaints.as_str()), (Some(0), ""), "{words}");
    }
}

#[test]
fn what_has_happened() {
    let (code, out, complaints) = asked("events");
    assert_eq!((code, complaints.as_str()), (0, ""));

    assert_eq!(out.lines().count(), 2);
    assert!(
        out.lines()
            .next()
            .unwrap()
            .contains("  RVS 1.2.3 has started: services 1, real servers 1 (ms: eal 0, "),
        "{out}"
    );
    let (_, out, _) = asked("events --json --since 1");
    let event: api::Event = serde_json::from_str(&out).unwrap();
    assert_eq!((event.sequence, event.event.as_str()), (2, "server_up"));
    assert_eq!(event.text, "tcp/192.0.2.10:80: 10.0.0.1:80 is up (checks passed in a row: 2)");
}

/// `rvs events -f` shows each line at once, to whoever reads.
#[test]
fn what_happens() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = rvs("events -f");
    command.arg("-s").arg(router(directory.path())).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("RVS 1.2.3 has started"));
    assert!(lines.next().unwrap().unwrap().contains("10.0.0.1:80 is up"));
    assert_eq!(child.try_wait().unwrap(), None, "it waits for more");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_frame_of_top() {
    let (code, frame, complaints) = asked("top --once");
    assert_eq!((code, complaints.as_str()), (0, ""));
    for part in
        ["connections 52 of 4096 slots (1.3 %)", "tcp/192.0.2.10:80", "10.0.0.1:80", "is up (checks passed"]
    {
        assert!(frame.contains(part), "{part}\n{frame}");
    }
    let refused = "rvs: stdout is no terminal; expected one, or --once for a single frame as text\n";
    assert_eq!(asked("top"), (1, String::new(), refused.to_owned()));
    assert_eq!(run(rvs("top --once -s /nowhere/rvs.sock")).0, 1);
}

#[test]
fn explain() {
    let words = "explain --src 198.51.100.7:40112 --dst 192.0.2.10:80";
    let (code, text, complaints) = asked(words);
    assert_eq!((code, complaints.as_str()), (0, ""));
    assert_eq!(text, include_str!("explanation.txt"));
    let (_, json, _) = asked(&format!("{words} --json"));
    let explanation: explain::Explanation = serde_json::from_str(&json).unwrap();
    assert_eq!(explanation.output.as_deref(), Some("lan"));
    let (code, out, complaints) = asked(&format!("{words} --port x"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(complaints, "rvs: port: there is no \"x\"; expected wan\n");
    for wrong in [
        "explain",
        "explain --src 1.2.3.4 --dst 1.2.3.4:5",
        "explain --src 1.2.3.4:5 --dst 1.2.3.4:5 --proto dccp",
    ] {
        assert_eq!(run(rvs(wrong)).0, 2, "{wrong}");
    }
}

#[test]
fn capture() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (router(directory.path()), directory.path().join("x.pcapng"));
    let capture = |words: &str| {
        let mut command = rvs(words);
        command.arg("-s").arg(&socket).arg("-w").arg(&file);
        run(command)
    };
    let (code, out, complaints) = capture("capture x");
    assert_eq!((code, out.as_str(), file.exists()), (1, "", false));
    assert!(complaints.ends_with("filter: \"x\" is none; expected host A\n"), "{complaints}");
    let (code, out, complaints) = capture("capture host 1.2.3.4 and tcp --rate 1/7 --seconds 3");
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(complaints.ends_with("x.pcapng: 49 bytes\n"), "{complaints}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, "pieces: host 1.2.3.4 and tcp Some(7) None Some(3)");
    let (code, out, _) = asked("capture -w -");
    assert_eq!((code, out.as_str()), (0, "pieces:  None None None"));
    for wrong in ["capture tcp", "capture -w x --rate 1/0", "capture -w x --rate often"] {
        assert_eq!(run(rvs(wrong)).0, 2, "{wrong}");
    }
}

#[test]
fn replay() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let replay = |config: &str, words: &str| {
        let mut command = rvs("replay -c");
        command.arg(vectors.join(config)).args(words.split_whitespace()).current_dir(&vectors);
        run(command)
    };
    let requests = "--in wan=nat-rr/wan.in.pcap --in lan=nat-rr/lan.in.pcap";
    let (code, out, complaints) = replay("nat.toml", &format!("{requests} --expect lan=nat-rr/lan.out.pcap"));
    assert_eq!((code, complaints.as_str(), out.lines().count()), (0, "", 18), "{out}");
    assert!(out.starts_with(
        "1 0.000000000 wan: tcp 198.51.100.7:1000 > 192.0.2.10:81 [S] 54 bytes; forward, out of lan;"
    ));
    let (code, out, _) =
        replay("nat.toml", &format!("{requests} --expect wan=nat-rr/lan.out.pcap --summary"));
    assert_eq!(code, 1);
    assert!(
        out.starts_with("wan: packet 1 (packet 7 that came in) differs from byte 2 on: eth.dst (byte 0): "),
        "{out}"
    );
    let strangers = "--in wan=nat-rr/wan.in.pcap --mac wan=02:00:00:00:00:09 --summary";
    let (code, _, complaints) = replay("nat.toml", strangers);
    assert_eq!(code, 0);
    assert!(complaints.ends_with("expected --mac wan=02:00:00:00:00:01?\n"), "{complaints}");
    let (code, _, complaints) = replay("nat.toml", "--in wan=nat.toml");
    assert_eq!(code, 1);
    assert!(
        complaints.starts_with("rvs: nat.toml: is no capture (it begins with: 23 20 4f 66); "),
        "{complaints}"
    );
    assert_eq!(replay("make.py", requests).0, 2);
    for wrong in
        ["", "--in x", "--in =x", "--in wan=", "--in wan=x --mac wan=1", "--in wan=x --down 10.0.0.1:x"]
    {
        assert_eq!(replay("nat.toml", wrong).0, 2, "{wrong}");
    }
}

#[test]
fn upgrade_waits_for_its_end() {
    let (code, out, complaints) = asked("upgrade --binary /opt/rvs");
    assert_eq!((code, complaints.as_str()), (0, ""));
    assert!(
        out.starts_with("rvs 0.1.0 hands over to 0.2.0 (/opt/rvs)\nrvs 0.2.0 has taken over from 0.1.0\n"),
        "{out}"
    );
    assert!(out.contains("EAL") && out.ends_with("nothing was forwarded for 210.0 ms\n"), "{out}");
    let refused = "rvs: /opt/bad has not proven itself\n".to_owned();
    assert_eq!(asked("upgrade --binary /opt/bad"), (1, String::new(), refused));
}

#[test]
fn reload() {
    let (code, out, complaints) = asked("reload");
    assert_eq!((code, complaints.as_str()), (0, ""));
    let diff = "~ server tcp/192.0.2.10:80 10.0.0.1:80 weight 1 -> 3\n\
        ! server tcp/192.0.2.10:80 10.0.0.2:80: the file has been edited, what was changed live is gone\n";
    assert_eq!(out, format!("{diff}reloaded: generation 2, 1 service, 3 real servers\n"));
    assert_eq!(asked("reload --dry-run").1, format!("{diff}would change 1 thing\n"));
    let (code, out, complaints) = run(rvs("reload -s /nowhere/rvs.sock"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(complaints.starts_with("rvs: cannot reach rvs at /nowhere/rvs.sock"), "{complaints}");
}

#[test]
fn live_changes() {
    let diff = "~ server tcp/192.0.2.10:80 10.0.0.1:80 weight 1 -> 3\n";
    for (words, order) in [
        ("drain tcp/192.0.2.10:80 10.0.0.1:80 --deadline 1m", "state: Some(\"drained\"), deadline: Some(60)"),
        ("undrain 192.0.2.10:80 10.0.0.1:80", "state: Some(\"enabled\"), deadline: None"),
        ("disable udp/192.0.2.10:53 10.0.0.1:53", "protocol: Udp"),
        ("weight tcp/192.0.2.10:80 10.0.0.1:80 3", "weight: Some(3), state: None"),
        ("add server tcp/192.0.2.10:80 10.0.0.1:80 --weight 2", "AddServer"),
        ("add service tcp/192.0.2.20:80 --mode nat --server 10.0.0.1:80", "\"server\": Array"),
        ("remove server tcp/192.0.2.10:80 10.0.0.1:80", "RemoveServer"),
        ("withdraw", "Withdraw(None)"),
        ("announce 192.0.2.10", "Announce(Some(192.0.2.10))"),
    ] {
        let (code, out, complaints) = asked(words);
        assert_eq!((code, complaints.as_str()), (0, ""), "{words}");
        assert!(out.starts_with(&format!("{diff}holds ")) && out.contains(order), "{words}: {out}");
    }
    assert_eq!(
        asked("remove service tcp/192.0.2.10:80"),
        (0, "it is so already\n".to_owned(), String::new())
    );
    assert_eq!(asked("diff"), (0, diff.to_owned(), String::new()));
    assert_eq!(asked("save").1, format!("{diff}/etc/rvs/rvs.toml: 1 change written\n"));
    assert_eq!(asked("flush --client 192.0.2.1").1, "forgot 1 connection\n");
    assert_eq!(asked("stop").1, "draining AtOnce\nstopping AtOnce\n");
    let gracefully = "draining Gracefully(7s)\nstopping Gracefully(7s)\n";
    assert_eq!(asked("stop --graceful --deadline 7s").1, gracefully);
    assert_eq!(run(rvs("stop --deadline 7s")).0, 2);
    assert_eq!(run(rvs("drain dccp/192.0.2.10:80 10.0.0.1:80")).0, 2);
    assert_eq!(run(rvs("flush --all --client 192.0.2.1")).0, 2);
}

#[test]
fn check() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rvs.toml");
    let shown = file.display().to_string();
    let good = "[workers]\ncores = [8000]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n";
    let check = |text: &str, words| {
        std::fs::write(&file, text).unwrap();
        let mut command = rvs(words);
        command.arg("-c").arg(&file);
        let (code, out, complaints) = run(command);
        (code, out.replace(&shown, "F"), complaints.replace(&shown, "F"))
    };
    let ok = "F: ok (1 port, 1 worker, 0 services, 0 real servers)\n";
    assert_eq!(check(good, "check --no-machine"), (0, ok.to_owned(), String::new()));
    for words in ["check", "run"] {
        let (code, out, complaints) = check(good, words);
        assert_eq!((code, out.as_str()), (2, ""), "{words}");
        let expected = "F:2:10: workers.cores[0]: this machine has no core 8000 online; expected one of ";
        assert!(complaints.starts_with(expected), "{words}: {complaints}");
    }
    let (code, _, complaints) = check("cores = 1", "check --no-machine");
    assert_eq!(code, 2);
    assert!(
        complaints.contains("F:1:1: cores: unknown key; expected one of eal, run, workers, "),
        "{complaints}"
    );
}

/// Whom a check by TLS trusts unless its file says so.
#[test]
fn certificates_of_the_system() {
    let directory = tempfile::tempdir().unwrap();
    let (file, system) = (directory.path().join("rvs.toml"), directory.path().join("system.pem"));
    let text = "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n\
                [[service]]\naddress = \"192.0.2.10:443\"\nmode = \"nat\"\n[service.check]\nkind = \"https\"\n";
    std::fs::write(&file, text).unwrap();
    let check = |certificates: &str| {
        std::fs::write(&system, certificates).unwrap();
        let mut command = rvs("check --no-machine");
        // Where OpenSSL and its likes look first.
        command.arg("-c").arg(&file).env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", &system);
        run(command)
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let (code, _, complaints) = check(&certificate);
    assert_eq!((code, complaints.as_str()), (0, ""));
    let (code, out, complaints) = check("");
    assert_eq!((code, out.as_str()), (2, ""));
    let expected = "service[0].check: this machine has no certificates of CAs; expected ca = \"FILE\", or \
                    skip_verify = true";
    assert!(complaints.contains(expected), "{complaints}");
}

#[test]
fn how_it_ends() {
    for (words, code) in [
        ("--help", 0),
        ("--version", 0),
        ("list --help", 0),
        ("", 2),
        ("lsit", 2),
        ("run", 2),
        ("check -c /", 2),
    ] {
        assert_eq!(run(rvs(words)).0, code, "{words}");
    }
}

#[test]
fn a_schema_is_printed_and_a_file_formatted_from_stdin() {
    use std::io::Write;
    let output = rvs("schema").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");

    let fmt = |words, input: &str| {
        let mut child = rvs(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = fmt("fmt -", "# why\n[workers]\ncores=[ 1 ]");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "# why\n[workers]\ncores = [1]\n");
    assert_eq!(fmt("fmt --check", "a=1\n").status.code(), Some(1));
    assert_eq!(fmt("fmt --check -", "a = 1\n").status.code(), Some(0));
    assert_eq!(fmt("fmt -", "a = \n").status.code(), Some(2));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = rvs(&format!("completions {shell}")).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && script.contains("reload") && script.contains("counters"),
            "{script}"
        );
    }
    assert_eq!(rvs("completions dos").output().unwrap().status.code(), Some(2));
}
