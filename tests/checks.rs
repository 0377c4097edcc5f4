//! Each kind of health check against a real server of its kind: it passes, it sees what only this kind can see, and it
//! sees that mended.
//!
//! Several services check one server, each in its own way.  The server is then broken in one way after the other, and
//! each time exactly those services must lose it that look there.  At the end the events must say the same, so that a
//! check that failed in passing, for another reason, is found too.

use std::{collections::BTreeMap, fs, net::SocketAddrV4};

use anyhow::{Context, Result, ensure};
use harness::{
    authority::{Authority, NOW, PAST},
    cluster::{Cluster, Layout, vip},
    config::{Config, Service},
    flags::Flags,
    names::NameServer,
    nginx::Nginx,
    process::Identity,
    python::PythonServer,
    router::Router,
    wait::{self, PATIENCE},
    with_cluster,
};

/// Services that watch one server each, told by their ports.
struct Watch<'a> {
    config: Config,
    router: Option<Router>,
    servers: BTreeMap<u16, SocketAddrV4>,
    /// How often each must have lost its server.
    losses: BTreeMap<u16, usize>,
    down: Vec<u16>,
    cluster: &'a Cluster,
}

impl<'a> Watch<'a> {
    fn new(cluster: &'a Cluster) -> Watch<'a> {
        let config = cluster.config();
        let (servers, losses) = (BTreeMap::new(), BTreeMap::new());
        Watch { config, router: None, servers, losses, down: vec![], cluster }
    }

    fn add(&mut self, port: u16, server: SocketAddrV4, keys: &str) {
        let service = Service::tcp("nat", vip(port)).check(keys).server(server, 1);
        self.config.services.push(service);
        self.servers.insert(port, server);
    }

    fn router(&self) -> Result<&Router> {
        self.router.as_ref().context("it runs")
    }

    /// From now on, or after what was just done, these are down for these reasons, and no others.
    fn expect(&mut self, what: &str, down: &[(u16, &str)]) -> Result<()> {
        if self.router.is_none() {
            self.router = Some(self.cluster.start_router(&self.config)?);
        }
        let expected: Vec<_> =
            down.iter().map(|&(port, reason)| (port, self.servers[&port], reason)).collect();
        self.router()?.wait_exactly_down(&expected).with_context(|| what.to_owned())?;
        for (port, _) in down.iter().filter(|(port, _)| !self.down.contains(port)) {
            *self.losses.entry(*port).or_default() += 1;
        }
        self.down = down.iter().map(|(port, _)| *port).collect();
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let router = self.router.context("it runs")?;
        let events = router.events()?;
        for (port, server) in self.servers {
            let line = format!("tcp/{}: {server} is down: ", vip(port));
            let told: Vec<_> = events.iter().filter(|event| event.starts_with(&line)).collect();
            let expected = self.losses.get(&port).copied().unwrap_or_default();
            ensure!(told.len() == expected, "{expected} losses expected: {told:#?}");
        }
        router.finish()
    }
}

#[test]
fn http_https_and_tls() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let site = Flags::new(Nginx::directory_of(cluster, "site")?)?;
        let ours = Authority::new(cluster.state(), "ours")?;
        let others = Authority::new(cluster.state(), "others")?;
        let good = ours.certify("www.rvs.test", NOW)?;
        site.write("health", "status: ok\n")?;
        site.raise("vhost")?;
        site.write("certificate", &good)?;
        let _nginx = Nginx::start_with(cluster, 0, "site", 8081, &sites(&site))?;

        let (plain, tls) = (cluster.endpoint(0, 8081), cluster.endpoint(0, 8443));
        let trusting = |authority: &Authority| format!("ca = {:?}", authority.file().display().to_string());
        let (ca, other_ca) = (trusting(&ours), trusting(&others));
        let mut watch = Watch::new(cluster);
        watch.add(8001, plain, r#"kind = "http", path = "/status""#);
        watch.add(8002, plain, r#"kind = "http", path = "/status", status = [200, "500-503"]"#);
        watch.add(8003, plain, r#"kind = "http", path = "/health", body = "status: (ok|fine)""#);
        watch.add(8004, plain, r#"kind = "http", path = "/health", body_not = "(?i)error""#);
        watch.add(8005, plain, r#"kind = "http", path = "/vhost", host = "www.rvs.test""#);
        watch.add(8006, plain, r#"kind = "http", path = "/vhost""#);
        let https = r#"kind = "https", path = "/health""#;
        watch.add(8011, tls, &format!("{https}, host = \"www.rvs.test\", {ca}"));
        watch.add(8012, tls, &format!("{https}, host = \"www.rvs.test\""));
        watch.add(8013, tls, &format!("{https}, host = \"www.rvs.test\", skip_verify = true"));
        watch.add(8021, tls, &format!("kind = \"tls\", sni = \"www.rvs.test\", {ca}"));
        watch.add(8022, tls, &format!("kind = \"tls\", sni = \"mail.rvs.test\", {ca}"));
        watch.add(8023, tls, r#"kind = "tls", sni = "www.rvs.test", skip_verify = true"#);
        watch.add(8024, tls, &format!("kind = \"tls\", sni = \"www.rvs.test\", {other_ca}"));

        // The one without the host, without the CA, with a name that nobody there has, with another CA.
        let stranger = "unknown issuer";
        let always =
            [(8006, "status 404; expected 200-299"), (8012, stranger), (8022, "name asked for (SNI)")];
        let with = |more: &[(u16, &'static str)]| [&always[..], &[(8024, stranger)], more].concat();
        // Whoever looks at the certificate at all.
        let all_say = |why: &'static str| [8011, 8012, 8021, 8024].map(|port| (port, why));
        watch.expect("all is well", &with(&[]))?;

        site.raise("sick")?;
        watch.expect("a wrong status", &with(&[(8001, "status 503; expected 200-299")]))?;
        site.lower("sick")?;
        watch.expect("the right status again", &with(&[]))?;
        site.write("health", "status: bad\n")?;
        watch.expect(
            "a wrong body",
            &with(&[(8003, "body does not match; expected \"status: (ok|fine)\"")]),
        )?;
        site.write("health", "status: ok\nERROR: no disk\n")?;
        watch.expect("a bad body", &with(&[(8004, "body matches \"(?i)error\"; expected not to")]))?;
        site.write("health", "status: fine\n")?;
        watch.expect("the right body again", &with(&[]))?;
        site.lower("vhost")?;
        watch.expect("a site is gone", &with(&[(8005, "status 404; expected 200-299")]))?;
        site.raise("vhost")?;
        watch.expect("the site is back", &with(&[]))?;

        site.write("certificate", &ours.certify("www.rvs.test", PAST)?)?;
        let expired = [&always[..1], &always[2..], &all_say("certificate has expired")].concat();
        watch.expect("an expired certificate", &expired)?;
        site.write("certificate", &ours.certify("ftp.rvs.test", NOW)?)?;
        let another = "certificate is not for www.rvs.test";
        watch.expect("another's certificate", &with(&[(8011, another), (8021, another)]))?;
        site.write("certificate", &others.certify("www.rvs.test", NOW)?)?;
        let down = [&always[..], &[(8011, stranger), (8021, stranger)]].concat();
        watch.expect("another CA's certificate", &down)?;
        site.write("certificate", &good)?;
        watch.expect("a good certificate again", &with(&[]))?;
        watch.finish()
    })
}

/// A plain site, a site with a name, and one by TLS that knows only its own name.  What they say is in files.
fn sites(files: &Flags) -> String {
    let directory = files.directory().display();
    format!(
        r#"
    server {{
        listen 8081 default_server;
        root {directory};
        location = /status {{ if (-f {directory}/sick) {{ return 503; }} return 200 "ok\n"; }}
        location = /health {{ }}
        location = /vhost {{ return 404; }}
    }}
    server {{
        listen 8081;
        server_name www.rvs.test;
        root {directory};
    }}
    server {{
        listen 8443 ssl default_server;
        ssl_reject_handshake on;
    }}
    # A file whose name has a variable is read anew for every handshake.
    map $ssl_server_name $site {{ default {directory}; }}
    server {{
        listen 8443 ssl;
        server_name www.rvs.test;
        ssl_certificate $site/certificate;
        ssl_certificate_key $site/certificate;
        root {directory};
    }}"#
    )
}

/// A question for TXT of `state.rvs.test` (RFC 1035, 4.1), as an operator would write it down from a capture.
const TXT_QUERY: &str = "hex:5256010000010000000000000573746174650372767304746573740000100001";

#[test]
fn names_mail_grpc_and_ping() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let records = |address: &str, state: &str| format!("www A {address}\nstate TXT {state}");
        let good = records("192.0.2.80", "alive");
        // Linux sends somebody who asks ten times a second no more than one ICMP error a second.
        cluster.real_servers[0].sysctl("net/ipv4/icmp_ratelimit", 0)?;
        let mut names = NameServer::start(cluster, 0, &good)?;
        let mut mail = PythonServer::mail(cluster, 0)?;
        let mut grpc = PythonServer::grpc(cluster, 0)?;

        let (dns, smtp, health) =
            (cluster.endpoint(0, 53), cluster.endpoint(0, 25), cluster.endpoint(0, 50051));
        let mut watch = Watch::new(cluster);
        let www = r#"kind = "dns", name = "www.rvs.test", type = "A", expect = ["192.0.2.80"]"#;
        watch.add(5301, dns, www);
        watch.add(5302, dns, r#"kind = "dns", name = "rvs.test", transport = "tcp""#);
        watch.add(5303, dns, &format!("kind = \"udp\", payload = \"{TXT_QUERY}\", reply = 'alive'"));
        // Half of its timeout is how long it waits for an error.
        watch.add(5304, dns, r#"kind = "udp", timeout = "1s""#);
        watch.add(2501, smtp, r#"kind = "smtp", helo = "lb.rvs.test""#);
        watch.add(2502, smtp, r#"kind = "smtp", from = "rvs@rvs.test""#);
        let script = r"steps = [{ expect = '^220 .*\r\n' }, { send = 'NOOP\r\n' }, { expect = '^250 ' }]";
        watch.add(2503, smtp, &format!("kind = \"script\", timeout = \"1s\", {script}"));
        watch.add(2504, smtp, r#"kind = "tcp""#);
        watch.add(5001, health, r#"kind = "grpc", service = "shop.Cart""#);
        watch.add(5002, health, r#"kind = "grpc", service = "shop.Cellar""#);
        watch.add(101, cluster.endpoint(1, 80), r#"kind = "ping", timeout = "1s""#);

        // Nobody has heard of that one.
        let always = [(5002, "shop.Cellar")];
        let with = |more: &[(u16, &'static str)]| [&always[..], more].concat();
        watch.expect("all is well", &with(&[]))?;

        names.change(&records("192.0.2.81", "alive"))?;
        let wrong = "answered 192.0.2.81; expected 192.0.2.80";
        watch.expect("another address", &with(&[(5301, wrong)]))?;
        names.change("state TXT ill")?;
        let (unknown, ill) = ("answered NXDOMAIN; expected NOERROR", "expected a match of");
        watch.expect("no address, another text", &with(&[(5301, unknown), (5303, ill)]))?;
        names.change(&good)?;
        watch.expect("the right names again", &with(&[]))?;
        names.kill()?;
        let (closed, refused) = ("port unreachable", "connection refused");
        watch.expect(
            "no name server",
            &with(&[(5301, closed), (5302, refused), (5303, closed), (5304, closed)]),
        )?;
        names.start_again()?;
        watch.expect("a name server again", &with(&[]))?;

        for (flag, port, reason) in [
            ("busy", 2501, "said 421 too busy; expected 250"),
            ("full", 2502, "said 452 no room for mail; expected 250"),
            ("lame", 2503, "timed out after 1s while at step 3: said \"451 not today\\r\\n\"; expected"),
        ] {
            mail.flags.raise(flag)?;
            let both = [(2501, reason), (2502, reason)];
            let down = if flag == "busy" { with(&both) } else { with(&[(port, reason)]) };
            watch.expect(flag, &down)?;
            mail.flags.lower(flag)?;
            watch.expect(&format!("no longer {flag}"), &with(&[]))?;
        }
        mail.kill()?;
        let all = [2501, 2502, 2503, 2504].map(|port| (port, refused));
        watch.expect("no mail server", &with(&all))?;
        mail.start_again()?;
        watch.expect("a mail server again", &with(&[]))?;

        grpc.flags.raise("sick")?;
        watch.expect("not serving", &with(&[(5001, "NOT_SERVING")]))?;
        grpc.flags.lower("sick")?;
        watch.expect("serving", &with(&[]))?;
        grpc.kill()?;
        watch.expect("no gRPC server", &[(5001, refused), (5002, refused)])?;
        grpc.start_again()?;
        watch.expect("a gRPC server again", &with(&[]))?;

        let deaf = |value| cluster.real_servers[1].sysctl("net/ipv4/icmp_echo_ignore_all", value);
        deaf(1)?;
        watch.expect("no answer to a ping", &with(&[(101, "timed out after 1s")]))?;
        deaf(0)?;
        watch.expect("an answer to a ping", &with(&[]))?;
        watch.finish()
    })
}

#[test]
fn a_command() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let files = Flags::new(cluster.state().file("command"))?;
        let program = |body: &str| files.write("check", body);
        let told = files.file("told").display().to_string();
        // No capability, whoever it runs as; the fifth set only bounds what RVS itself may hand on.
        program(&format!(
            "echo $1 $2 $RVS_ADDRESS $RVS_PORT $RVS_SERVER $(grep -cE '^Cap(Inh|Prm|Eff|Amb):\t0*$' /proc/self/status) >{told}"
        ))?;
        let server = cluster.endpoint(2, 5432);
        let script = files.file("check").display().to_string();
        let command = format!(
            "kind = \"command\", timeout = \"1s\", command = [\"/bin/sh\", {script:?}, \"{{address}}\", \"{{port}}\"]"
        );
        let mut watch = Watch::new(cluster);
        watch.add(5401, server, &format!("{command}, dynamic_weight = true"));
        watch.add(5402, server, &command);
        watch.expect("it ends with 0", &[])?;
        wait::until("it was told what it is about", PATIENCE, || {
            let text = fs::read_to_string(&told)?;
            ensure!(text.trim() == "10.0.0.13 5432 10.0.0.13 5432 10.0.0.13:5432 4", "{text:?}");
            Ok(())
        })?;

        program("echo disk full; echo and more; exit 1")?;
        let full = "exit status 1: disk full";
        watch.expect("it ends with 1", &[(5401, full), (5402, full)])?;
        // Who does not let it say a weight takes another status for a failure.
        for (status, weight) in [(12, 10), (255, 253), (2, 0), (3, 1)] {
            program(&format!("exit {status}"))?;
            let reason = format!("exit status {status}");
            watch.expect(&format!("it ends with {status}"), &[(5402, reason.as_str())])?;
            wait::until("it has the weight that it asks for", PATIENCE, || {
                let server = watch.router()?.server_on(5401, server)?;
                ensure!(server.effective_weight == weight, "{server:?}");
                Ok(())
            })?;
        }
        program("exit 0")?;
        watch.expect("it ends with 0 again", &[])?;

        let children = files.file("children");
        program(&format!("sleep 1000 & echo $! >>{}; wait", children.display()))?;
        let late = "timed out after 1s";
        watch.expect("it does not end", &[(5401, late), (5402, late)])?;
        program("exit 0")?;
        watch.expect("it ends again", &[])?;
        let pids: Vec<i32> =
            fs::read_to_string(&children)?.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(pids.len() >= 4, "two of each: {pids:?}");
        wait::until("what it had started is gone", PATIENCE, || {
            let left: Vec<_> = pids.iter().filter(|pid| Identity::of(**pid).is_some()).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        watch.finish()
    })
}
