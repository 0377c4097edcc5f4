//! FTP by NAT: vsftpd behind a service with the helper, and lftp before it.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    ipv6,
    process::Daemon,
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

#[test]
fn active_and_passive_in_both_families_there_and_back() -> Result<()> {
    ipv6::with_cluster(Layout::TwoArmed, |cluster| {
        let content: Vec<u8> = (0..LENGTH).map(|at| (at * at / 251) as u8).collect();
        let _servers = [vsftpd(cluster, 0, &content)?, vsftpd(cluster, 1, &content)?];
        let service = |service: Service, endpoints: [SocketAddr; 2]| {
            let service = service.scheduler("rr").setting("helper = \"ftp\"").setting("persistence = {}");
            endpoints.into_iter().fold(service, |service, server| service.server(server, 1))
        };
        let four = [0, 1].map(|index| SocketAddr::from(cluster.endpoint(index, 0)));
        let six = [0, 1].map(|index| ipv6::endpoint(cluster, index, 0));
        let config = ipv6::config(cluster)
            .service(service(Service::tcp("nat", vip(0)), four))
            .service(service(Service::tcp("nat", ipv6::vip(0)), six));
        let router = cluster.start_router(&config)?;
        router.wait_for_macs(CLIENT.into(), vip(21).into(), "tcp")?;
        router.wait_for_macs(ipv6::CLIENT.into(), ipv6::vip(21), "tcp")?;

        let four = VIP.to_string();
        let six = format!(
            "[{}]",
            match ipv6::vip(21) {
                SocketAddr::V6(six) => *six.ip(),
                SocketAddr::V4(_) => unreachable!(),
            }
        );
        let passive = "set ftp:passive-mode on; set ftp:prefer-epsv";
        let announced = format!("({},", VIP.to_string().replace('.', ","));
        for (host, settings, name, shows) in [
            (&four, &*format!("{passive} no"), "pasv", &*announced),
            (&four, &*format!("{passive} yes"), "epsv", "229 "),
            (&four, "set ftp:passive-mode off", "port", "PORT "),
            (&six, &*format!("{passive} yes"), "epsv6", "229 "),
            (&six, "set ftp:passive-mode off", "eprt6", "EPRT "),
        ] {
            let said = there_and_back(cluster, host, settings, name, &content)?;
            ensure!(said.contains(shows), "{name} shows no {shows:?}: {said}");
        }
        let list = router.rvs("list -c").run()?;
        for end in [format!("{VIP}:20 "), format!("{}:20 ", six)] {
            ensure!(list.contains(&end), "no {end} in {list}");
        }
        router.finish()
    })
}
