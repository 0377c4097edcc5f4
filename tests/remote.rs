//! The admin API for other machines: over TLS, with a token, at the router's own address behind DPDK.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, Layout, vip},
    process::{Command, Output},
    router::{self, Router, program},
    wait::{self, PATIENCE},
    with_cluster,
};

const TOKEN: &str = "a-token-that-may-do-everything";
const READ_TOKEN: &str = "a-token-that-may-only-look";

fn url() -> String {
    format!("https://{}:9443", Layout::TwoArmed.router())
}

/// Certificate, key and tokens as docs/operating.md has them made, and the table that names them.
struct Remote<'c> {
    cluster: &'c Cluster,
}

impl<'c> Remote<'c> {
    fn new(cluster: &'c Cluster) -> Result<Remote<'c>> {
        let remote = Remote { cluster };
        for (name, contents) in [("admin.token", TOKEN), ("read.token", READ_TOKEN)] {
            fs::write(remote.file(name), format!("{contents}\n"))?;
            fs::set_permissions(remote.file(name), fs::Permissions::from_mode(0o600))?;
        }
        remote.certify()?;
        Ok(remote)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.state().file(name)
    }

    /// Another certificate, with another key.
    fn certify(&self) -> Result<()> {
        let words = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 365 -subj /CN=rvs \
             -addext subjectAltName=IP:{} -addext basicConstraints=critical,CA:FALSE",
            Layout::TwoArmed.router()
        );
        let openssl = Command::new(self.cluster.state(), "openssl").words(&words);
        openssl.arg("-keyout").arg(self.file("admin.key")).arg("-out").arg(self.file("admin.crt")).run()?;
        Ok(())
    }

    fn table(&self) -> String {
        let file = |name| format!("{:?}", self.file(name).display().to_string());
        format!(
            "\n[admin.tcp]\nlisten = \"{}:9443\"\ncertificate = {}\nkey = {}\ntoken_file = {}\nread_token_file = {}\n",
            Layout::TwoArmed.router(),
            file("admin.crt"),
            file("admin.key"),
            file("admin.token"),
            file("read.token")
        )
    }

    /// `curl` on the clients' machine; the last line is the status.
    fn curl(&self, token: Option<&str>, words: &str, path: &str) -> Result<(String, u16)> {
        let curl = self.cluster.client.command("curl").words("-sS --max-time 20 -w \\n%{http_code} --cacert");
        let curl = curl.arg(self.file("admin.crt")).words(words).arg(format!("{}{path}", url()));
        let curl = match token {
            Some(token) => curl.args(["-H", &format!("Authorization: Bearer {token}")]),
            None => curl,
        };
        let answer = curl.run()?;
        let (body, status) = answer.rsplit_once('\n').context("a status")?;
        Ok((body.to_owned(), status.parse()?))
    }

    /// `rvs` on the clients' machine.
    fn rvs(&self, words: &str, token_file: &str) -> Result<Command> {
        let rvs = self.cluster.client.command(program()?).words(words).args(["--url", &url(), "--ca"]);
        Ok(rvs.arg(self.file("admin.crt")).arg("--token-file").arg(self.file(token_file)))
    }
}

fn refused(output: &Output, code: i32, says: &str) -> Result<()> {
    ensure!(
        output.code() == Some(code) && output.stderr.contains(says),
        "expected {code}, {says}: {output:?}"
    );
    Ok(())
}

fn start(cluster: &Cluster, remote: &Remote<'_>) -> Result<Router> {
    let config = cluster.config().service(cluster.web().scheduler("rr").checked());
    Router::start_text(cluster, &format!("{config}{}", remote.table()), &config)
}

#[test]
fn another_machine_asks_with_curl_and_rvs() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let remote = Remote::new(cluster)?;
        let router = start(cluster, &remote)?;
        let (vip, server) = (vip(80), cluster.endpoint(0, Layout::TwoArmed.http_port()));

        // curl, with each token and without one.
        let (body, status) = remote.curl(Some(TOKEN), "", "/v1/diff")?;
        ensure!((body.as_str(), status) == ("[]", 200), "{status}: {body}");
        let patch = "-X PATCH -H content-type:application/json -d {\"weight\":3}";
        let path = format!("/v1/services/tcp/{vip}/servers/{server}");
        for (token, expected, error) in [
            (None, 401, "shows no token"),
            (Some("a-token-of-nobody"), 401, "nobody knows"),
            (Some(READ_TOKEN), 403, "may only look"),
        ] {
            let (body, status) = remote.curl(token, patch, &path)?;
            ensure!(status == expected && body.contains(error), "{token:?}: {status}: {body}");
        }
        ensure!(router.server(0)?.weight == 1);
        ensure!(remote.curl(Some(TOKEN), patch, &path)?.1 == 200);
        ensure!(router.server(0)?.weight == 3);
        // As Prometheus does.
        let (metrics, status) = remote.curl(Some(READ_TOKEN), "", "/metrics")?;
        ensure!(status == 200 && metrics.contains("rvs_server_up{"), "{status}: {metrics}");
        Command::new(cluster.state(), "promtool").words("check metrics").input(metrics).run()?;
        let plain =
            cluster.client.command("curl").words("-sS --max-time 20").arg(url().replace("https", "http"));
        ensure!(plain.run()?.contains("this port speaks HTTP over TLS only"));
        // Somebody who does not know the certificate does not tell the token.
        let stranger =
            cluster.client.command("curl").words("-sS --max-time 20 --cacert /dev/null").arg(url());
        ensure!(!stranger.output()?.status.success());

        // rvs, which is the same client as over the socket.
        ensure!(remote.rvs("list", "read.token")?.run()? == router.list()?);
        refused(
            &remote.rvs(&format!("drain tcp/{vip} {server}"), "read.token")?.output()?,
            1,
            "may only look",
        )?;
        remote.rvs(&format!("drain tcp/{vip} {server}"), "admin.token")?.run()?;
        ensure!(router.server(0)?.state == "drained");
        let frame = remote.rvs("top --once", "read.token")?.run()?;
        ensure!(frame.contains(&url()) && frame.contains(&vip.to_string()), "{frame}");
        let by_environment = cluster
            .client
            .command(program()?)
            .words("diff")
            .env("RVS_URL", &url())
            .env("RVS_CA", &remote.file("admin.crt").to_string_lossy())
            .env("RVS_TOKEN_FILE", &remote.file("read.token").to_string_lossy())
            .run()?;
        ensure!(by_environment.contains("weight 1 -> 3"), "{by_environment}");
        let without_ca = cluster.client.command(program()?).args(["list", "--url", &url(), "--token-file"]);
        refused(
            &without_ca.arg(remote.file("read.token")).output()?,
            1,
            "pass the certificate of its CA by --ca FILE",
        )?;
        router.finish()
    })
}

#[test]
fn a_second_router_on_the_same_tcp_port_is_refused_and_the_first_goes_on() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let remote = Remote::new(cluster)?;
        let router = start(cluster, &remote)?;
        let mut other = cluster.config();
        other.socket += ".other";
        let file = cluster.state().file("other.toml");
        fs::write(&file, format!("{other}{}", remote.table()))?;
        router::once(cluster, "check -c")?.arg(&file).run()?;
        let second = router::once(cluster, "run -c")?.arg(&file).output()?;
        refused(&second, 2, "other.toml:")?;
        refused(
            &second,
            2,
            "admin.tcp.listen: cannot listen at 192.0.2.1:9443: Address already in use; another program",
        )?;
        ensure!(!fs::exists(&other.socket)?, "it leaves no socket behind");
        ensure!(remote.curl(Some(TOKEN), "", "/v1/diff")?.1 == 200);
        router.finish()
    })
}

#[test]
fn a_reload_brings_another_certificate_and_refuses_one_that_does_not_fit() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let remote = Remote::new(cluster)?;
        let router = start(cluster, &remote)?;
        let follower = remote.rvs("events -f", "read.token")?.spawn("follower")?;
        wait::until_true("the follower is there", PATIENCE, || follower.log().contains("has started"))?;
        let old = fs::read(remote.file("admin.crt"))?;
        let old_key = fs::read(remote.file("admin.key"))?;
        remote.certify()?;
        let new = fs::read(remote.file("admin.crt"))?;
        let asks = |certificate: &[u8]| -> Result<bool> {
            fs::write(remote.file("known.crt"), certificate)?;
            let curl = cluster.client.command("curl").words("-sS --max-time 20 -o /dev/null --cacert");
            Ok(curl.arg(remote.file("known.crt")).arg(url()).output()?.status.success())
        };
        ensure!(asks(&old)? && !asks(&new)?, "nothing changes without a reload");
        router.reload()?.success()?;
        ensure!(!asks(&old)? && asks(&new)?, "a reload brings the new certificate");

        fs::write(remote.file("admin.key"), old_key)?;
        refused(&router.reload()?, 1, "admin.key\" does not fit the certificate; expected ")?;
        ensure!(asks(&new)?, "a refused reload changes nothing");
        // The connection has outlived it all.
        wait::until("the follower hears of the refusal", PATIENCE, || {
            let log = follower.log();
            ensure!(log.contains("does not fit") && !log.contains("connect"), "{log}");
            Ok(())
        })?;
        router.finish()
    })
}

/// A follower on another machine goes on after the router has been killed, and after it has been stopped.
#[test]
fn a_follower_outlives_the_router() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let mut nginx = cluster.start_web()?;
        let remote = Remote::new(cluster)?;
        let router = start(cluster, &remote)?;
        let mut ends = remote.rvs("events -f", "read.token")?.spawn("ends")?;
        let stays = remote.rvs("events -f --reconnect", "read.token")?.spawn("stays")?;
        let hear = |what: &str, times: usize| {
            // Nobody tells a client that the machine is gone: it asks every ten seconds.
            wait::until(what, Duration::from_secs(60), || {
                for log in [ends.log(), stays.log()] {
                    ensure!(log.matches(what).count() == times, "{what} {times} times expected:\n{log}");
                }
                Ok(())
            })
        };
        hear("services 1, real servers 3", 1)?;
        nginx[1].kill()?;
        hear("is down: connection refused", 1)?;
        router.kill()?;
        let router = start(cluster, &remote)?;
        // Its events begin anew, and the server is down again; what the first one said is not repeated.
        hear("another rvs answers; these are its events, from the first one on", 1)?;
        hear("services 1, real servers 3", 2)?;
        hear("is down: connection refused", 2)?;
        ensure!(client::get(&cluster.client, vip(80), 4)?.counts()?.iter().sum::<u64>() == 4);
        router.finish()?;
        ensure!(ends.wait(PATIENCE)?.success(), "{}", ends.log());
        ensure!(ends.log().contains("RVS stops (SIGTERM)"), "{}", ends.log());

        let router = start(cluster, &remote)?;
        wait::until("the other follower is there again", Duration::from_secs(60), || {
            let log = stays.log();
            ensure!(log.contains("rvs has stopped; waiting for it to come back"), "{log}");
            ensure!(log.matches("services 1, real servers 3").count() == 3, "{log}");
            Ok(())
        })?;
        router.finish()
    })
}
