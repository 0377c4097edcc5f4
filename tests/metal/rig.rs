//! What is shown, in order. Every step says what it has shown, and when.

mod kinds;
mod trouble;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::{Cluster, vip},
    wait,
};

use crate::{
    PAGE,
    guest::{self, Guest},
    image::Image,
    nics::{self, E1000E, LOGIN},
    page::{self, Page},
};

/// How long something may take that takes some seconds in the emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Of the package that is made of the built program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How many real servers the page has.
const SERVERS: usize = 2;

/// Something that is shown of a router that runs, by its name, and how. Each goes on from the router that [`Rig::begin`] leaves,
/// or from one that any of those before it leaves.
pub type Step = (&'static str, fn(&mut Rig<'_>) -> Result<()>);

/// All of them, in order.
const STEPS: [Step; 7] = [
    ("cable", |rig| rig.cable()),
    ("crash", |rig| rig.crash()),
    ("refused", |rig| rig.refused()),
    ("queues", |rig| rig.queues()),
    ("unplug", |rig| rig.unplug()),
    ("no-iommu", |rig| rig.without_iommu()),
    ("direct", |rig| rig.direct()),
];

/// The steps of these names, in order.
pub fn steps(names: &str) -> Result<Vec<&'static Step>> {
    let known = STEPS.map(|(name, _)| name);
    let unknown = names.split(',').find(|name| !known.contains(name));
    ensure!(unknown.is_none(), "{}: expected some of {}", unknown.unwrap_or_default(), known.join(","));
    Ok(STEPS.iter().filter(|step| names.split(',').any(|name| name == step.0)).collect())
}

/// The machines, and how far the walk has come.
pub struct Rig<'a> {
    cluster: &'a Cluster,
    image: &'a Image,
    guest: Guest,
    page: Page,
    transcript: File,
    /// The last port that a client has asked from.
    port: u16,
    start: Instant,
    /// When something was told last.
    told: Instant,
}

/// Walks the page, and goes on beyond it; or goes straight to some of the steps.
pub fn run(
    cluster: &Cluster,
    directory: &Path,
    package: Option<PathBuf>,
    only: Option<&[&Step]>,
) -> Result<()> {
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
    if only.is_some() {
        guest::set_words(&cluster.router, words()?)?;
    }
    let guest = Guest::boot(&image, &cluster.router)?;
    let page = Page::parse(PAGE)?;
    let mut rig = Rig { cluster, image: &image, guest, page, transcript, port: 20_000, start, told: start };
    rig.tell("Debian's kernel and systemd, booted");
    let result = match only {
        None => rig.all(),
        Some(steps) => rig.some(steps),
    };
    if result.is_err() {
        // With the transcript it is shown by whoever hears of the failure.
        let journal = rig.guest.output("journalctl --boot --no-pager --lines 60 --unit rvs --unit rvs-setup");
        writeln!(rig.transcript, "{}", journal.map_or_else(|error| error.to_string(), |done| done.printed))?;
    }
    result?;
    if only.is_none() { rig.page.finish() } else { Ok(()) }
}

/// The words that the page has for the kernel.
fn words() -> Result<&'static str> {
    let line = PAGE.lines().find_map(|line| line.strip_prefix("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX "));
    line.and_then(|line| line.strip_suffix('"')).context("the page has no words for the kernel")
}

impl Rig<'_> {
    fn all(&mut self) -> Result<()> {
        self.begin()?;
        STEPS.iter().try_for_each(|(_, show)| show(self))
    }

    /// With a machine that has booted with the page's words already.
    fn some(&mut self, steps: &[&Step]) -> Result<()> {
        for step in self.page.take("The kernel's command line")? {
            if let page::Step::Router(script) = step {
                self.guest.run(script.trim_end().trim_end_matches("systemctl reboot"))?;
            }
        }
        for section in ["The package", "The configuration", "From Linux to RVS", "Real servers under NAT"] {
            self.walk(section)?;
        }
        self.walk("Changes")?;
        self.expect(&[("rs1", 3), ("rs2", 3), ("rs3", 6)])?;
        self.tell("it balances, by the shortest way");
        steps.iter().try_for_each(|(_, show)| show(self))
    }

    /// From a machine without anything to a router under NAT that is there again after a reboot.
    fn begin(&mut self) -> Result<()> {
        self.walk("The kernel's command line")?;
        let words = self.guest.run("cat /proc/cmdline")?;
        ensure!(words.contains("isolcpus=1-3"), "the words have not come through: {words}");
        let units = self.guest.run("ls /sys/class/iommu; cat /sys/devices/system/cpu/nohz_full")?;
        ensure!(units.contains("dmar0") && units.contains("1-3"), "no IOMMU, or ticks: {units}");
        self.tell("booted again with the page's words: IOMMU, isolated cores");

        self.walk("The package")?;
        self.walk("The NICs")?;
        self.walk("The configuration")?;
        self.refuse_the_login()?;
        self.doctor_finds(&["nic-linux", "hugepages-none"])?;
        self.tell("package installed; the NIC with the default route refused");

        self.walk("From Linux to RVS")?;
        self.walk("Real servers under NAT")?;
        self.expect(&[("rs1", 6), ("rs2", 6)])?;
        self.tell("e1000e, vfio-pci: real curl from outside, NAT over two real servers");

        self.walk("Day to day")?;
        self.walk("Changes")?;
        self.expect(&[("rs1", 3), ("rs2", 3), ("rs3", 6)])?;
        self.tell("systemctl reload: a third server, of twice the weight");

        self.walk("After a reboot")?;
        self.expect(&[("rs1", 3), ("rs2", 3), ("rs3", 6)])?;
        self.tell("booted again: it balances, and nobody has typed anything");
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

    /// Direct routing, with the first real servers on the clients' network.
    fn direct(&mut self) -> Result<()> {
        for index in 0..SERVERS {
            nics::move_to_clients(self.cluster, index)?;
        }
        self.walk("Direct routing")?;
        self.expect(&[("rs1", 6), ("rs2", 6)])?;
        self.tell("direct routing: real servers answer by themselves");
        Ok(())
    }

    /// Does what a section of the page says.
    fn walk(&mut self, heading: &str) -> Result<()> {
        for step in self.page.take(heading)? {
            self.step(&step).with_context(|| format!("docs/bare-metal.md, \"{heading}\""))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &page::Step) -> Result<()> {
        match step {
            page::Step::Router(script) if script.trim_end().ends_with("systemctl reboot") => {
                self.reboot(script)?
            }
            page::Step::Router(script) => {
                let said = self.guest.run(script)?;
                writeln!(self.transcript, "router\n{script}{said}")?;
            }
            page::Step::File(path, content) => self.guest.write(path, content)?,
            page::Step::RealServer(script) => {
                for server in &self.cluster.real_servers[..SERVERS] {
                    server.command("sh").args(["-ec", script]).run()?;
                }
            }
            page::Step::Client(script) => {
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

    /// Says what has been shown, when, and how long it took.
    fn tell(&mut self, what: &str) {
        let (whole, step) = (self.start.elapsed(), self.told.elapsed());
        println!("{:>6.1} s  {:>5.1} s  {what}", whole.as_secs_f32(), step.as_secs_f32());
        self.told = Instant::now();
    }
}
