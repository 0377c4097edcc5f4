//! FTP: vsftpd behind a service with the helper by NAT, or behind a mark by direct routing, and lftp before it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::{Config, Service},
    ipv6,
    process::Daemon,
    router::Router,
    shm::Place,
    tunnel::{End, Kind, through},
    wait::{self, PATIENCE},
};

const LENGTH: usize = 3 << 20;

/// vsftpd on the `index`th real server, with a directory of its own.
fn vsftpd(cluster: &Cluster, index: usize, content: &[u8]) -> Result<Daemon> {
    let directory = cluster.state().file(&format!("ftp{index}"));
    fs::create_dir_all(directory.join("root/upload"))?;
    fs::write(directory.join("root/big"), content)?;
    let configuration = directory.join("vsftpd.conf");
    let root = directory.join("root");
    let text = format!(
        "listen_ipv6=YES\nbackground=NO\nrun_as_launching_user=YES\nseccomp_sandbox=NO\nlocal_enable=NO\n\
         anonymous_enable=YES\nno_anon_password=YES\nanon_root={0}\nftp_username=root\nwrite_enable=YES\n\
         anon_upload_enable=YES\nanon_world_readable_only=NO\nallow_writeable_chroot=YES\nport_enable=YES\n\
         connect_from_port_20=YES\nsecure_chroot_dir={0}\npasv_min_port=30000\npasv_max_port=30099\n",
        root.display()
    );
    fs::write(&configuration, text)?;
    let machine = &cluster.real_servers[index];
    let mut daemon = machine.command("vsftpd").arg(&configuration).spawn(&format!("vsftpd-{index}"))?;
    wait::until("vsftpd answers", PATIENCE, || {
        daemon.check_running()?;
        let address = SocketAddr::from(([127, 0, 0, 1], 21));
        machine.enter(|| Ok(std::net::TcpStream::connect(address).map(drop)?))
    })?;
    Ok(daemon)
}

/// Gets the file and puts it back under this name; what the two said to each other.
fn there_and_back(
    cluster: &Cluster,
    host: &str,
    settings: &str,
    name: &str,
    content: &[u8],
) -> Result<String> {
    let file = cluster.state().file(name);
    let commands = format!(
        "debug 9; set net:max-retries 2; set net:timeout 5; set net:reconnect-interval-base 1; set ftp:ssl-allow no; \
         set ftp:fix-pasv-address no; {settings}; open ftp://{host}; get big -o {0}; \
         put {0} -o upload/{name}; bye",
        file.display()
    );
    let output = cluster.client.command("lftp").args(["--norc", "-c", &commands]).output()?;
    let said = format!("{}{}", output.stdout, output.stderr);
    output.success().with_context(|| format!("{name}: {said}"))?;
    ensure!(fs::read(&file)? == content, "{name}: what came is something else");
    let put = |index: usize| cluster.state().file(&format!("ftp{index}/root/upload/{name}"));
    let is_there = |path: &Path| fs::read(path).is_ok_and(|put| put == content);
    ensure!((0..2).filter(|&index| is_there(&put(index))).count() == 1, "{name}: what was put is not there");
    Ok(said)
}

/// What every part of is something else.
fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at * at / 251) as u8).collect()
}

/// Both families, active and passive, there and back.
fn active_and_passive(cluster: &Cluster, content: &[u8]) -> Result<()> {
    let (four, six) = (VIP.to_string(), format!("[{}]", ipv6::VIP));
    let passive = "set ftp:passive-mode on; set ftp:prefer-epsv";
    let announced = format!("({},", four.replace('.', ","));
    for (host, settings, name, shows) in [
        (&four, &*format!("{passive} no"), "pasv", &*announced),
        (&four, &*format!("{passive} yes"), "epsv", "229 "),
        (&four, "set ftp:passive-mode off", "port", "PORT "),
        (&six, &*format!("{passive} yes"), "epsv6", "229 "),
        (&six, "set ftp:passive-mode off", "eprt6", "EPRT "),
    ] {
        let said = there_and_back(cluster, host, settings, name, content)?;
        ensure!(said.contains(shows), "{name} shows no {shows:?}: {said}");
    }
    Ok(())
}

/// A configuration with the services of FTP by NAT.
fn by_nat(cluster: &Cluster) -> Config {
    let service = |service: Service, endpoints: [SocketAddr; 2]| {
        let service = service.scheduler("rr").setting("helper = \"ftp\"").setting("persistence = {}");
        endpoints.into_iter().fold(service, |service, server| service.server(server, 1))
    };
    let four = [0, 1].map(|index| SocketAddr::from(cluster.endpoint(index, 0)));
    let six = [0, 1].map(|index| ipv6::endpoint(cluster, index, 0));
    ipv6::config(cluster)
        .service(service(Service::tcp("nat", vip(0)), four))
        .service(service(Service::tcp("nat", ipv6::vip(0)), six))
}

fn wait_for_macs(router: &Router) -> Result<()> {
    router.wait_for_macs(CLIENT.into(), vip(21).into(), "tcp")?;
    router.wait_for_macs(ipv6::CLIENT.into(), ipv6::vip(21), "tcp")
}

#[test]
fn active_and_passive_in_both_families_there_and_back() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let content = content();
        let _servers = [vsftpd(cluster, 0, &content)?, vsftpd(cluster, 1, &content)?];
        let router = cluster.start_router(&by_nat(cluster))?;
        wait_for_macs(&router)?;
        active_and_passive(cluster, &content)?;
        let list = router.rvs("list -c").run()?;
        for end in [format!("{VIP}:20 "), format!("[{}]:20 ", ipv6::VIP)] {
            ensure!(list.contains(&end), "no {end} in {list}");
        }
        router.finish()
    })
}

/// A mark for all the ports of it, and no helper: servers have the virtual address themselves.
fn active_and_passive_by_a_mark(tunnel: Option<Kind>) -> Result<()> {
    ipv6::with_cluster(Layout::OneArmed, |cluster| {
        let content = content();
        let _servers = [vsftpd(cluster, 0, &content)?, vsftpd(cluster, 1, &content)?];
        let _ends = tunnel.map(|kind| End::of_all_for_both(cluster, kind)).transpose()?;
        let marked = |mark, endpoints: [SocketAddr; 2]| {
            let service = Service::marked("dr", mark).scheduler("rr").setting("persistence = {}");
            let service = endpoints.into_iter().fold(service, |service, server| service.server(server, 1));
            tunnel.map(|kind| through(service.clone(), kind)).unwrap_or(service)
        };
        let rule = |mark, address: IpAddr| {
            format!(
                "mark = {mark}\nprotocol = \"tcp\"\naddress = \"{address}\"\nports = [20, 21, \"30000-30099\"]"
            )
        };
        let config = ipv6::config(cluster)
            .mark(&rule(10, VIP.into()))
            .mark(&rule(11, ipv6::VIP.into()))
            .service(marked(10, [0, 1].map(|index| SocketAddr::from(cluster.endpoint(index, 0)))))
            .service(marked(11, [0, 1].map(|index| ipv6::endpoint(cluster, index, 0))));
        let router = cluster.start_router(&config)?;
        wait_for_macs(&router)?;
        active_and_passive(cluster, &content)?;
        router.finish()
    })
}

#[test]
fn active_and_passive_by_direct_routing() -> Result<()> {
    active_and_passive_by_a_mark(None)
}

#[test]
fn active_and_passive_by_tunnels() -> Result<()> {
    active_and_passive_by_a_mark(Some(Kind::Gre))
}

/// A session of FTP (RFC 959), by hand.
struct Session(BufReader<TcpStream>);

impl Session {
    /// Of a guest.
    fn open(cluster: &Cluster, to: SocketAddr) -> Result<Session> {
        let mut session = Session(BufReader::new(client::connect(&cluster.client, to)?));
        session.reply("220")?;
        session.say("USER anonymous", "230")?;
        session.say("TYPE I", "200")?;
        Ok(session)
    }

    /// The last line of a reply, which must begin with this code.
    fn reply(&mut self, code: &str) -> Result<String> {
        let mut line = String::new();
        // Of a long one the lines before the last have a dash behind the code.
        while line.get(3..4) != Some(" ") {
            line.clear();
            ensure!(self.0.read_line(&mut line)? > 0, "the server has closed");
        }
        ensure!(line.starts_with(code), "{line}");
        Ok(line)
    }

    fn say(&mut self, command: &str, code: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        self.reply(code).with_context(|| command.to_owned())
    }
}

/// The router dies between the reply that names a port and the connection there, and between a command and the connection from the server.
#[test]
fn a_session_and_its_transfers_go_on_after_its_router_was_killed() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let (place, content) = (Place::new(cluster)?, content());
        let _servers = [vsftpd(cluster, 0, &content)?, vsftpd(cluster, 1, &content)?];
        let mut config = by_nat(cluster);
        config.keep = place.keep();
        let mut router = cluster.start_router(&config)?;
        wait_for_macs(&router)?;
        for (to, me) in [(vip(21).into(), IpAddr::from(CLIENT)), (ipv6::vip(21), ipv6::CLIENT.into())] {
            let mut session = Session::open(cluster, to)?;
            let reply = session.say("EPSV", "229")?;
            let port = reply.split('|').nth(3).context("a port")?.parse()?;
            router.kill()?;
            router = cluster.start_router(&config)?;
            let mut data = client::connect(&cluster.client, SocketAddr::new(to.ip(), port))?;
            session.say("RETR big", "150")?;
            let mut came = Vec::new();
            data.read_to_end(&mut came)?;
            ensure!(came == content, "{to}: {} bytes came", came.len());
            session.reply("226")?;

            let listener = cluster.client.enter(|| Ok(TcpListener::bind((me, 0))?))?;
            let (family, port) = (if me.is_ipv4() { 1 } else { 2 }, listener.local_addr()?.port());
            session.say(&format!("EPRT |{family}|{me}|{port}|"), "200")?;
            router.kill()?;
            router = cluster.start_router(&config)?;
            session.say("RETR big", "150")?;
            let (mut data, from) = listener.accept()?;
            ensure!(from == SocketAddr::new(to.ip(), 20), "{from}");
            came.clear();
            data.read_to_end(&mut came)?;
            ensure!(came == content, "{to}: {} bytes came", came.len());
            session.reply("226")?;
        }
        router.finish()
    })
}
