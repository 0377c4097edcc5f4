//! The machine that the rig emulates: QEMU, what is typed on it, and what is done to its hardware.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    netns::Namespace,
    process::{Daemon, tail},
    wait::{self, PATIENCE},
};
use serde_json::{Value, json};

use crate::{image::Image, nics};

/// How long a script may take: some of a machine's seconds are minutes of its emulation.
const SCRIPT: Duration = Duration::from_secs(400);

/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(400);

/// Where what `update-grub` writes comes to.
const BOOTLOADER: &str = "bootloader";

/// A running guest; switched off when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Daemon,
    agent: BufReader<UnixStream>,
    monitor: BufReader<UnixStream>,
    namespace: Namespace,
    console: PathBuf,
}

/// What a script did.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub status: i32,
    /// What it printed, on standard output and standard error.
    pub printed: String,
}

/// Has the next boot pass these words to the kernel, as the guest's own `update-grub` does.
pub fn set_words(namespace: &Namespace, words: &str) -> Result<()> {
    Ok(fs::write(namespace.state().file(BOOTLOADER), words)?)
}

impl Guest {
    /// Switches it on, in a namespace where its NICs' wires are, and waits until it takes commands.
    ///
    /// The kernel gets the words that the guest's last `update-grub` wrote.
    pub fn boot(image: &Image, namespace: &Namespace) -> Result<Guest> {
        let file = |name: &str| namespace.state().file(name);
        let (agent, monitor) = (file("agent"), file("monitor"));
        let (console, bootloader) = (file("console.log"), file(BOOTLOADER));
        for socket in [&agent, &monitor] {
            let _ = fs::remove_file(socket);
        }
        let words = fs::read_to_string(&bootloader).unwrap_or_default();
        let words = words.lines().last().unwrap_or_default();
        let socket =
            |id, path: &PathBuf| format!("socket,id={id},path={},server=on,wait=off", path.display());
        let share = |id, path: PathBuf| {
            format!("local,id={id},path={},security_model=none,readonly=on,multidevs=remap", path.display())
        };
        let mut qemu = namespace
            .command("qemu-system-x86_64")
            .words("-nodefaults -no-user-config -display none -no-reboot")
            .words("-machine q35 -accel tcg,thread=multi -cpu max -smp 4 -m 3072")
            .words("-device intel-iommu,intremap=on")
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 {words}")])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-chardev", &socket("monitor", &monitor), "-mon", "chardev=monitor,mode=control"])
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", image.disk().display()))
            .words("-device virtio-blk-pci,drive=disk")
            .words("-device virtio-serial-pci")
            .args(["-chardev", &socket("agent", &agent)])
            .words("-device virtserialport,chardev=agent,name=rig")
            .arg("-chardev")
            .arg(format!("file,id=bootloader,append=on,path={}", bootloader.display()))
            .words("-device virtserialport,chardev=bootloader,name=bootloader");
        for (tag, path) in
            [("host", PathBuf::from("/")), ("modules", image.modules()), ("rig", image.share())]
        {
            qemu = qemu
                .args(["-fsdev", &share(tag, path)])
                .args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        let mut qemu = qemu.args(nics::arguments()).spawn("qemu")?;
        let mut connect = |path: &PathBuf| {
            let stream = wait::until("QEMU listens", PATIENCE, || {
                qemu.check_running()?;
                Ok(UnixStream::connect(path)?)
            })?;
            stream.set_read_timeout(Some(PATIENCE))?;
            anyhow::Ok(BufReader::new(stream))
        };
        let (monitor, agent) = (connect(&monitor)?, connect(&agent)?);
        let namespace = namespace.clone();
        let mut guest = Guest { qemu, agent, monitor, namespace, console };
        guest.monitor_line()?;
        guest.monitor("qmp_capabilities", json!({}))?;
        let ready = guest.answer(BOOT).context("the guest does not come up")?;
        ensure!(ready == "ready", "the guest's agent said {ready}");
        Ok(guest)
    }

    /// Runs a script there to its end, whatever that is.
    pub fn output(&mut self, script: &str) -> Result<Done> {
        self.send(script)?;
        let answer = self.answer(SCRIPT).with_context(|| script.to_owned())?;
        let (status, length) = answer.split_once(' ').with_context(|| answer.clone())?;
        let mut printed = vec![0; length.parse()?];
        self.agent.read_exact(&mut printed)?;
        Ok(Done { status: status.parse()?, printed: String::from_utf8_lossy(&printed).into_owned() })
    }

    fn send(&mut self, script: &str) -> Result<()> {
        let stream = self.agent.get_mut();
        Ok(stream.write_all(format!("{}\n{script}", script.len()).as_bytes())?)
    }

    /// Runs a script there, which must succeed; what it printed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let done = self.output(script)?;
        ensure!(done.status == 0, "on the router, exit {}:\n{script}\n{}", done.status, done.printed);
        Ok(done.printed)
    }

    /// Writes a file there.
    pub fn write(&mut self, path: &str, content: &str) -> Result<()> {
        self.run(&format!(
            "mkdir -p \"$(dirname {path})\"\ncat > {path} <<'END OF FILE'\n{content}END OF FILE\n"
        ))
        .map(drop)
    }

    /// Runs a script that ends in a reboot, and switches the machine on again, as its firmware would.
    pub fn reboot(&mut self, image: &Image, script: &str) -> Result<()> {
        self.send(script)?;
        let status = self.qemu.wait(SCRIPT).with_context(|| self.last_words())?;
        ensure!(status.success(), "QEMU ended with {status}: {}", self.last_words());
        let namespace = self.namespace.clone();
        *self = Guest::boot(image, &namespace)?;
        Ok(())
    }

    /// Pulls a NIC's cable, or puts it back.
    pub fn set_link(&mut self, nic: &str, up: bool) -> Result<()> {
        self.monitor("set_link", json!({"name": nic, "up": up})).map(drop)
    }

    /// Plugs a device in.
    pub fn plug_in(&mut self, device: &str) -> Result<()> {
        let said =
            self.monitor("human-monitor-command", json!({"command-line": format!("device_add {device}")}))?;
        ensure!(said.as_str().is_some_and(str::is_empty), "{device}: {said}");
        Ok(())
    }

    /// Takes a device out: the guest is asked to let go of it.
    pub fn take_out(&mut self, id: &str) -> Result<()> {
        self.monitor("device_del", json!({"id": id})).map(drop)
    }

    /// Has QEMU do something by its machine protocol; the answer.
    fn monitor(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{request}")?;
        loop {
            let mut answer = self.monitor_line()?;
            ensure!(answer.get("error").is_none(), "{request}: {answer}");
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            // An event; none of them is waited for.
        }
    }

    fn monitor_line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.monitor.read_line(&mut line).context("QEMU's monitor")?;
        Ok(serde_json::from_str(&line)?)
    }

    fn answer(&mut self, limit: Duration) -> Result<String> {
        self.agent.get_mut().set_read_timeout(Some(limit))?;
        let mut line = String::new();
        self.agent.read_line(&mut line).with_context(|| self.last_words())?;
        ensure!(line.ends_with('\n'), "the guest has gone\n{}", self.last_words());
        Ok(line.trim_end().to_owned())
    }

    /// The end of what it printed on its console.
    fn last_words(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text), 40)
    }
}
