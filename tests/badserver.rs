//! Servers, programs and hooks that misbehave: each is named with what is wrong with it, and the good server goes on
//! serving meanwhile.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    authority::{Authority, NOW, PAST},
    client,
    cluster::{Cluster, Layout, vip},
    config::Service,
    flags::Flags,
    nginx::Nginx,
    process::Identity,
    router::Router,
    servers::Server,
    wait::{self, PATIENCE},
    with_cluster,
};
use socket2::SockRef;

/// Waits until all of these are down for these reasons and nobody else is, while the good server answers every request.
fn assert_bad(cluster: &Cluster, router: &Router, bad: &[(u16, SocketAddrV4, &str)]) -> Result<()> {
    router.wait_exactly_down(bad)?;
    // They go on being bad.
    ensure!(client::get(&cluster.client, vip(80), 30)?.counts()? == [30, 0, 0]);
    for (port, server, reason) in bad {
        // What is said first may be another reason than what is said later.
        router.wait_event(&format!("tcp/{}: {server} is down: ", vip(*port)))?;
        let listed = router.server_on(*port, *server)?;
        ensure!(listed.effective_weight == 0, "{reason}: {listed:?}");
    }
    Ok(())
}

/// Servers by TCP that do each something that none should do.
fn rogues(cluster: &Cluster) -> Result<Vec<Server>> {
    let serve =
        |port, rogue: fn(TcpStream)| Server::tcp(&cluster.real_servers[1], cluster.endpoint(1, port), rogue);
    Ok(vec![
        // Says nothing.
        serve(9001, |mut stream| drop(stream.read_to_end(&mut Vec::new())))?,
        // Says a byte of the head now and then (slow loris).
        serve(9002, |stream| drip(stream, b"HTTP/1.1 200 OK\r\nX-Slow: "))?,
        // ... or of the body.
        serve(9003, |stream| drip(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"))?,
        // Resets as soon as it is asked.
        serve(9004, |mut stream| {
            let _ = stream.read(&mut [0; 1]);
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        })?,
        // Leaves without a word.
        serve(9005, |mut stream| {
            let _ = stream.read(&mut [0; 4096]);
        })?,
        // Speaks something else.
        serve(9006, |stream| say(stream, b"220 mail.rvs.test ESMTP\r\n"))?,
        // Promises more than it gives.
        serve(9007, |stream| say(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"))?,
        // Has headers without end.
        serve(9008, |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(&b"X-More: and more\r\n".repeat(100)).is_ok() {}
        })?,
    ])
}

/// Says this and closes.  What was asked is read, or the end would be a reset.
fn say(mut stream: TcpStream, text: &[u8]) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write_all(text);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Says this at once, and a letter now and then for as long as anybody listens.
fn drip(mut stream: TcpStream, start: &[u8]) {
    let _ = stream.write_all(start);
    while stream.write_all(b"x").is_ok() {
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn servers() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let site = Flags::new(Nginx::directory_of(cluster, "site")?)?;
        let (ours, others) =
            (Authority::new(cluster.state(), "ours")?, Authority::new(cluster.state(), "others")?);
        site.write("good", &ours.certify("www.rvs.test", NOW)?)?;
        site.write("expired", &ours.certify("www.rvs.test", PAST)?)?;
        site.write("stranger", &others.certify("www.rvs.test", NOW)?)?;
        // As long as it says, and takes no room on the disk.
        File::create(site.file("huge"))?.set_len(1 << 30)?;
        let good = Nginx::start_with(cluster, 0, "good", 8080, &good_site(&site))?;
        let bad = Nginx::start_with(cluster, 1, "bad", 8081, &bad_sites(&site))?;
        let _rogues = rogues(cluster)?;

        let at = |port| cluster.endpoint(1, port);
        let other = |a, b, c, d| SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 8080);
        let web = [
            (80, at(8081), "status 302 to \"http://10.0.0.12:8081/health\"; expected 200-299"),
            (80, at(8082), "body does not match in its first 256 KiB; expected \"ok\""),
            (80, at(9000), "connection refused"),
            (80, at(9001), "timed out after 1s while waiting for an answer"),
            (80, at(9002), "timed out after 1s while waiting for an answer"),
            (80, at(9003), "timed out after 1s while reading the answer"),
            (80, at(9004), "connection reset"),
            (80, at(9005), "closed before a complete answer"),
            (80, at(9006), "not an answer by HTTP/1"),
            (80, at(9007), "closed before a complete answer"),
            (80, at(9008), "head of more than 64 KiB or a hundred headers"),
            (80, other(10, 0, 0, 99), "no route to host"),
            (80, other(203, 0, 113, 7), "network unreachable"),
        ];
        let tls = [
            (443, at(8443), "certificate has expired"),
            (443, at(8444), "certificate has an unknown issuer"),
            (443, at(8081), "not TLS"),
            (443, at(9001), "timed out after 1s while negotiating TLS"),
            (443, at(9005), "closed during the TLS handshake"),
        ];
        let service = |port, first, bad: &[(u16, SocketAddrV4, &str)], check: &str| {
            let service = Service::tcp("nat", vip(port)).scheduler("rr").check(check).server(first, 1);
            bad.iter().fold(service, |service, (_, server, _)| service.server(*server, 1))
        };
        let http = r#"kind = "http", path = "/health", body = "ok", timeout = "1s""#;
        let https = format!(
            "kind = \"https\", path = \"/health\", host = \"www.rvs.test\", timeout = \"1s\", ca = {:?}",
            ours.file().display().to_string()
        );
        let config = cluster
            .config()
            .service(service(80, cluster.endpoint(0, 8080), &web, http))
            .service(service(443, cluster.endpoint(0, 8443), &tls, &https));
        let router = cluster.start_router(&config)?;
        // Linux asks three times for a neighbour that is not there: not three seconds long.
        cluster.router.sysctl("net/ipv4/neigh/lan/retrans_time_ms", 100)?;
        assert_bad(cluster, &router, &[&web[..], &tls[..]].concat())?;

        // Of a gigabyte little more than what is looked at has left the server: what its and our sockets hold.
        let sent = bad.access_log()?;
        let sent = sent.lines().filter(|line| line.contains(":8082 ")).map(|line| {
            let bytes = line.split(' ').nth(4).context("five columns")?;
            Ok(bytes.parse::<u64>()?)
        });
        let sent: Vec<u64> = sent.collect::<Result<_>>()?;
        ensure!(!sent.is_empty() && sent.iter().all(|bytes| *bytes < 32 << 20), "{sent:?}");
        ensure!(good.clients()?.len() > 30);
        router.finish()
    })
}

fn good_site(files: &Flags) -> String {
    let directory = files.directory().display();
    format!(
        r#"
    server {{
        listen 8080;
        location / {{ return 200 "rs1\n"; }}
        location = /health {{ return 200 "ok\n"; }}
    }}
    server {{
        listen 8443 ssl;
        ssl_certificate {directory}/good;
        ssl_certificate_key {directory}/good;
        location = /health {{ return 200 "ok\n"; }}
    }}"#
    )
}

/// One whose pages lead to themselves, one whose page is a gigabyte, and two with certificates that nobody should take.
fn bad_sites(files: &Flags) -> String {
    let directory = files.directory().display();
    let tls = |port, certificate| {
        format!(
            "server {{ listen {port} ssl; ssl_certificate {directory}/{certificate};
            ssl_certificate_key {directory}/{certificate}; location = /health {{ return 200 \"ok\\n\"; }} }}"
        )
    };
    format!(
        r#"
    server {{ listen 8081; location / {{ return 302 $uri; }} }}
    server {{ listen 8082; location = /health {{ alias {directory}/huge; }} }}
    {}
    {}"#,
        tls(8443, "expired"),
        tls(8444, "stranger")
    )
}

#[test]
fn commands_and_hooks() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let files = Flags::new(cluster.state().file("programs"))?;
        let path = |name: &str| files.file(name).display().to_string();
        // What it does depends on the port that it is asked about.
        files.write(
            "check",
            "case $1 in\n\
             9101) sleep 1000;;\n\
             9102) echo 'no licence' >&2; exit 1;;\n\
             9103) kill -TERM $$;;\n\
             9104) yes;;\n\
             esac\n",
        )?;
        files.write("fails", "echo $RVS_EVENT: the pager is broken >&2\nexit 3\n")?;
        files.write("hangs", &format!("echo $$ >>{}\nsleep 1000\n", path("hanging")))?;

        let at = |port| cluster.endpoint(1, port);
        let commands = [
            (80, at(9101), "timed out after 1s"),
            (80, at(9102), "exit status 1: no licence"),
            (80, at(9103), "killed by SIGTERM"),
            (80, at(9104), "timed out after 1s"),
            (81, at(9101), "cannot run /nonexistent/check: No such file or directory"),
        ];
        let check = format!(
            "kind = \"command\", command = [\"/bin/sh\", {:?}, \"{{port}}\"], timeout = \"1s\"",
            path("check")
        );
        let web = commands[..4].iter().fold(
            Service::tcp("nat", vip(80)).scheduler("rr").check(&check).server(cluster.endpoint(0, 8080), 1),
            |service, (_, server, _)| service.server(*server, 1),
        );
        let hook = |event: &str, program: &str| {
            format!("hooks = {{ {event} = [\"/bin/sh\", {:?}], timeout = \"1s\" }}", path(program))
        };
        let web = web.setting(&hook("down", "fails"));
        let missing = Service::tcp("nat", vip(81))
            .check(r#"kind = "command", command = ["/nonexistent/check"]"#)
            .setting(r#"hooks = { down = ["/nonexistent/hook"] }"#)
            .server(at(9101), 1);
        let hanging = cluster.web_on(82, 80).checked().setting(&hook("down", "hangs"));
        let config = cluster.config().service(web).service(missing).service(hanging);
        let router = cluster.start_router(&config)?;
        assert_bad(cluster, &router, &commands)?;
        let service = |port| format!("tcp/{}: ", vip(port));
        let failed = "hook /bin/sh (down) has failed: exit status 3: down: the pager is broken";
        router.wait_event(&(service(80) + failed))?;
        router.wait_event(
            &(service(81) + "hook /nonexistent/hook (down) has failed: No such file or directory"),
        )?;

        // Two hooks that never end, one after the other: what they are about goes its way meanwhile.
        nginx[1].kill()?;
        nginx[2].kill()?;
        for index in [1, 2] {
            router.wait_up_on(82, cluster.endpoint(index, 80), false)?;
        }
        ensure!(client::get(&cluster.client, vip(82), 30)?.counts()? == [30, 0, 0]);
        let killed = format!("{}hook /bin/sh (down) has failed: it had not ended after 1s", service(82));
        wait::until("both are killed", PATIENCE, || {
            let events = router.events()?;
            ensure!(events.iter().filter(|event| event.starts_with(&killed)).count() == 2, "{events:#?}");
            Ok(())
        })?;
        let pids = std::fs::read_to_string(files.file("hanging"))?;
        let pids: Vec<i32> = pids.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(pids.len() == 2, "{pids:?}");
        wait::until_true("they are gone", PATIENCE, || pids.iter().all(|pid| Identity::of(*pid).is_none()))?;
        router.finish()
    })
}
