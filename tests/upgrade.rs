//! `rvs upgrade`: the process becomes another program, and everything around it stays.

use std::{
    fs::{self, Permissions},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, VIP, vip},
    config::Config,
    netns::Namespace,
    nginx::big_file,
    process::{Daemon, Output},
    router::{self, Router},
    servers::Server,
    shm::Place,
    wait::{self, PATIENCE},
    with_cluster,
};
use nix::sys::signal::Signal;

/// The built program once more, under another name.
fn another(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let path = cluster.state().file(name);
    fs::copy(router::program()?, &path)?;
    Ok(path)
}

/// Another build: what RVS_OTHER_BIN names, or the built program with another version written into it. And its version.
fn another_build(cluster: &Cluster) -> Result<(PathBuf, String)> {
    let path = cluster.state().file("rvs-other-build");
    let program = match std::env::var_os("RVS_OTHER_BIN") {
        Some(other) => fs::read(other)?,
        None => with_another_version(fs::read(router::program()?)?),
    };
    fs::write(&path, program)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    let said = cluster.router.command(&path).arg("--version").run()?;
    let version = said.split_ascii_whitespace().nth(1).context("it says its version")?.to_owned();
    Ok((path, version))
}

/// Makes it 0.9.0 of 0.1.0 wherever it stands: as a text, and as the compiler stores the beginning of a short one, which is
/// a number in an instruction.
fn with_another_version(mut program: Vec<u8>) -> Vec<u8> {
    const MINOR: usize = 2;
    let text = env!("CARGO_PKG_VERSION").as_bytes();
    let stored = [&[0xC7, 0x00], &text[..4]].concat();
    for at in 0..program.len() - 16 {
        if program[at] == text[0] && program[at..].starts_with(text) {
            program[at + MINOR] = b'9';
        }
        if program[at] == stored[0] && program[at..].starts_with(&stored) {
            program[at + 2 + MINOR] = b'9';
        }
    }
    program
}

/// A program of ours that proves itself, and then does this.
fn impostor(cluster: &Cluster, router: &Router, name: &str, once_proven: &str, run: &str) -> Result<PathBuf> {
    let proof = router::once(cluster, "prove -c")?.arg(&router.file).run()?;
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = prove ]; then echo '{}'; {once_proven}; else {run}; fi\n",
        proof.trim()
    );
    script(cluster, name, &text)
}

fn script(cluster: &Cluster, name: &str, text: &str) -> Result<PathBuf> {
    let path = cluster.state().file(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

fn upgrade(router: &Router, words: &str, binary: &Path) -> Result<Output> {
    router.rvs(&format!("upgrade {words} --binary {}", binary.display())).output()
}

/// The program that a process runs, and what it may do.
fn runs(router: &Router) -> Result<(PathBuf, String)> {
    let pid = router.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let may = status.lines().filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs"));
    // What is handed on is not for programs that it starts.
    Ok((fs::read_link(format!("/proc/{pid}/exe"))?, may.collect::<Vec<_>>().join("\n")))
}

/// Interfaces by number and name, with their addresses, and the neighbours that are known.
fn of_linux(namespace: &Namespace) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for link in namespace.ip_json("address show")?.as_array().into_iter().flatten() {
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        let addresses = addresses.map(|address| address["local"].to_string()).collect::<Vec<_>>().join(" ");
        let keys =
            ["ifindex", "ifname", "address", "mtu", "operstate"].map(|key| link[key].to_string()).join(" ");
        found.push(format!("{keys} {addresses}"));
    }
    let known = namespace.ip_json("neighbour show")?;
    let known = known.as_array().into_iter().flatten().filter(|neighbour| !neighbour["lladdr"].is_null());
    found.extend(known.map(|neighbour| format!("{} {}", neighbour["dst"], neighbour["lladdr"])));
    found.sort();
    Ok(found)
}

/// What Linux tells everybody who listens, keepalived and BIRD for two.
fn listen(namespace: &Namespace) -> Result<Daemon> {
    let daemon = namespace.command("ip").words("-o monitor link address route").spawn("monitor")?;
    // Anything that it must hear, so that it is known to listen.
    wait::until("the monitor hears", PATIENCE, || {
        namespace.ip("address add 127.0.0.77/32 dev lo\naddress del 127.0.0.77/32 dev lo")?;
        ensure!(daemon.log().contains("127.0.0.77"));
        Ok(())
    })?;
    Ok(daemon)
}

/// All but what is of the raw wires, which are let go and taken again.
fn heard(monitor: &Daemon) -> Vec<String> {
    let log = monitor.log();
    let of_twins =
        log.lines().filter(|line| !["127.0.0.77", "wan0@", "lan0@"].iter().any(|word| line.contains(word)));
    of_twins.map(str::to_owned).collect()
}

#[test]
fn the_process_becomes_another_program_and_all_that_is_linux_stays() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        let other = another(cluster, "rvs-other")?;
        let (before, (_, may)) = (of_linux(&cluster.router)?, runs(&router)?);
        let monitor = listen(&cluster.router)?;

        // To itself, which is where it was started from, and to another; then the other one is where it was started from.
        for words in [
            "upgrade --lose-connections".to_owned(),
            format!("upgrade --lose-connections --binary {}", other.display()),
        ] {
            let output = router.rvs(&words).output()?;
            print!("{}", output.stdout);
            let version = env!("CARGO_PKG_VERSION");
            let expected = format!("rvs {version} has taken over from {version}\n");
            ensure!(
                output.code() == Some(0) && output.stdout.contains(&expected),
                "{output:?}\n{}",
                router.log()
            );
            for stage in
                ["workers down", "ports down", "EAL down", "program", "EAL ", "ports ", "table", "publish"]
            {
                ensure!(output.stdout.contains(&format!("  {stage}")), "{stage}: {}", output.stdout);
            }
            ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        }
        let (program, may_now) = runs(&router)?;
        ensure!(program == other, "{program:?}");
        ensure!(may_now == may, "{may}\nbecame\n{may_now}");
        router.rvs("upgrade --lose-connections").run()?;
        ensure!(runs(&router)?.0 == other, "{:?}", runs(&router)?);

        let after = of_linux(&cluster.router)?;
        ensure!(before == after, "{before:#?}\nbecame\n{after:#?}");
        ensure!(heard(&monitor).is_empty(), "{:#?}", heard(&monitor));
        let events = router.rvs("events").run()?;
        ensure!(
            events.contains("has taken over from") && events.contains("nothing was forwarded for"),
            "{events}"
        );

        // Linux goes on answering for the virtual address, and a new client finds it.
        cluster.client.ip("neighbour flush dev eth0")?;
        client::ping(&cluster.client, VIP)?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        drop(monitor);
        router.finish()
    })
}

#[test]
fn who_does_not_prove_himself_changes_nothing() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let servers = cluster.real_servers.iter().enumerate();
        let _echo = servers
            .map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, 7), ""))
            .collect::<Result<Vec<_>>>()?;
        let config = cluster.config().service(cluster.web_on(7, 7).scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"before")?;
        let before = runs(&router)?;

        let fails = script(
            cluster,
            "fails",
            "#!/bin/sh\necho 'error while loading shared libraries' >&2\nexit 127\n",
        )?;
        let chats = script(cluster, "chats", "#!/bin/sh\necho hello\n")?;
        let locked = script(cluster, "locked", "")?;
        fs::set_permissions(&locked, Permissions::from_mode(0o644))?;
        let other = another(cluster, "rvs-other")?;
        let lose = "--lose-connections";
        for (binary, words, expected) in [
            (&fails, lose, "fails has not proven itself (exit status: 127): error while loading"),
            (&chats, lose, "chats does not prove itself as rvs does: hello"),
            (&locked, lose, "locked; expected an rvs program: Permission denied"),
            (&cluster.state().file("missing"), lose, "missing; expected an rvs program: No such file"),
            (&other, "", "expected lose_connections (rvs upgrade --lose-connections)"),
        ] {
            let output = upgrade(&router, words, binary)?;
            ensure!(output.code() == Some(1) && output.stderr.contains(expected), "{expected}: {output:?}");
        }
        // A configuration that the new one would refuse.
        fs::write(&router.file, config.to_string().replace("[[port]]", "[[prt]]"))?;
        let output = upgrade(&router, lose, &other)?;
        ensure!(output.code() == Some(1) && output.stderr.contains("rvs.toml:"), "{output:?}");
        router.write(&config)?;

        let events = router.rvs("events").run()?;
        ensure!(events.matches("upgrade failed").count() == 6, "{events}");
        ensure!(runs(&router)? == before, "{:?}", runs(&router)?);
        client::echo(&mut stream, b"after")?;
        router.finish()
    })
}

#[test]
fn a_program_that_cannot_be_started_is_followed_by_the_old_one() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let (linux, program) = (of_linux(&cluster.router)?, runs(&router)?);
        let vanishes = impostor(cluster, &router, "vanishes", "rm \"$0\"", "exit 1")?;
        let output = upgrade(&router, "--lose-connections", &vanishes)?;
        ensure!(output.code() == Some(1), "{output:?}");
        ensure!(output.stdout.contains("runs again: cannot start"), "{output:?}");
        ensure!(runs(&router)? == program, "{:?}", runs(&router)?);
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        ensure!(linux.iter().all(|thing| of_linux(&cluster.router).is_ok_and(|now| now.contains(thing))));
        let events = router.rvs("events").run()?;
        ensure!(events.contains("upgrade failed: cannot start"), "{events}");
        router.finish()
    })
}

#[test]
fn a_program_that_cannot_open_its_devices_is_followed_by_the_old_one() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Held { router, mut stream, place: _place, _echo } = Held::start(cluster)?;
        let (linux, program) = (of_linux(&cluster.router)?, runs(&router)?);
        // Asks DPDK for something that it does not know.
        let mut broken = fs::read(router::program()?)?;
        let (known, unknown) = (b"--log-level", b"--log-lever");
        for at in 0..broken.len() - known.len() {
            if broken[at] == b'-' && broken[at..].starts_with(known) {
                broken[at..at + unknown.len()].copy_from_slice(unknown);
            }
        }
        let path = cluster.state().file("rvs-broken");
        fs::write(&path, broken)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        let output = upgrade(&router, "", &path)?;
        ensure!(output.code() == Some(1), "{output:?}");
        ensure!(output.stdout.contains("runs again: the new program could not start: "), "{output:?}");
        ensure!(runs(&router)? == program, "{:?}", runs(&router)?);
        client::echo(&mut stream, b"after")?;
        ensure!(linux.iter().all(|thing| of_linux(&cluster.router).is_ok_and(|now| now.contains(thing))));
        let events = router.rvs("events").run()?;
        ensure!(events.contains("upgrade failed: the new program could not start: "), "{events}");
        // Where it was started from is what it was.
        router.rvs("upgrade").run()?;
        ensure!(runs(&router)? == program, "{:?}", runs(&router)?);
        client::echo(&mut stream, b"and on")?;
        router.finish()
    })
}

#[test]
fn a_program_that_dies_on_its_way_leaves_nothing_in_the_way_of_the_next() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let mut router = cluster.start_router(&config)?;
        let dies = impostor(cluster, &router, "dies", ":", "exit 7")?;
        let output = upgrade(&router, "--lose-connections", &dies)?;
        ensure!(output.code() == Some(1), "{output:?}");
        ensure!(output.stderr.contains("the new program does not answer"), "{output:?}");
        ensure!(router.wait()?.code() == Some(7), "{}", router.log());
        let left = cluster.router.interfaces()?;
        ensure!(!left.iter().any(|name| name == "wan" || name == "lan"), "{left:?}");
        let router = cluster.start_router(&config)?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);

        // So does one that is killed after an upgrade: its twins go with it.
        router.rvs("upgrade --lose-connections").run()?;
        router.kill()?;
        let left = cluster.router.interfaces()?;
        ensure!(!left.iter().any(|name| name == "wan" || name == "lan"), "{left:?}");
        Ok(())
    })
}

#[test]
fn another_configuration_comes_with_the_other_program() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let router = cluster.start_router(&config)?;
        let index = |name: &str| -> Result<String> {
            let links = cluster.router.ip_json("link show")?;
            let link = links.as_array().into_iter().flatten().find(|link| link["ifname"] == *name);
            Ok(link.context("it is there")?["ifindex"].to_string())
        };
        let (wan, lan) = (index("wan")?, index("lan")?);
        let mut other = cluster.config().service(cluster.web().scheduler("rr"));
        other.services[0].address = "192.0.2.20:80".parse()?;
        other.ports[0].addresses = vec!["192.0.2.2/24".to_owned()];
        let text = other.to_string().replacen("[[port]]", "[[port]]\nmtu = 1400", 1);
        fs::write(&router.file, text)?;
        router.rvs("upgrade --lose-connections").run()?;
        ensure!((index("wan")?, index("lan")?) == (wan, lan), "other twins");
        let mut addresses = cluster.router.addresses("wan")?;
        addresses.sort();
        ensure!(addresses == ["192.0.2.2/24", "192.0.2.20/32"], "{addresses:?}");
        let links = cluster.router.ip_json("link show dev wan")?;
        ensure!(links[0]["mtu"] == 1400, "{links}");
        let there: SocketAddr = "192.0.2.20:80".parse()?;
        ensure!(client::get(&cluster.client, there, 3)?.counts()? == [1, 1, 1]);
        // What it has taken over it also takes away.
        router
            .apply(&{
                let mut none = other.clone();
                none.services.clear();
                none
            })
            .err()
            .context("the mtu needs a restart")?;
        router.finish()
    })
}

#[test]
fn another_build_goes_on_with_the_connections_if_it_reads_the_table_alike() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Held { place, router, mut stream, _echo } = Held::start(cluster)?;
        let (other, version) = another_build(cluster)?;
        let is_given = std::env::var_os("RVS_OTHER_BIN").is_some();
        ensure!(version != env!("CARGO_PKG_VERSION") || is_given, "{version}");
        let output = upgrade(&router, "", &other)?;
        let own = env!("CARGO_PKG_VERSION");
        let expected = format!("rvs {version} has taken over from {own}\n");
        ensure!(output.code() == Some(0) && output.stdout.contains(&expected), "{output:?}");
        ensure!(runs(&router)?.0 == other, "{:?}", runs(&router)?);
        client::echo(&mut stream, b"by the other build")?;

        // Back again. And one that reads words otherwise, as far as it says: that is refused.
        let output = upgrade(&router, "", &router::program()?)?;
        ensure!(output.code() == Some(0), "{output:?}");
        client::echo(&mut stream, b"and by this one")?;
        let otherwise = otherwise(cluster, &router, ":")?;
        let output = upgrade(&router, "", &otherwise)?;
        let expected = "it lays out the connection table otherwise";
        ensure!(output.code() == Some(1) && output.stderr.contains(expected), "{output:?}");
        let events = router.rvs("events").run()?;
        ensure!(events.contains("upgrade failed: ") && events.contains(expected), "{events}");
        client::echo(&mut stream, b"still")?;

        // Who wants it all the same loses the connections, and is told so. To the new program the index is of a layout that
        // it does not know.
        let index = place.0.join("table/index");
        let change =
            format!("sed -i 's/^layout .*/layout 77/' {}; exec {} \"$@\"", index.display(), other.display());
        let otherwise = self::otherwise(cluster, &router, &change)?;
        let output = upgrade(&router, "--lose-connections", &otherwise)?;
        ensure!(output.code() == Some(0), "{output:?}");
        let reason = "another build made it: its layout is 77; expected";
        ensure!(router.log().contains(reason), "{}", router.log());
        let events = router.rvs("events").run()?;
        ensure!(events.contains(reason), "{events}");
        ensure!(client::echo(&mut stream, b"forgotten").is_err());
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"anew")?;
        router.finish()
    })
}

#[test]
fn connections_that_are_not_kept_at_the_moment_are_not_lost_unasked() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Held { place, router, mut stream, _echo } = Held::start(cluster)?;
        // Nothing can be made where a directory is.
        let obstacle = place.0.join("table/index.new");
        fs::create_dir(&obstacle)?;
        router.rvs(&format!("add server tcp/{} 10.0.0.99:7", vip(7))).run()?;
        ensure!(router.log().contains("connections would not outlive this process"), "{}", router.log());
        let output = router.rvs("upgrade").output()?;
        let expected = "connections are not kept at the moment, the log says why";
        ensure!(output.code() == Some(1) && output.stderr.contains(expected), "{output:?}");
        fs::remove_dir(&obstacle)?;
        wait::until("they are kept again", PATIENCE, || {
            ensure!(router.log().contains("connections are kept again"), "{}", router.log());
            Ok(())
        })?;
        router.rvs("upgrade").run()?;
        client::echo(&mut stream, b"after")?;
        router.finish()
    })
}

/// A program that says that it lays out the table otherwise, and then does this.
fn otherwise(cluster: &Cluster, router: &Router, run: &str) -> Result<PathBuf> {
    let proof = router::once(cluster, "prove -c")?.arg(&router.file).run()?;
    let mut proof: serde_json::Value = serde_json::from_str(&proof)?;
    proof["table"] = 77.into();
    let text = format!("#!/bin/sh\nif [ \"$1\" = prove ]; then echo '{proof}'; else {run}; fi\n");
    script(cluster, "otherwise", &text)
}

#[test]
fn an_estate_that_cannot_be_read_is_done_without() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let Held { router, mut stream, place: _place, _echo } = Held::start(cluster)?;
        let program = router::program()?;
        let loses = format!("exec {} \"$@\" < /dev/null", program.display());
        let loses = impostor(cluster, &router, "loses", ":", &loses)?;
        let _asking = router.rvs(&format!("upgrade --binary {}", loses.display())).spawn("upgrade")?;
        // It begins as after a crash, with twins of its own and the connections.
        let said = "cannot take what the old program has left; starting afresh";
        wait::until("it starts afresh", PATIENCE, || {
            ensure!(router.log().contains(said), "{}", router.log());
            let events = router.rvs("events").run()?;
            ensure!(events.contains("connections go on that were there before: 1 (not: 0;"), "{events}");
            Ok(())
        })?;
        client::echo(&mut stream, b"after")?;
        ensure!(runs(&router)?.0 == program, "{:?}", runs(&router)?);
        router.finish()
    })
}

/// A router that keeps its connections, one of which is held.
struct Held {
    place: Place,
    router: Router,
    stream: TcpStream,
    _echo: Vec<Server>,
}

impl Held {
    fn start(cluster: &Cluster) -> Result<Held> {
        let servers = cluster.real_servers.iter().enumerate();
        let _echo = servers
            .map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, 7), ""))
            .collect::<Result<Vec<_>>>()?;
        let place = Place::new(cluster)?;
        let mut config = cluster.config().service(cluster.web_on(7, 7).scheduler("rr"));
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"before")?;
        Ok(Held { place, router, stream, _echo })
    }
}

#[test]
fn what_was_changed_live_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let servers = cluster.real_servers.iter().enumerate();
        let _echo = servers
            .map(|(index, server)| Server::tcp_echo(server, cluster.endpoint(index, 7), ""))
            .collect::<Result<Vec<_>>>()?;
        let place = Place::new(cluster)?;
        let mut config = cluster.config().service(cluster.web_on(7, 7).scheduler("rr"));
        config.keep = place.keep();
        let third = config.services[0].servers.pop().context("three servers")?.address;
        let router = cluster.start_router(&config)?;
        let (first, second) = (cluster.endpoint(0, 7), cluster.endpoint(1, 7));
        let (service, other) = (format!("tcp/{}", vip(7)), format!("tcp/{}", vip(8)));
        for change in [
            format!("weight {service} {first} 3"),
            format!("add server {service} {third}"),
            format!("add service {other} --mode nat --scheduler rr --server {second}"),
        ] {
            router.rvs(&change).run()?;
        }
        let connect = |port| client::connect(&cluster.client, vip(port));
        let mut streams = [7, 7, 7, 8].map(connect).into_iter().collect::<Result<Vec<_>>>()?;
        let mut go_on = |word: &[u8]| streams.iter_mut().try_for_each(|stream| client::echo(stream, word));
        wait::until("a new server and a new service are reached", PATIENCE, || go_on(b"before"))?;
        router.rvs(&format!("drain {service} {second} --deadline 1h")).run()?;
        let shown = || -> Result<_> {
            let services = router.services()?;
            let servers = services.iter().flat_map(|service| &service.servers).map(|server| {
                (server.address, server.state.clone(), server.weight, server.effective_weight, server.active)
            });
            Ok((router.rvs("diff").run()?, servers.collect::<Vec<_>>()))
        };
        let before = shown()?;
        ensure!(before.0.lines().count() == 5, "{}", before.0);
        for round in [&b"first"[..], b"second"] {
            router.rvs("upgrade").run()?;
            ensure!(shown()? == before, "{before:#?}\nbecame\n{:#?}", shown()?);
            go_on(round)?;
        }
        // It can be written into the file as before.
        router.rvs("save").run()?;
        ensure!(router.rvs("diff").run()?.is_empty());
        go_on(b"saved")?;
        router.finish()
    })
}

#[test]
fn what_checks_have_found_and_what_is_out_of_service_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        // A start as any other has nobody to announce before all three have been checked, each at a moment of its own.
        let web = cluster.web().scheduler("rr").setting("quorum = 3");
        let web = web.check("kind = \"tcp\", interval = \"3s\", jitter = \"3s\", rise = 1, start = \"down\"");
        let config = cluster.config().service(web);
        let text = format!("{config}\n[run]\nvirtual_addresses = \"announce\"\n");
        let router = Router::start_text(cluster, &text, &config)?;
        let holds =
            || Ok::<_, anyhow::Error>(cluster.router.addresses("wan")?.contains(&format!("{VIP}/32")));
        wait::until("it is announced", PATIENCE, || {
            ensure!(holds()?);
            Ok(())
        })?;
        let told = router.rvs("events").run()?;
        let (withdrawn, announced) = (told.find("is withdrawn"), told.find("is announced"));
        ensure!(withdrawn < announced && told.matches("is announced").count() == 1, "{told}");
        let monitor = listen(&cluster.router)?;
        router.rvs("upgrade --lose-connections").run()?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        ensure!(heard(&monitor).is_empty(), "{:#?}", heard(&monitor));

        router.rvs("withdraw").run()?;
        ensure!(!holds()?, "withdrawn");
        router.rvs("upgrade --lose-connections").run()?;
        ensure!(
            !holds()? && router.rvs("list").run()?.contains("out of service"),
            "the upgrade has put it back"
        );
        router.rvs("announce").run()?;
        ensure!(holds()?, "announced again");
        router.finish()
    })
}

/// The service manager of a router.
struct Manager(UnixDatagram);

impl Manager {
    /// Starts a router, and hears that it is ready.
    fn start(cluster: &Cluster, config: &Config) -> Result<(Manager, Router)> {
        let path = cluster.state().file("notify");
        let manager = Manager(UnixDatagram::bind(&path)?);
        manager.0.set_read_timeout(Some(PATIENCE))?;
        let notify = path.to_string_lossy().into_owned();
        let router = Router::start_with(&cluster.router, "rvs", &config.to_string(), config, |command| {
            command.env("NOTIFY_SOCKET", &notify)
        })?;
        ensure!(manager.hear()?.starts_with("READY=1\n"));
        Ok((manager, router))
    }

    /// What it is told next.
    fn hear(&self) -> Result<String> {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).context("the service manager waits for a message")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits for a message that begins so.
    fn hear_until(&self, beginning: &str) -> Result<()> {
        while !self.hear()?.starts_with(beginning) {}
        Ok(())
    }

    /// Sends a signal as soon as the gap of an upgrade has begun. It takes the old program some hundred milliseconds to give
    /// its devices up; that nothing goes on while the signal is on its way makes it sure.
    fn signal_in_the_gap(&self, router: &mut Router, signal: Signal) -> Result<()> {
        self.hear_until("RELOADING=1\n")?;
        for signal in [Signal::SIGSTOP, signal, Signal::SIGCONT] {
            router.signal(signal)?;
        }
        Ok(())
    }
}

#[test]
fn a_signal_in_the_gap_is_heeded_by_the_new_program() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let (manager, mut router) = Manager::start(cluster, &config)?;
        let mut asking = router.rvs("upgrade --lose-connections").spawn("upgrade")?;
        manager.signal_in_the_gap(&mut router, Signal::SIGHUP)?;
        ensure!(asking.wait(PATIENCE)?.success(), "{}", asking.log());
        for beginning in ["READY=1\n", "RELOADING=1\n", "READY=1\n"] {
            manager.hear_until(beginning).with_context(|| router.log())?;
        }
        ensure!(router.log().matches(" reloaded ").count() == 1, "{}", router.log());
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);

        let _asking = router.rvs("upgrade --lose-connections").spawn("upgrade-and-end")?;
        manager.signal_in_the_gap(&mut router, Signal::SIGTERM)?;
        ensure!(router.wait()?.success(), "{}", router.log());
        let (log, said) = (router.log(), "stopping signal=\"SIGTERM\"");
        ensure!(log.matches(said).count() == 1, "{log}");
        let left = cluster.router.interfaces()?;
        ensure!(!left.iter().any(|name| name == "wan" || name == "lan"), "{left:?}");
        Ok(())
    })
}

#[test]
fn a_service_manager_sees_one_process_that_reloads() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let config = cluster.config().service(cluster.web().scheduler("rr"));
        let (manager, mut router) = Manager::start(cluster, &config)?;
        router.rvs("upgrade --lose-connections").run()?;
        let said = manager.hear()?;
        ensure!(said.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said}");
        let said = manager.hear()?;
        ensure!(said.starts_with("READY=1\nSTATUS=services: 1; real servers up: 3 of 3\n"), "{said}");
        // A signal asks as well; what would be lost is not lost unasked.
        router.signal(Signal::SIGUSR2)?;
        wait::until("it is refused", PATIENCE, || {
            ensure!(router.log().contains("upgrade refused, nothing has changed"), "{}", router.log());
            Ok(())
        })?;
        ensure!(client::get(&cluster.client, vip(80), 3)?.counts()? == [1, 1, 1]);
        router.finish()
    })
}

/// Short requests without end.
#[derive(Default)]
struct Asking {
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Asking {
    /// Asks on and on; each request is answered.
    fn run(&self, cluster: &Cluster) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let answers = client::get_parallel(&cluster.client, vip(80), 30, 3)?;
            ensure!(answers.failed.is_empty() && answers.total() == 30, "{answers:?}");
            self.answered.fetch_add(30, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until some that began later than now have been answered.
    fn wait(&self) -> Result<()> {
        let before = self.answered.load(Ordering::Relaxed);
        let answered = || self.answered.load(Ordering::Relaxed) >= before + 60;
        wait::until_true("requests are answered", PATIENCE, answered)
    }
}

/// Held connections, a long download and short requests, through two upgrades in a row.
fn everything_goes_on(layout: Layout) -> Result<()> {
    const PORT: u16 = 7;
    const HELD: usize = 50;
    with_cluster(layout, |cluster| {
        let _nginx = cluster.start_web()?;
        let servers = cluster.real_servers.iter().enumerate();
        let echo = |(index, server)| {
            let address = match layout {
                Layout::TwoArmed => cluster.endpoint(index, PORT),
                Layout::OneArmed => vip(PORT),
            };
            Server::tcp_echo(server, address, "")
        };
        let _echo = servers.map(echo).collect::<Result<Vec<_>>>()?;
        let place = Place::new(cluster)?;
        let mut config = cluster
            .config()
            .service(cluster.web_on(PORT, PORT).scheduler("rr"))
            .service(cluster.web().scheduler("rr"));
        config.keep = place.keep();
        let router = cluster.start_router(&config)?;
        let connect = |_| client::connect(&cluster.client, vip(PORT));
        let mut streams = (0..HELD).map(connect).collect::<Result<Vec<_>>>()?;
        let mut go_on = |word: &str| -> Result<()> {
            for (number, stream) in streams.iter_mut().enumerate() {
                client::echo(stream, word.as_bytes())
                    .with_context(|| format!("connection {number}, {word}"))?;
            }
            Ok(())
        };
        go_on("before")?;
        // Sixteen seconds.
        let mut download = client::start_download(&cluster.client, vip(80), "512k", "download")?;
        let file = cluster.state().file("download");
        wait::until("the download runs", PATIENCE, || {
            ensure!(fs::metadata(&file)?.len() > 0);
            Ok(())
        })?;
        let other = another(cluster, "rvs-other")?;
        for round in ["the first", "the second"] {
            let asking = Asking::default();
            let output = thread::scope(|scope| -> Result<Output> {
                let answers = scope.spawn(|| asking.run(cluster));
                let replace = || -> Result<Output> {
                    asking.wait()?;
                    let output = upgrade(&router, "", &other)?;
                    asking.wait()?;
                    Ok(output)
                };
                let output = replace();
                asking.stop.store(true, Ordering::Relaxed);
                answers.join().expect("it does not panic")?;
                output
            })?;
            print!("{layout:?}, {:?} requests meanwhile: {}", asking.answered, output.stdout);
            ensure!(output.code() == Some(0), "{output:?}");
            download.check_running().context("it was over too early to prove anything")?;
            go_on(round)?;
            let services = router.services()?;
            let echo =
                services.iter().find(|service| service.address == vip(PORT).into()).context("it is there")?;
            let active: u64 = echo.servers.iter().map(|server| server.active).sum();
            ensure!(active == HELD as u64, "{echo:#?}");
        }
        ensure!(download.wait(PATIENCE * 3)?.success(), "{}", download.log());
        ensure!(fs::read(&file)? == big_file(), "the download is not what was served");
        let events = router.rvs("events").run()?;
        ensure!(events.contains("has taken over from"), "{events}");
        streams.into_iter().try_for_each(client::close)?;
        router.finish()
    })
}

#[test]
fn connections_go_on_through_upgrades_under_nat() -> Result<()> {
    everything_goes_on(Layout::TwoArmed)
}

#[test]
fn connections_go_on_through_upgrades_with_direct_routing() -> Result<()> {
    everything_goes_on(Layout::OneArmed)
}

/// Real keepalived, which has a router's virtual address for as long as that is ready and its twin is there.
fn start_keepalived(cluster: &Cluster, socket: &str) -> Result<Daemon> {
    let (state, program) = (cluster.state(), router::program()?);
    let file = state.file("keepalived.conf");
    // As in the example, but for names, and the time that a busy machine may take.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/pair/keepalived-1.conf");
    let example = fs::read_to_string(example)?;
    let (_, script) = example.split_once("vrrp_script ready {").context("the example has a script")?;
    let (script, _) = script.split_once('}').context("the script ends")?;
    ensure!(script.contains("timeout 5\n"), "{script}");
    let command = format!("{} sync --ready -s {socket}", program.display());
    let script =
        script.replace("/usr/local/sbin/rvs sync --ready", &command).replace("timeout 5\n", "timeout 10\n");
    let text = format!(
        "global_defs {{
             vrrp_version 3
             script_user root
             enable_script_security
         }}
         vrrp_script ready {{{script}}}
         vrrp_instance wan {{
             state BACKUP
             interface wan
             virtual_router_id 10
             priority 100
             advert_int 0.2
             virtual_ipaddress {{ {VIP}/32 dev wan }}
             track_script {{ ready }}
         }}\n"
    );
    fs::write(&file, text)?;
    let command =
        cluster.router.command("keepalived").words("--dont-fork --log-console --log-detail --vrrp -f");
    let pid = |what: &str| state.file(&format!("keepalived.{what}.pid"));
    command.arg(&file).arg("-p").arg(pid("main")).arg("-r").arg(pid("vrrp")).spawn("keepalived")
}

#[test]
fn keepalived_does_not_notice() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let servers = cluster.real_servers.iter();
        let _echo = servers.map(|server| Server::tcp_echo(server, vip(7), "")).collect::<Result<Vec<_>>>()?;
        let place = Place::new(cluster)?;
        let mut config = cluster.config().service(cluster.web_on(7, 7).scheduler("rr"));
        config.keep = place.keep();
        let text = format!("{config}\n[run]\nvirtual_addresses = \"follow\"\n");
        let router = Router::start_text(cluster, &text, &config)?;
        let mut keepalived = start_keepalived(cluster, &config.socket)?;
        let holds = || -> Result<()> {
            let addresses = cluster.router.addresses("wan")?;
            ensure!(addresses.contains(&format!("{VIP}/32")), "{addresses:?}\n{}", keepalived.log());
            Ok(())
        };
        // Also to the router, which hears of it from Linux as everybody does.
        wait::until("keepalived has the address", PATIENCE, || {
            let events = router.rvs("events").run()?;
            ensure!(events.contains(&format!("{VIP} is here: its services are live")), "{events}");
            holds()
        })?;
        let mut stream = client::connect(&cluster.client, vip(7))?;
        client::echo(&mut stream, b"before")?;
        for round in [b"first", b"again"] {
            print!("{}", router.rvs("upgrade").run()?);
            holds()?;
            client::echo(&mut stream, round)?;
        }
        keepalived.signal(Signal::SIGTERM)?;
        keepalived.wait(PATIENCE)?;
        let log = keepalived.log();
        let states = log.matches("Entering MASTER STATE").count();
        ensure!(states == 1 && !log.contains("Entering FAULT STATE"), "{log}");
        router.finish()
    })
}
