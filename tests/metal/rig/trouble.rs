//! What happens to a router: its cable is pulled, its program is killed, its NIC is taken out, its operator asks for too much.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    client,
    cluster::vip,
    nginx,
    wait::{self, PATIENCE as MOMENT},
};
use serde_json::json;

use super::{PATIENCE, Rig, configuration};
use crate::nics::{E1000E, VMXNET3};

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
        self.told("a cable pulled, and put back: RVS says so");
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
        self.told("kill -9: systemd starts it again, and a download that was under way ends whole");
        Ok(())
    }

    /// What cannot be: it is said, and the router that runs is left alone.
    pub(super) fn refused(&mut self) -> Result<()> {
        let main = "systemctl show --property MainPID --value rvs";
        let before = self.guest.run(main)?;
        self.fails("rvs run -c /etc/rvs/rvs.toml", "another rvs has")?;

        // The machine has 3 GB.
        let (one, four) = ("cores = [1]", "cores = [1, 1, 2, 2]\nidle = \"adaptive\"");
        let file = "/tmp/wrong.toml";
        self.guest.write(file, &configuration(VMXNET3, one, 100_000))?;
        self.fails(&format!("rvs setup -c {file}"), "MB of hugepages are missing")?;
        let running = self.guest.run(main)?;
        ensure!(running == before, "another program: {before} {running}");
        client::get(&self.cluster.client, vip(80), 4)?.counts()?;

        self.guest.run("systemctl stop rvs")?;
        self.guest.write(file, &configuration(E1000E, one, 100_000))?;
        self.fails(&format!("rvs run -c {file}"), "EAL did not start")?;
        self.guest.write(file, &configuration(E1000E, four, 512))?;
        self.fails(&format!("rvs run -c {file}"), "receive and")?;
        self.guest.run("systemctl start rvs")?;
        wait::until("it balances", PATIENCE, || client::get(&self.cluster.client, vip(80), 4)?.counts())?;
        self.told("refused: a second rvs, more hugepages than there is memory, more workers than queues");
        Ok(())
    }

    /// A NIC is taken out of its slot: it is said, and the program and the other NIC go on.
    pub(super) fn unplug(&mut self) -> Result<()> {
        let main = "systemctl show --property MainPID --value rvs";
        let (before, removed) = (self.guest.run(main)?, "port wan: its device has been taken out");
        let told = self.events(removed)?;
        self.guest.monitor("device_del", json!({"id": VMXNET3.id(0)}))?;
        self.until_event(removed, told)?;
        ensure!(self.guest.run(main)? == before, "it has been started again");
        self.guest.run("ping -c 3 -W 5 10.0.0.13")?;
        self.told("vmxnet3: a NIC taken out of its slot: RVS says so, and the other one goes on");
        Ok(())
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
