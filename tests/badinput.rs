//! Bad configurations: each is refused with file, line, column, key and what was expected, and nothing changes.
//!
//! Every test gives the same bad file to `rvs check`, to `rvs run`, and to a running router by `rvs reload` and by
//! SIGHUP, where the old configuration must stay in force.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    process::Output,
    router::{self, Router},
    wait::{self, PATIENCE},
    with_cluster,
};

/// What an error message must contain.
struct Refusal {
    /// The text of the file where the message must point: any line with it, at a column up to its end.
    at: Option<String>,
    /// The key, as a path.
    key: &'static str,
    /// What the message must say besides.
    says: &'static [&'static str],
}

impl Refusal {
    fn check(&self, output: &Output, file: &Path, code: i32) -> Result<()> {
        ensure!(output.code() == Some(code), "exit {code} expected: {output:?}");
        self.check_text(&output.stderr, file).with_context(|| format!("{output:?}"))
    }

    fn check_text(&self, text: &str, file: &Path) -> Result<()> {
        let file_name = file.display().to_string();
        let text_of_file =
            fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        // FILE:LINE:COLUMN: KEY: what is wrong; what is expected
        let found = text.lines().any(|line| {
            let Some((_, rest)) = line.split_once(&file_name) else { return false };
            let Some(at) = &self.at else { return rest.starts_with(':') };
            let mut parts = rest.trim_start_matches(':').splitn(3, ':');
            let mut number = || parts.next().and_then(|part| part.trim().parse::<usize>().ok());
            let (Some(row), Some(column)) = (number(), number()) else { return false };
            let Some(offending) = text_of_file.lines().nth(row.wrapping_sub(1)) else { return false };
            let message = parts.next().unwrap_or_default();
            offending.contains(at.as_str())
                && (1..=offending.chars().count() + 1).contains(&column)
                && message.trim_start().starts_with(self.key)
                && (message.contains("; ") || message.contains("expected"))
        });
        ensure!(found, "no line `{file_name}:LINE:COLUMN: {}: ...` that points to `{:?}`", self.key, self.at);
        for said in self.says {
            ensure!(text.contains(said), "it does not say `{said}`");
        }
        Ok(())
    }
}

/// Whether a message points to the text `at`, and names `key`.
fn refusal(at: &str, key: &'static str, says: &'static [&'static str]) -> Refusal {
    Refusal { at: Some(at.to_owned()), key, says }
}

/// The configuration that is good, with one thing replaced.
fn replaced(cluster: &Cluster, from: &str, to: &str) -> Result<Vec<u8>> {
    let text = good(cluster);
    ensure!(text.contains(from), "there is no `{from}` in:\n{text}");
    Ok(text.replacen(from, to, 1).into_bytes())
}

fn good(cluster: &Cluster) -> String {
    cluster.config().service(cluster.web().scheduler("rr")).to_string()
}

/// Puts bad contents where a configuration should be.
fn put(file: &Path, contents: Option<&[u8]>) -> Result<()> {
    match contents {
        Some(bytes) => Ok(fs::write(file, bytes)?),
        None => {
            let _ = fs::remove_file(file);
            Ok(fs::create_dir(file)?)
        }
    }
}

/// What must not change: services, real servers and their weights, addresses; and requests are answered.
fn assert_in_force(cluster: &Cluster, router: &Router) -> Result<()> {
    let services = router.services()?;
    ensure!(services.len() == 1 && services[0].address == vip(80).into(), "{services:?}");
    ensure!(services[0].scheduler == "rr" && services[0].servers.len() == 3, "{services:?}");
    ensure!(services[0].servers.iter().all(|server| server.weight == 1 && server.up), "{services:?}");
    ensure!(!router.log().contains(" reloaded "), "{}", router.log());
    ensure!(cluster.router.addresses("wan")?.iter().any(|address| address.starts_with("192.0.2.10/")));
    ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
    Ok(())
}

/// Gives bad contents (a directory if none) to everything that reads a configuration.
fn refused(contents: impl FnOnce(&Cluster) -> Result<Option<Vec<u8>>>, refusal: &Refusal) -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let contents = contents(cluster)?;
        let contents = contents.as_deref();
        let _nginx = cluster.start_web()?;
        let mut router = cluster.start_router(&cluster.config().service(cluster.web().scheduler("rr")))?;

        let bad = cluster.state().file("bad.toml");
        put(&bad, contents)?;
        for verb in ["check", "run"] {
            let output = router::once(cluster, verb)?.arg("-c").arg(&bad).output()?;
            refusal.check(&output, &bad, 2).with_context(|| format!("rvs {verb}"))?;
        }
        assert_in_force(cluster, &router)?;

        let file = router.file.clone();
        put(&file, contents)?;
        refusal.check(&router.reload()?, &file, 1).context("rvs reload")?;
        assert_in_force(cluster, &router)?;

        let seen = router.log().len();
        router.hang_up()?;
        wait::until("the log tells of the refused reload", PATIENCE, || {
            let log = router.log();
            ensure!(log[seen..].contains(&file.display().to_string()), "{}", &log[seen..]);
            Ok(())
        })?;
        assert_in_force(cluster, &router)?;

        // The file is mended: all is well.
        if contents.is_none() {
            fs::remove_dir(&file)?;
        }
        fs::write(&file, good(cluster))?;
        router.reload()?.success()?;
        ensure!(router.log().contains(" reloaded "));
        router.finish()
    })
}

fn refused_when_replaced(from: &str, to: &str, refusal: &Refusal) -> Result<()> {
    refused(|cluster| replaced(cluster, from, to).map(Some), refusal)
}

#[test]
fn unknown_key() -> Result<()> {
    refused_when_replaced(
        "scheduler = \"rr\"",
        "schedular = \"rr\"",
        &refusal("schedular", "service[0].schedular", &["scheduler"]),
    )
}

#[test]
fn unknown_table() -> Result<()> {
    refused_when_replaced("[table]", "[tabel]", &refusal("[tabel]", "tabel", &["table"]))
}

#[test]
fn duplicate_service() -> Result<()> {
    refused(
        |cluster| {
            let config = cluster.config().service(cluster.web().scheduler("rr")).service(cluster.web());
            Ok(Some(config.to_string().into_bytes()))
        },
        &refusal("address = \"192.0.2.10:80\"", "service[1]", &["192.0.2.10:80"]),
    )
}

#[test]
fn duplicate_real_server() -> Result<()> {
    refused_when_replaced(
        "10.0.0.12:8080",
        "10.0.0.11:8080",
        &refusal("10.0.0.11:8080", "service[0].server[1]", &["10.0.0.11:8080"]),
    )
}

#[test]
fn bad_address() -> Result<()> {
    refused_when_replaced(
        "\"192.0.2.10:80\"",
        "\"192.0.2.256:80\"",
        &refusal("192.0.2.256", "service[0].address", &["192.0.2.256"]),
    )
}

#[test]
fn bad_address_of_a_real_server() -> Result<()> {
    refused_when_replaced(
        "\"10.0.0.12:8080\"",
        "\"rs2.example:8080\"",
        &refusal("rs2.example", "service[0].server[1].address", &["rs2.example"]),
    )
}

#[test]
fn all_ports_with_a_server_at_a_port() -> Result<()> {
    refused_when_replaced(
        "\"192.0.2.10:80\"",
        "\"192.0.2.10:0\"",
        &refusal("10.0.0.11:8080", "service[0].server[0].address", &["all ports", "\"10.0.0.11\""]),
    )
}

#[test]
fn port_70000() -> Result<()> {
    refused_when_replaced(
        "\"192.0.2.10:80\"",
        "\"192.0.2.10:70000\"",
        &refusal("192.0.2.10:70000", "service[0].address", &["out of range", "ADDRESS:PORT"]),
    )
}

#[test]
fn unknown_scheduler() -> Result<()> {
    refused_when_replaced(
        "scheduler = \"rr\"",
        "scheduler = \"fastest\"",
        &refusal("fastest", "service[0].scheduler", &["rr", "wrr", "wlc", "mh"]),
    )
}

#[test]
fn unknown_mode() -> Result<()> {
    refused_when_replaced(
        "mode = \"nat\"",
        "mode = \"teleport\"",
        &refusal("teleport", "service[0].mode", &["nat", "dr"]),
    )
}

#[test]
fn core_that_does_not_exist() -> Result<()> {
    refused(
        |cluster| {
            let mut config = cluster.config().service(cluster.web());
            config.cores = vec![1000];
            Ok(Some(config.to_string().into_bytes()))
        },
        &refusal("1000", "workers.cores", &["1000"]),
    )
}

#[test]
fn port_device_that_does_not_exist() -> Result<()> {
    refused_when_replaced("iface=lan0", "iface=lan7", &refusal("iface=lan7", "port[1].device", &["lan7"]))
}

#[test]
fn pci_device_that_does_not_exist() -> Result<()> {
    refused_when_replaced(
        "net_af_packet,iface=lan0",
        "0000:ff:1f.7",
        &refusal("0000:ff:1f.7", "port[1].device", &["0000:ff:1f.7"]),
    )
}

#[test]
fn table_size_0() -> Result<()> {
    refused_when_replaced(
        "connections = 65536",
        "connections = 0",
        &refusal("connections = 0", "table.connections", &["1024"]),
    )
}

#[test]
fn table_size_beyond_all_bounds() -> Result<()> {
    refused_when_replaced(
        "connections = 65536",
        "connections = 9000000000000000000",
        &refusal("9000000000000000000", "table.connections", &[]),
    )
}

#[test]
fn empty_file() -> Result<()> {
    refused(|_| Ok(Some(vec![])), &Refusal { at: None, key: "port", says: &["port"] })
}

#[test]
fn a_directory() -> Result<()> {
    refused(|_| Ok(None), &Refusal { at: None, key: "", says: &["directory"] })
}

#[test]
fn a_10_mb_file_of_noise() -> Result<()> {
    refused(
        |_| {
            // xorshift64: the same noise every time.
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let words = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            });
            Ok(Some(words.take(10 << 17).flatten().collect()))
        },
        &Refusal { at: None, key: "", says: &["UTF-8"] },
    )
}

#[test]
fn a_10_mb_file_of_noise_in_letters() -> Result<()> {
    refused(
        |_| {
            Ok(Some(
                (0..10_u32 << 20)
                    .map(|at| b"[]=\"'#.,{}\nabc"[(at.wrapping_mul(2_654_435_761) >> 16) as usize % 14])
                    .collect(),
            ))
        },
        &Refusal { at: None, key: "", says: &["expected"] },
    )
}

#[test]
fn no_such_file() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let missing = cluster.state().file("missing.toml");
        for verb in ["check", "run"] {
            let output = router::once(cluster, verb)?.arg("-c").arg(&missing).output()?;
            ensure!(output.code() == Some(2) && output.stderr.contains("missing.toml"), "{output:?}");
        }
        Ok(())
    })
}

#[test]
fn every_error_of_a_file_is_told_at_once() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let bad = cluster.state().file("bad.toml");
        let text = good(cluster)
            .replace("scheduler = \"rr\"", "scheduler = \"fastest\"")
            .replace("192.0.2.10:80", "192.0.2.10:70000")
            .replace("connections = 65536", "connections = 1");
        fs::write(&bad, text)?;
        let output = router::once(cluster, "check -c")?.arg(&bad).output()?;
        for refusal in [
            refusal("fastest", "service[0].scheduler", &[]),
            refusal("192.0.2.10:70000", "service[0].address", &[]),
            refusal("connections = 1", "table.connections", &[]),
        ] {
            refusal.check(&output, &bad, 2)?;
        }
        Ok(())
    })
}

#[test]
fn more_queues_than_the_device_has() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        // Two workers want two queues; the device is told to have one.
        let mut config = cluster.config().workers(2).service(cluster.web().scheduler("rr"));
        config.ports[1].device += ",qpairs=1";
        let bad = cluster.state().file("bad.toml");
        fs::write(&bad, config.to_string())?;
        let output = router::once(cluster, "run -c")?.arg(&bad).output()?;
        refusal("qpairs=1", "port[1].device", &["queue"]).check(&output, &bad, 2)?;
        // Nothing is left of the attempt: what comes next finds everything as it was.
        ensure!(cluster.router.interfaces()? == ["lo", "wan0", "lan0"], "{:?}", cluster.router.interfaces()?);
        ensure!(!fs::exists(cluster.state().file("rvs.sock"))?);
        config.ports[1].device = config.ports[1].device.replace(",qpairs=1", "");
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 6)?.total() == 6);
        router.finish()
    })
}

#[test]
fn table_larger_than_memory() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        // A machine with 64 MiB to spare, made up in a mount namespace; no real one is small enough.
        let meminfo = cluster.state().file("meminfo");
        fs::write(&meminfo, "MemTotal: 131072 kB\nMemFree: 65536 kB\nMemAvailable: 65536 kB\n")?;
        let bad = cluster.state().file("bad.toml");
        fs::write(&bad, good(cluster).replace("connections = 65536", "connections = 10_000_000"))?;
        for verb in ["check", "run"] {
            let script = "mount --bind \"$0\" /proc/meminfo && exec \"$@\"";
            let output = cluster
                .router
                .command("unshare")
                .args(["--mount", "sh", "-c", script])
                .arg(&meminfo)
                .arg(router::program()?)
                .args([verb, "-c"])
                .arg(&bad)
                .output()?;
            refusal("10_000_000", "table.connections", &["64 MB"]).check(&output, &bad, 2)?;
        }
        Ok(())
    })
}

#[test]
fn what_only_a_restart_can_change_is_refused_by_a_reload() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let changed = [
            ("table", config.to_string().replace("connections = 65536", "connections = 131072")),
            ("workers", config.clone().workers(2).to_string()),
            ("eal", config.to_string().replace("memory = 256", "memory = 300")),
            ("port", config.to_string().replace("10.0.0.1/24", "10.0.0.2/24")),
        ];
        for (what, text) in changed {
            fs::write(&router.file, text)?;
            let output = router.reload()?;
            ensure!(output.code() == Some(1), "{what}: {output:?}");
            ensure!(output.stderr.contains("restart") && output.stderr.contains(what), "{what}: {output:?}");
            assert_in_force(cluster, &router)?;
        }
        router.finish()
    })
}
