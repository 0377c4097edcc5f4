//! What happens to a router: its cable is pulled, its program is killed, its NIC is taken out, its operator asks for too much.

use std::fs;

use super::{PATIENCE, Rig, kinds::configuration};
use crate::nics::{E1000E, VMXNET3};
use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::vip,
    nginx,
    wait::{self, PATIENCE as MOMENT},
};

/// What curl says when nobody answers in time, and when ARP has found nobody.
const UNANSWERED: [Option<i32>; 2] = [Some(28), Some(7)];

impl Rig<'_> {
    /// The clients' cable is pulled and put back.
    pub(super) fn cable(&mut self) -> Result<()> {
        let wan = E1000E.name(0);
        let (down, up) = ("port wan: link down", "port wan: link up");
        let before = [self.events(down)?, self.events(up)?];
        self.guest.set_link(&wan, false)?;
        self.until_event(down, before[0])?;
        let curl = self.cluster.client.command("curl").words("--silent --max-time 2 http://192.0.2.10/");
        let output = curl.output()?;
        ensure!(UNANSWERED.contains(&output.code()), "without a cable: {output:?}");
        self.guest.set_link(&wan, true)?;
        self.until_event(up, before[1])?;
        wait::until("it balances", PATIENCE, || client::get(&self.cluster.client, vip(80), 1)?.counts())?;
        self.tell("a cable pulled, and put back: RVS says so");
        Ok(())
    }

    /// The program is killed in the middle of a download.
    pub(super) fn crash(&mut self) -> Result<()> {
        let mut download = client::start_download(&self.cluster.client, vip(80), "1m", "kept")?;
        let (file, whole) = (self.cluster.state().file("kept"), nginx::big_file());
        wait::until("the download has begun", MOMENT, || {
            ensure!(fs::metadata(&file)?.len() > 100_000);
            Ok(())
        })?;
        let starts = "systemctl show --property NRestarts --value rvs";
        let before: u32 = self.guest.run(starts)?.trim().parse()?;
        self.guest.run("kill -9 $(systemctl show --property MainPID --value rvs)")?;
        ensure!(fs::metadata(&file)?.len() < whole.len() as u64, "the download has ended before the program");
        let status = download.wait(2 * PATIENCE)?;
        ensure!(status.success() && fs::read(&file)? == whole, "the download: {status}");
        let after: u32 = self.guest.run(starts)?.trim().parse()?;
        ensure!(after == before + 1, "started again {} times", after - before);
        self.tell("kill -9: systemd starts it again, and a download that was under way ends whole");
        Ok(())
    }

    /// What cannot be: it is said, and the router that runs is left alone.
    pub(super) fn refused(&mut self) -> Result<()> {
        let before = self.state()?;
        self.fails("rvs run -c /etc/rvs/rvs.toml", "another rvs answers at")?;
        let file = "/tmp/wrong.toml";
        let (one, four) = ("cores = [1]", "cores = [1, 1, 2, 2]\nidle = \"adaptive\"");

        let text = configuration(VMXNET3, one, 512);
        let [wan, lan] = VMXNET3.addresses;
        self.guest.write(file, &text.replace(wan, "0000:0f:00.0"))?;
        for command in ["rvs setup", "rvs run"] {
            self.fails(&format!("{command} -c {file}"), "there is no PCI device 0000:0f:00.0")?;
        }
        self.guest.write(file, &text)?;
        self.fails(&format!("rvs run -c {file}"), &format!("{lan} is Linux' (driver vmxnet3)"))?;
        // The machine has 3 GB.
        self.guest.write(file, &configuration(VMXNET3, one, 100_000))?;
        self.fails(&format!("rvs setup -c {file}"), "MB of hugepages are missing")?;
        ensure!(self.state()? == before, "something has changed: {} {before}", self.state()?);
        client::get(&self.cluster.client, vip(80), 4)?.counts()?;
        self.tell(
            "refused, and nothing changed: a second rvs, a NIC that is absent or Linux', too much memory",
        );

        self.guest.write(file, &text)?;
        self.guest.run(&format!("rvs setup -c {file}"))?;
        self.have_driver(VMXNET3, "vfio-pci")?;
        let group = format!("/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{wan}/iommu_group))");
        let other = format!("exec 3<> {group}\nsleep 1000 3<&3 > /dev/null 2>&1 &\necho $!");
        let other = self.guest.run(&other)?;
        self.fails(&format!("rvs run -c {file}"), &format!("{wan} is in use by process {}", other.trim()))?;
        self.guest.run(&format!("kill {other}"))?;

        self.guest.run("systemctl stop rvs")?;
        self.guest.write(file, &configuration(E1000E, one, 100_000))?;
        self.fails(&format!("rvs run -c {file}"), "100000 MB are wanted")?;
        self.guest.write(file, &configuration(E1000E, four, 512))?;
        self.fails(&format!("rvs run -c {file}"), "receive and")?;
        self.guest.run("systemctl start rvs")?;
        wait::until("it balances", PATIENCE, || client::get(&self.cluster.client, vip(80), 4)?.counts())?;
        self.tell("refused: a NIC in use, more hugepages than there are, more workers than queues");
        Ok(())
    }

    /// What a command that is refused leaves as it is: the program that runs, NICs' drivers, hugepages.
    fn state(&mut self) -> Result<String> {
        self.guest.run(
            "systemctl show --property MainPID rvs\ncat /proc/sys/vm/nr_hugepages\nls -d /sys/bus/pci/drivers/*/0000:*",
        )
    }

    /// A NIC is taken out of its slot and put back, also with a restart in between.
    pub(super) fn unplug(&mut self) -> Result<()> {
        self.use_nics(VMXNET3, "cores = [1]")?;
        self.tell("vmxnet3, vfio-pci");
        let main = "systemctl show --property MainPID --value rvs";
        let before = self.guest.run(main)?;
        self.take_out()?;
        ensure!(self.guest.run(main)? == before, "it has been started again");
        self.guest.run("ping -c 3 -W 5 10.0.0.13")?;
        self.tell("a NIC taken out of its slot: RVS lets go of it, and the other one goes on");
        self.put_back(1)?;
        ensure!(self.guest.run(main)? == before, "it has been started again");
        self.tell("another card in its place: it balances again, and nobody has typed anything");

        self.take_out()?;
        self.guest.run("systemctl restart rvs\nping -c 3 -W 5 10.0.0.13")?;
        self.put_back(0)?;
        self.tell("restarted without the NIC, which was put back then");
        Ok(())
    }

    /// Takes the clients' NIC out: RVS says so, and does not keep Linux from it.
    fn take_out(&mut self) -> Result<()> {
        let removed = "port wan: its device has been taken out";
        let told = self.events(removed)?;
        self.guest.take_out(&VMXNET3.id(0))?;
        self.until_event(removed, told)?;
        let gone = format!("test ! -e /sys/bus/pci/devices/{}", VMXNET3.addresses[0]);
        wait::until("Linux has taken it out", PATIENCE, || self.guest.run(&gone))?;
        Ok(())
    }

    /// Puts a card like it there, which udev gives to DPDK, and waits until it is at work.
    fn put_back(&mut self, card: u8) -> Result<()> {
        let back = "port wan: its device is back";
        let told = self.events(back)?;
        wait::until("it is plugged in", PATIENCE, || self.guest.plug_in(&VMXNET3.device(0, card)))?;
        self.until_event(back, told)?;
        let mac = self.guest.run("cat /sys/class/net/wan/address")?;
        ensure!(mac.trim() == VMXNET3.mac(0, card), "the twin has {mac}");
        self.cluster.client.ip("neighbour flush all")?;
        wait::until("it balances", PATIENCE, || self.ask_from_ports())
    }

    /// Runs a command on the router that has to fail (1: it was refused, or 2: so was the file), and to say why.
    fn fails(&mut self, command: &str, wanted: &str) -> Result<()> {
        let done = self.guest.output(&format!("timeout 120 {command}"))?;
        ensure!(
            [1, 2].contains(&done.status) && done.printed.contains(wanted),
            "{command}: expected {wanted}: {done:?}"
        );
        Ok(())
    }

    /// How often `rvs events` tells of something.
    fn events(&mut self, wanted: &str) -> Result<usize> {
        Ok(self.guest.run("rvs events")?.lines().filter(|line| line.contains(wanted)).count())
    }

    /// Waits until it has told of it once more.
    fn until_event(&mut self, wanted: &str, before: usize) -> Result<()> {
        wait::until(wanted, PATIENCE, || {
            let now = self.events(wanted).context("rvs events")?;
            ensure!(now == before + 1, "{now} times, and {before} times before");
            Ok(())
        })
    }
}
