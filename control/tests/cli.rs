//! The built program against an invented router: what it prints, and how it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rvs::admin::{self, Backend, Connections, api};

/// More connections than fit into any pipe.
const CONNECTIONS: u32 = 300_000;

#[derive(Clone)]
struct Router;

impl Backend for Router {
    async fn services(&self) -> anyhow::Result<Vec<api::Service>> {
        let server = api::Server {
            address: "10.0.0.1:80".parse()?,
            mode: "nat".to_owned(),
            weight: 3,
            up: true,
            reason: None,
            active: 12,
            inactive: 40,
            stats: api::Stats::default(),
            rates: api::Rates::default(),
        };
        Ok(vec![api::Service {
            protocol: "tcp".to_owned(),
            address: "192.0.2.10:80".parse()?,
            scheduler: "wlc".to_owned(),
            flags: Vec::new(),
            mode: "nat".to_owned(),
            stats: api::Stats { connections: 1200, ..api::Stats::default() },
            rates: api::Rates { connections: 15, ..api::Rates::default() },
            servers: vec![server],
        }])
    }

    async fn connections(&self) -> anyhow::Result<Connections> {
        let connection = |index: u32| api::Connection {
            protocol: "tcp".to_owned(),
            client: std::net::SocketAddrV4::new((0x0a00_0000 + index).into(), 40112),
            virtual_: std::net::SocketAddrV4::new([192, 0, 2, 10].into(), 80),
            server: std::net::SocketAddrV4::new([10, 0, 0, 1].into(), 80),
            state: "ESTABLISHED".to_owned(),
            expires: 897,
        };
        Ok(Box::new((0..CONNECTIONS).map(connection)))
    }

    async fn counters(&self) -> anyhow::Result<api::Counters> {
        let table = api::Table { slots: 4096, connections: 52 };
        Ok(api::Counters { generation: 1, table, workers: Vec::new() })
    }

    async fn reload(&self) -> anyhow::Result<api::Reloaded> {
        Ok(api::Reloaded { generation: 2, services: 1, servers: 3 })
    }
}

/// The socket of a router that runs as long as the test.
fn router(directory: &Path) -> PathBuf {
    let path = directory.join("rvs.sock");
    let (bound, wait) = std::sync::mpsc::channel();
    let socket = path.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = admin::bind(&socket).await.unwrap();
            bound.send(()).unwrap();
            admin::serve(socket, Router).await;
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
fn reload() {
    let (code, out, complaints) = asked("reload");
    assert_eq!((code, complaints.as_str()), (0, ""));
    assert_eq!(out, "reloaded: generation 2, 1 service, 3 real servers\n");
    let (code, out, complaints) = run(rvs("reload -s /nowhere/rvs.sock"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(complaints.starts_with("rvs: cannot reach rvs at /nowhere/rvs.sock"), "{complaints}");
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
