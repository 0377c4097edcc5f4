//! `rvs replay` against golden vectors, which scapy has made from the RFCs (`vectors/make.py`): every packet leaves byte for byte as it
//! should, and each has the verdict that it should. Needs no privileges.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use harness::router;
use serde_json::Value;

const PORTS: [&str; 2] = ["wan", "lan"];
/// Carries both as tagged networks, in the vectors whose name begins so.
const TRUNK: &str = "trunk";
const TAGGED: &str = "vlan-";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// A directory of its own, empty.
fn scratch(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// The vectors' directories, in order.
fn directories(of: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(of)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut directories: Vec<PathBuf> = entries.into_iter().filter(|path| path.is_dir()).collect();
    directories.sort();
    Ok(directories)
}

fn name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a name")
}

/// `rvs replay` of a vector, with its configuration and what comes in.
fn replay(vector: &Path) -> Result<Command> {
    let shown = name(vector)?;
    let plain = shown.strip_prefix(TAGGED);
    let (config, _) = plain.unwrap_or(shown).split_once('-').context("CONFIG-NAME")?;
    let mut config = vectors().join(format!("{config}.toml"));
    if plain.is_some() {
        config = with_networks(&config)?;
    }
    let mut command = Command::new(router::program()?);
    command.arg("replay").arg("-c").arg(config);
    with_files(&mut command, "--in", vector, "in");
    Ok(command)
}

/// A configuration with its ports as tagged networks of one.
fn with_networks(config: &Path) -> Result<PathBuf> {
    let mut text = fs::read_to_string(config)?;
    for (port, id) in PORTS.iter().zip([100, 200]) {
        let network = format!("[[vlan]]\nport = \"{TRUNK}\"\nid = {id}\nname = \"{port}\"\n");
        text = text.replace(&port_table(port), &network);
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{TAGGED}{}", name(config)?));
    fs::write(&path, text + &port_table(TRUNK))?;
    Ok(path)
}

fn port_table(name: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\ndevice = \"net_null\"\n")
}

/// Adds an option for each port that has such a file.
fn with_files(command: &mut Command, option: &str, directory: &Path, way: &str) {
    for port in [PORTS.as_slice(), &[TRUNK]].concat() {
        let path = directory.join(format!("{port}.{way}.pcap"));
        if path.is_file() {
            command.arg(option).arg(format!("{port}={}", path.display()));
        }
    }
}

/// Exit code and stdout.
fn run(mut command: Command) -> Result<(Option<i32>, String)> {
    let output = command.output()?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(complaints.is_empty(), "{command:?}: {complaints}");
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

#[test]
fn every_vector_leaves_as_it_should() -> Result<()> {
    let directories = directories(&vectors())?;
    for vector in &directories {
        let shown = name(vector)?;
        let mut command = replay(vector)?;
        with_files(&mut command, "--expect", vector, "out");
        command.arg("--json");
        let (code, out) = run(command)?;
        let lines: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let (differences, lines): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| line.get("difference").is_some());
        ensure!(differences.is_empty() && code == Some(0), "{shown}: exit code {code:?}, {differences:#?}");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let verdicts = lines.iter().map(|line| {
            let leaves = line["verdict"] == "forward" || line["verdict"] == "route";
            let detail = if leaves { &line["output"] } else { &line["reason"] };
            format!("{} {}", word(&line["verdict"]), word(detail)).trim_end().to_owned()
        });
        let expected = fs::read_to_string(vector.join("verdicts"))?;
        let differs = verdicts.clone().zip(expected.lines()).position(|(is, should)| is != should);
        if let Some(index) = differs {
            let should = expected.lines().nth(index);
            anyhow::bail!("{shown}: packet {}: expected {should:?}, got {:#}", index + 1, lines[index]);
        }
        // What is a fragment's, the line does not say.
        let has_ports = |line: &Value| ["tcp", "udp", "sctp"].iter().any(|one| line["protocol"] == *one);
        let is_fragment =
            |line: &Value| has_ports(line) && word(&line["source"]).parse::<SocketAddr>().is_err();
        // Nor of what leaves no entry, nor of an answer from where servers of two services are.
        let is_any = |of: &[&str]| of.iter().any(|of| shown.ends_with(of));
        let names_servers = !is_any(&["one-packet", "at-risk", "all-ports", "gate"]);
        let nobodys = lines
            .iter()
            .filter(|_| names_servers)
            .find(|line| line["verdict"] == "forward" && !line["server"].is_string() && !is_fragment(line));
        ensure!(nobodys.is_none(), "{shown}: forwarded to nobody, {nobodys:#?}");
        ensure!(verdicts.len() == expected.lines().count(), "{shown}: {} verdicts", verdicts.len());
    }
    ensure!(directories.len() >= 283, "{directories:?}");
    Ok(())
}

/// What a run writes can be expected of the next one, byte for byte, with lines and without; and one byte that is not as expected is found.
#[test]
fn what_is_written_is_what_is_expected_and_a_flipped_bit_is_found() -> Result<()> {
    let (vector, scratch) = (vectors().join("nat-tcp"), scratch("replay-flipped")?);
    let written = |name: &str| scratch.join(format!("{name}.pcap"));
    let output = |names: [&str; 2], words: &[&str]| {
        let mut command = replay(&vector)?;
        for (port, name) in PORTS.iter().zip(names) {
            command.arg("--out").arg(format!("{port}={}", written(name).display()));
        }
        run({
            command.args(words);
            command
        })
    };
    let (code, text) = output(["wan1", "lan1"], &[])?;
    ensure!(code == Some(0), "{text}");
    let (code, summary) = output(["wan2", "lan2"], &["--summary"])?;
    ensure!(code == Some(0) && summary.contains("forwarded"), "{summary}");
    for port in PORTS {
        let of = |number| fs::read(written(&format!("{port}{number}")));
        ensure!(of(1)? == of(2)?, "{port}: another output without lines");
    }
    ensure!(output(["wan1", "lan1"], &[])?.1 == text, "another output the second time");

    // The last byte of the last packet: its data.
    let mut bytes = fs::read(written("lan1"))?;
    *bytes.last_mut().context("a byte")? ^= 1;
    fs::write(written("lan1"), &bytes)?;
    let expecting = |words: &[&str]| {
        let mut command = replay(&vector)?;
        for port in PORTS {
            let file = written(&format!("{port}1"));
            command.arg("--expect").arg(format!("{port}={}", file.display()));
        }
        command.args(words);
        run(command)
    };
    let (code, out) = expecting(&["--summary"])?;
    let first = out.lines().next().unwrap_or_default();
    ensure!(code == Some(1), "{out}");
    ensure!(first.starts_with("lan: packet ") && first.contains(": tcp.payload (byte "), "{first}");
    let (code, out) = expecting(&["--json"])?;
    let told = out.lines().find(|line| line.contains("\"difference\"")).context(out.clone())?;
    let told: Value = serde_json::from_str(told)?;
    ensure!(code == Some(1) && told["difference"]["fields"][0]["field"] == "tcp.payload", "{told:#}");
    Ok(())
}

#[test]
fn the_committed_vectors_are_those_that_the_script_makes() -> Result<()> {
    let made = scratch("vectors")?;
    let output = Command::new("/usr/bin/python3").arg(vectors().join("make.py")).arg(&made).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = |of: &Path| {
        let mut files = Vec::new();
        for directory in directories(of)? {
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                files.push((path.strip_prefix(of)?.to_owned(), fs::read(&path)?));
            }
        }
        files.sort();
        anyhow::Ok(files)
    };
    let (committed, made) = (files(&vectors())?, files(&made)?);
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    ensure!(names(&committed) == names(&made), "{:?}, {:?}", names(&committed), names(&made));
    for ((name, committed), (_, made)) in committed.iter().zip(&made) {
        ensure!(committed == made, "{} is another one: tests/vectors/make.py tests/vectors", name.display());
    }
    Ok(())
}
