//! Running as an operator does: under a service manager, and with no more rights than it takes.

use std::{collections::BTreeMap, fs, os::unix::net::UnixDatagram, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    router, wait,
    wait::PATIENCE,
    with_cluster,
};
use nix::sys::signal::Signal;

const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
/// NET_ADMIN and NET_RAW.
const KEPT: u64 = NET_ADMIN | 1 << 13;

/// What Linux says of each thread of a process, by its name.
fn threads(pid: i32) -> Result<Vec<BTreeMap<String, String>>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let field =
        |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    let status = |text: String| text.lines().filter_map(field).collect();
    // A thread that has ended meanwhile has none.
    let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    Ok(texts.map(status).collect())
}

fn mask(thread: &BTreeMap<String, String>, set: &str) -> Result<u64> {
    Ok(u64::from_str_radix(thread.get(set).context("no such set")?, 16)?)
}

#[test]
fn every_thread_has_no_more_capabilities_than_it_needs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr").checked());
        let router = cluster.start_router(&config)?;
        wait::until("rvs is ready", PATIENCE, || {
            ensure!(router.log().contains(" ready "), "{}", router.log());
            Ok(())
        })?;
        let threads = threads(router.pid())?;
        ensure!(threads.len() >= 3, "control, EAL's and a worker: {threads:#?}");
        for thread in &threads {
            let allowed = if thread["Name"].starts_with("rvs-worker") { 0 } else { KEPT };
            for set in ["CapEff", "CapPrm"] {
                ensure!(mask(thread, set)? & !allowed == 0, "{set}: {thread:#?}");
            }
            // What can be handed on to the program that follows at an upgrade.
            ensure!(mask(thread, "CapBnd")? & !KEPT == 0, "{thread:#?}");
            for set in ["CapAmb", "CapInh"] {
                ensure!(mask(thread, set)? == 0, "{set}: {thread:#?}");
            }
            ensure!(thread["NoNewPrivs"] == "1", "{thread:#?}");
        }
        ensure!(router.log().contains("capabilities dropped") && !router.log().contains("keeps its"));

        // All that goes on still can be done: addresses, neighbours, checks, devices.
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        let mut other = cluster.web().scheduler("rr");
        other.address = "192.0.2.20:80".parse()?;
        router.apply(&config.clone().service(other))?;
        ensure!(cluster.router.addresses("wan")?.iter().any(|address| address.starts_with("192.0.2.20/")));
        router.apply(&config)?;
        ensure!(!cluster.router.addresses("wan")?.iter().any(|address| address.starts_with("192.0.2.20/")));
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.finish()
    })
}

#[test]
fn capabilities_are_kept_when_the_file_says_so() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let config = cluster.config().service(cluster.web());
        let text = format!("[run]\ndrop_capabilities = false\n{config}");
        let router = router::Router::start_text(cluster, &text, &config)?;
        for thread in threads(router.pid())? {
            ensure!(mask(&thread, "CapEff")? & SYS_ADMIN != 0, "{thread:#?}");
            ensure!(thread["NoNewPrivs"] == "0", "{thread:#?}");
        }
        router.finish()
    })
}

/// Whoever hangs under this name.
fn hanging(marker: &str) -> Result<usize> {
    let processes = fs::read_dir("/proc")?.flatten();
    let commands = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    Ok(commands.filter(|words| words.split(|&byte| byte == 0).any(|word| word == marker.as_bytes())).count())
}

#[test]
fn checks_and_hooks_run_as_the_user_that_the_file_names() -> Result<()> {
    const KILL: u64 = 1 << 5;
    const LENT: u64 = 1 << 6 | 1 << 7;
    with_cluster(Layout::TwoArmed, |cluster| {
        let marker = format!("hangs-{}", cluster.state().file("x").display());
        let who =
            "$(id -u) $(id -g) $(id -G) $(grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status | cut -f2 | uniq)";
        let stuck = *cluster.endpoint(1, 8080).ip();
        let mut web = cluster.web().setting(&format!(
            r#"hooks = {{ down = ["/bin/sh", "-c", """echo hook {who}; exit 1"""], user = "nobody" }}"#
        ));
        web.check = Some(format!(
            "kind = \"command\", user = \"nobody\", interval = \"150ms\", timeout = \"1s\", \
             command = [\"/bin/sh\", \"-c\", \"\"\"[ $RVS_ADDRESS = {stuck} ] && sleep 3600; echo {who}; exit 1\"\"\", {marker:?}]"
        ));
        let router = cluster.start_router(&cluster.config().service(web))?;
        let nobody = nix::unistd::User::from_name("nobody")?.context("nobody is there")?;
        let (uid, gid) = (nobody.uid, nobody.gid);
        let expected = format!("exit status 1: {uid} {gid} {gid} 0000000000000000");
        router.wait_up(0, false)?;
        ensure!(router.server(0)?.reason.as_deref() == Some(&expected), "{:?}", router.server(0)?);
        wait::until("the hook has run", PATIENCE, || {
            ensure!(router.log().contains(&expected.replace(": ", ": hook ")), "{}", router.log());
            Ok(())
        })?;
        router.wait_up(1, false)?;
        ensure!(router.server(1)?.reason.is_some_and(|reason| reason.contains("timed out")));
        for thread in &threads(router.pid())? {
            let allowed = if thread["Name"].starts_with("rvs-worker") { 0 } else { KEPT | KILL | LENT };
            ensure!(mask(thread, "CapPrm")? & !allowed == 0, "{thread:#?}");
            ensure!(mask(thread, "CapBnd")? & !(KEPT | KILL | LENT) == 0, "{thread:#?}");
        }
        router.finish()?;
        // Killing another user's program takes CAP_KILL.
        wait::until("nobody hangs", PATIENCE, || {
            ensure!(hanging(&marker)? == 0);
            Ok(())
        })
    })
}

/// The next message but signs of life, which are counted.
fn hear(manager: &UnixDatagram, alive: &mut u32) -> Result<String> {
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).context("the service manager waits for a message")?;
        match String::from_utf8_lossy(&buffer[..length]).into_owned() {
            sign if sign == "WATCHDOG=1\n" => *alive += 1,
            message => return Ok(message),
        }
    }
}

#[test]
fn a_service_manager_is_told_of_everything() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr").checked());
        let file = cluster.state().file("rvs.toml");
        fs::write(&file, config.to_string())?;
        let path = cluster.state().file("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let mut rvs = cluster
            .router
            .command(router::program()?)
            .words("run -c")
            .arg(&file)
            .env("NOTIFY_SOCKET", &path.to_string_lossy())
            .env("WATCHDOG_USEC", "400000")
            .spawn("rvs")?;
        let mut alive = 0;
        let ready = hear(&manager, &mut alive)?;
        ensure!(ready == "READY=1\nSTATUS=services: 1; real servers up: 3 of 3\n", "{ready}");
        // Whoever is told so can be sure of it.
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);

        for bad in [false, true] {
            if bad {
                fs::write(&file, "nonsense")?;
            }
            rvs.signal(Signal::SIGHUP)?;
            let reload = hear(&manager, &mut alive)?;
            ensure!(reload.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reload}");
            ensure!(hear(&manager, &mut alive)?.starts_with("READY=1\n"));
        }
        ensure!(rvs.log().contains("reload refused"), "{}", rvs.log());

        // A server that goes shows in the status; signs of life go on.
        cluster.lan.ip("link set router down")?;
        let status = hear(&manager, &mut alive)?;
        ensure!(
            status.starts_with("STATUS=services: 1; real servers up: ") && !status.contains("3 of 3"),
            "{status}"
        );
        let before = alive;
        manager.set_read_timeout(Some(Duration::from_millis(50)))?;
        wait::until("signs of life", PATIENCE, || {
            let _ = hear(&manager, &mut alive);
            ensure!(alive >= before + 3, "{alive}");
            Ok(())
        })?;

        manager.set_read_timeout(Some(PATIENCE))?;
        rvs.signal(Signal::SIGTERM)?;
        while !hear(&manager, &mut alive)?.starts_with("STOPPING=1\n") {}
        ensure!(rvs.wait(PATIENCE)?.success(), "{}", rvs.log());
        Ok(())
    })
}

#[test]
fn systemd_understands_the_units() -> Result<()> {
    let analyze = std::path::Path::new("/usr/bin/systemd-analyze");
    if !analyze.exists() || !harness::privileged()? {
        return Ok(());
    }
    let state = harness::state::State::unique()?;
    let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd");
    let program = router::program()?.display().to_string();
    for unit in ["rvs.service", "rvs-setup.service"] {
        let text = fs::read_to_string(units.join(unit))?.replace("/usr/sbin/rvs", &program);
        ensure!(text.contains(&program));
        let copy = state.file(unit);
        fs::write(&copy, text)?;
        let verify =
            harness::process::Command::new(&state, analyze).words("verify --man=no").arg(&copy).output()?;
        ensure!(verify.status.success() && verify.stderr.is_empty(), "{verify:?}");
    }
    // What it leaves open, as systemd judges it, from 0 (nothing) to 100: whoever opens more has to say so here.
    let security = harness::process::Command::new(&state, analyze)
        .words("security --offline=true --no-pager --threshold=50")
        .arg(state.file("rvs.service"))
        .output()?;
    ensure!(security.status.success(), "{}", security.stdout);
    state.remove()
}

#[test]
fn the_doctor_finds_who_answers_for_a_virtual_address() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let config = cluster.config().service(cluster.web());
        let file = cluster.state().file("rvs.toml");
        fs::write(&file, config.to_string())?;
        let examine = || router::once(cluster, "doctor --probe --json -c")?.arg(&file).output();
        let answering = |output: &harness::process::Output| -> Result<usize> {
            let findings: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).context("JSON")?;
            let asked = |finding: &&serde_json::Value| finding["subject"] == "address 192.0.2.10";
            Ok(findings.iter().filter(asked).count())
        };
        let alone = examine()?;
        ensure!(answering(&alone)? == 0, "{alone:?}");
        cluster.client.ip("address add 192.0.2.10/32 dev lo")?;
        let rival = examine()?;
        ensure!(answering(&rival)? == 1 && rival.code() == Some(1), "{rival:?}");
        Ok(())
    })
}
