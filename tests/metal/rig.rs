//! What is shown, in order. Every step says what it has shown, and when.

mod trouble;

use std::{
    fs::File,
    io::{Read, Write},
    net::SocketAddrV4,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{CLIENT, Cluster, vip},
    listing::Counters,
    wait,
};

use crate::{
    PAGE,
    guest::Guest,
    image::Image,
    nics::{self, E1000E, Kind, LOGIN, VIRTIO, VMXNET3},
    page::{Page, Step},
};

/// How long something may take that takes some seconds in the emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Of the package that is made of the built program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How many real servers the page has.
const SERVERS: usize = 2;

/// The machines, and how far the walk has come.
struct Rig<'a> {
    cluster: &'a Cluster,
    image: &'a Image,
    guest: Guest,
    page: Page,
    transcript: File,
    /// The last port that a client has asked from.
    port: u16,
    start: Instant,
}

/// Walks the page, and goes on beyond it.
pub fn run(cluster: &Cluster, directory: &Path, package: Option<PathBuf>) -> Result<()> {
    let start = Instant::now();
    let package = package.map_or_else(|| harness::image::package(cluster.state(), VERSION), Ok)?;
    let image = Image::build(directory, cluster.state(), &package)?;
    nics::wire(cluster)?;
    let _web = cluster.start_web()?;
    for server in &cluster.real_servers[..SERVERS] {
        // It is the page that has to say so.
        server.ip("route del default")?;
    }
    let transcript = File::create(cluster.state().file("walk.log"))?;
    let guest = Guest::boot(&image, &cluster.router)?;
    let page = Page::parse(PAGE)?;
    let mut rig = Rig { cluster, image: &image, guest, page, transcript, port: 20_000, start };
    rig.told("Debian's kernel and systemd, booted");
    let result = rig.all();
    if result.is_err() {
        // With the transcript it is shown by whoever hears of the failure.
        let journal = rig.guest.output("journalctl --boot --no-pager --lines 40 --unit rvs --unit rvs-setup");
        writeln!(rig.transcript, "{}", journal.map_or_else(|error| error.to_string(), |done| done.printed))?;
    }
    result?;
    rig.page.finish()
}

impl Rig<'_> {
    fn all(&mut self) -> Result<()> {
        self.begin()?;
        self.cable()?;
        self.crash()?;
        self.refused()?;
        self.other_nics()?;
        self.unplug()?;
        self.without_iommu()?;
        self.direct()
    }

    /// From a machine without anything to a router under NAT that is there again after a reboot.
    fn begin(&mut self) -> Result<()> {
        self.walk("The kernel's command line")?;
        let words = self.guest.run("cat /proc/cmdline")?;
        ensure!(words.contains("isolcpus=1-3"), "the words have not come through: {words}");
        let units = self.guest.run("ls /sys/class/iommu; cat /sys/devices/system/cpu/nohz_full")?;
        ensure!(units.contains("dmar0") && units.contains("1-3"), "no IOMMU, or ticks: {units}");
        self.told("booted again with the page's words: IOMMU, isolated cores");

        self.walk("The package")?;
        self.walk("The NICs")?;
        self.walk("The configuration")?;
        self.refuse_the_login()?;
        self.doctor_finds(&["nic-linux", "hugepages-none"])?;
        self.told("package installed; the NIC with the default route refused");

        self.walk("From Linux to RVS")?;
        self.walk("Real servers under NAT")?;
        self.expect(&[("rs1", 6), ("rs2", 6)])?;
        self.told("e1000e, vfio-pci: real curl from outside, NAT over two real servers");

        self.walk("Day to day")?;
        self.walk("Changes")?;
        self.expect(&[("rs1", 3), ("rs2", 3), ("rs3", 6)])?;
        self.told("systemctl reload: a third server, of twice the weight");

        self.walk("After a reboot")?;
        self.expect(&[("rs1", 3), ("rs2", 3), ("rs3", 6)])?;
        self.told("booted again: it balances, and nobody has typed anything");
        Ok(())
    }

    /// The login would be gone, if somebody mistook the address.
    fn refuse_the_login(&mut self) -> Result<()> {
        let file = "/tmp/wrong.toml";
        self.guest.run(&format!("sed s/{}/{LOGIN}/ /etc/rvs/rvs.toml > {file}", E1000E.addresses[0]))?;
        let done = self.guest.output(&format!("rvs setup -c {file}"))?;
        ensure!(done.status == 1 && done.printed.contains("default route"), "{done:?}");
        self.guest.run("ip route get 10.0.2.2 | grep -q 10.0.2.15")?;
        Ok(())
    }

    /// `rvs doctor` finds these, by keys that the page explains, as it does all others that it finds.
    fn doctor_finds(&mut self, wanted: &[&str]) -> Result<()> {
        let said = self.guest.output("rvs doctor -c /etc/rvs/rvs.toml")?.printed;
        let keys = said.lines().filter_map(|line| line.strip_suffix(']')?.rsplit_once('['));
        let keys: Vec<&str> = keys.map(|(_, key)| key).collect();
        let unexplained = keys.iter().find(|key| !PAGE.contains(&format!("`{key}`")));
        ensure!(unexplained.is_none(), "the page does not explain {unexplained:?}");
        ensure!(wanted.iter().all(|key| keys.contains(key)), "expected {wanted:?}: {said}");
        Ok(())
    }

    /// NICs of other kinds, one after the other.
    fn other_nics(&mut self) -> Result<()> {
        let counters = self.use_nics(VIRTIO, "cores = [1, 1, 2, 2]\nidle = \"adaptive\"")?;
        let received: Vec<u64> = counters.workers.iter().map(|worker| worker.received).collect();
        ensure!(
            received.len() == VIRTIO.queues && received.iter().all(|packets| *packets > 0),
            "a queue without packets: {received:?}"
        );
        self.told(&format!("virtio-net, vfio-pci: RSS over four queues, packets by worker {received:?}"));
        self.use_nics(VMXNET3, "cores = [1]")?;
        self.told("vmxnet3, vfio-pci");
        Ok(())
    }

    /// The machine without its IOMMU.
    fn without_iommu(&mut self) -> Result<()> {
        self.use_nics(E1000E, "cores = [1]")?;
        self.reboot(
            "sed -i s/intel_iommu=on/intel_iommu=off/ /etc/default/grub.d/rvs.cfg\nupdate-grub\nsystemctl reboot\n",
        )?;
        wait::until("it balances", PATIENCE, || self.ask_from_ports())?;
        self.have_driver(E1000E, "uio_pci_generic")?;
        self.doctor_finds(&["nic-unprotected"])?;
        self.told("e1000e, uio_pci_generic: booted without the IOMMU");
        Ok(())
    }

    /// Direct routing, with the first real servers on the clients' network.
    fn direct(&mut self) -> Result<()> {
        for index in 0..SERVERS {
            nics::move_to_clients(self.cluster, index)?;
        }
        self.walk("Direct routing")?;
        self.expect(&[("rs1", 6), ("rs2", 6)])?;
        self.told("direct routing: real servers answer by themselves");
        Ok(())
    }

    /// Has RVS run with other NICs, and asks.
    fn use_nics(&mut self, kind: Kind, workers: &str) -> Result<Counters> {
        self.guest.write("/etc/rvs/rvs.toml", &configuration(kind, workers, 512))?;
        let said = self.guest.run("rvs setup -c /etc/rvs/rvs.toml && systemctl restart rvs && rvs ports")?;
        self.transcript.write_all(said.as_bytes())?;
        self.have_driver(kind, "vfio-pci")?;
        // Another NIC has another MAC, and RVS does not announce it.
        for neighbour in [&self.cluster.client, &self.cluster.real_servers[SERVERS]] {
            neighbour.ip("neighbour flush all")?;
        }
        self.ask_from_ports()?;
        let text = self.guest.run("rvs list --counters --json")?;
        serde_json::from_str(&text).context(text)
    }

    /// Both NICs of this kind have this driver.
    fn have_driver(&mut self, kind: Kind, wanted: &str) -> Result<()> {
        for address in kind.addresses {
            let link = format!("/sys/bus/pci/devices/{address}/driver");
            let driver = self.guest.run(&format!("basename $(readlink {link})"))?;
            ensure!(driver.trim() == wanted, "{address} has {driver}");
        }
        Ok(())
    }

    /// Asks for a page from each of forty ports, which are the same in each run, since a NIC spreads by them, and others each
    /// time, since the connections before linger.
    fn ask_from_ports(&mut self) -> Result<()> {
        let ports = self.port..self.port + 40;
        self.port = ports.end;
        self.cluster.client.enter(|| {
            for port in ports {
                let socket = client::bound(SocketAddrV4::new(CLIENT, port))?;
                socket.connect(&vip(80).into()).with_context(|| format!("from port {port}"))?;
                let mut stream = std::net::TcpStream::from(socket);
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                ensure!(answer.ends_with("rs3\n"), "from port {port}: {answer}");
            }
            Ok(())
        })
    }

    /// Does what a section of the page says.
    fn walk(&mut self, heading: &str) -> Result<()> {
        for step in self.page.take(heading)? {
            self.step(&step).with_context(|| format!("docs/bare-metal.md, \"{heading}\""))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Router(script) if script.trim_end().ends_with("systemctl reboot") => self.reboot(script)?,
            Step::Router(script) => {
                let said = self.guest.run(script)?;
                writeln!(self.transcript, "router\n{script}{said}")?;
            }
            Step::File(path, content) => self.guest.write(path, content)?,
            Step::RealServer(script) => {
                for server in &self.cluster.real_servers[..SERVERS] {
                    server.command("sh").args(["-ec", script]).run()?;
                }
            }
            Step::Client(script) => {
                let said = self.cluster.client.command("sh").args(["-ec", script]).run()?;
                writeln!(self.transcript, "client\n{script}{said}")?;
            }
        }
        Ok(())
    }

    fn reboot(&mut self, script: &str) -> Result<()> {
        self.guest.reboot(self.image, script)
    }

    /// Asks twelve times, once it balances, and compares who has answered how often.
    fn expect(&self, shares: &[(&str, u64)]) -> Result<()> {
        let ask = || client::get(&self.cluster.client, vip(80), 12);
        wait::until("it balances", PATIENCE, || {
            let answers = ask()?;
            for (server, count) in shares {
                ensure!(answers.of(server) == *count, "{answers:?}, not {shares:?}");
            }
            Ok(())
        })
    }

    fn told(&self, what: &str) {
        println!("{:>6.1} s  {what}", self.start.elapsed().as_secs_f32());
    }
}

/// A configuration of the page's kind with other NICs, so much memory in MB, and the third real server alone.
fn configuration(kind: Kind, workers: &str, memory: u32) -> String {
    let [wan, lan] = kind.addresses;
    format!(
        r#"eal.memory = {memory}
table.connections = 100_000

[workers]
{workers}

[[port]]
name = "wan"
device = "{wan}"
addresses = ["192.0.2.1/24"]

[[port]]
name = "lan"
device = "{lan}"
addresses = ["10.0.0.1/24"]

[[service]]
address = "192.0.2.10:80"
mode = "nat"

[[service.server]]
address = "10.0.0.13:8080"
"#
    )
}
