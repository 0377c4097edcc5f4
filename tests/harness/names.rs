//! A name server: Knot DNS with one zone, `rvs.test`, apart from any that the machine runs.

use std::net::{SocketAddrV4, UdpSocket};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    cluster::Cluster,
    flags::Flags,
    netns::Namespace,
    process::Daemon,
    wait::{self, PATIENCE},
};

/// A running knotd on a real server.
#[derive(Debug)]
pub struct NameServer {
    namespace: Namespace,
    address: SocketAddrV4,
    files: Flags,
    serial: u32,
    daemon: Option<Daemon>,
}

impl NameServer {
    /// Starts it on the `index`th real server, port 53, with these records besides SOA and NS, and waits until it answers.
    pub fn start(cluster: &Cluster, index: usize, records: &str) -> Result<NameServer> {
        let files = Flags::new(cluster.state().file("knot"))?;
        let address = cluster.endpoint(index, 53);
        files.write("knot.conf", &configuration(address, &files))?;
        let namespace = cluster.real_servers[index].clone();
        let mut server = NameServer { namespace, address, files, serial: 0, daemon: None };
        server.write_zone(records)?;
        server.start_again()?;
        Ok(server)
    }

    /// Starts it after it was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let mut daemon =
            self.namespace.command("knotd").arg("-c").arg(self.files.file("knot.conf")).spawn("knotd")?;
        let namespace = self.namespace.clone();
        wait::until("knotd answers", PATIENCE, || {
            daemon.check_running()?;
            let answer = namespace.enter(|| {
                let socket = UdpSocket::bind((*self.address.ip(), 0))?;
                socket.set_read_timeout(Some(std::time::Duration::from_millis(500)))?;
                socket.connect(self.address)?;
                socket.send(SOA_QUERY)?;
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer)?;
                Ok(answer[..length].to_vec())
            })?;
            // The code is in the last four bits of the flags: no error.
            ensure!(answer.get(3).is_some_and(|flags| flags & 0xf == 0), "{answer:?}");
            Ok(())
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("it does not run")?.kill()
    }

    /// Changes the zone while it runs.
    pub fn change(&mut self, records: &str) -> Result<()> {
        self.write_zone(records)?;
        self.daemon.as_mut().context("it does not run")?.signal(Signal::SIGHUP)
    }

    fn write_zone(&mut self, records: &str) -> Result<()> {
        self.serial += 1;
        let serial = self.serial;
        self.files.write(
            "rvs.test.zone",
            &format!(
                "$ORIGIN rvs.test.\n$TTL 60\n\
                 @ SOA ns hostmaster {serial} 3600 600 86400 60\n@ NS ns\nns A {}\n{records}\n",
                self.address.ip()
            ),
        )
    }
}

/// A question for the SOA of `rvs.test` (RFC 1035, 4.1).
const SOA_QUERY: &[u8] = b"RV\x01\0\0\x01\0\0\0\0\0\0\x03rvs\x04test\0\0\x06\0\x01";

fn configuration(address: SocketAddrV4, files: &Flags) -> String {
    let (ip, port, directory) = (address.ip(), address.port(), files.directory().display());
    format!(
        r#"
server:
    rundir: "{directory}"
    listen: {ip}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{directory}"
log:
  - target: stdout
    any: info
template:
  - id: default
    storage: "{directory}"
    file: "%s.zone"
    zonefile-sync: -1
    journal-content: none
zone:
  - domain: rvs.test
"#
    )
}
