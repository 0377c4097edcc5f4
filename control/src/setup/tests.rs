//! On a machine made of files, whose kernel behaves as Linux does.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Result, bail};
use tempfile::TempDir;

use super::change::{Change, Kernel, driver_of};
use super::plan::Plan;
use super::{Consent, Mode, Permit, apply, plan, undo};
use crate::config::Config;
use crate::hardware::Lifelines;
use crate::hardware::testing::{Card, plug};
use crate::root::Root;
use crate::root::testing::{machine, put};

const WAN: &str = "0000:01:00.0";
const LAN: &str = "0000:01:00.1";
const NODE0: &str = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB";
const NODE1: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";

/// A kernel that does with the files of a tree what Linux does.
struct Imitation {
    root: Root,
    /// Hugepages for which a node has memory.
    most_pages: u64,
    /// A driver that takes no NIC.
    shy: Option<&'static str>,
    /// Files that cannot be written.
    broken: Option<&'static str>,
}

impl Kernel for Imitation {
    fn root(&self) -> &Root {
        &self.root
    }

    fn write(&mut self, path: &str, line: &str) -> io::Result<()> {
        if self.broken.is_some_and(|broken| path.ends_with(broken)) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        if path.ends_with("/driver_override") {
            put(&self.root, path, if line.is_empty() { "(null)" } else { line });
        } else if let Some(device) = path.strip_suffix("/driver/unbind") {
            assert!(device.ends_with(line));
            fs::remove_file(self.root.path(&format!("{device}/driver")))?;
            // Kept for the driver that makes it.
            let (net, gone) = (format!("{device}/net"), format!("{device}/gone"));
            fs::create_dir_all(self.root.path(&gone))?;
            let _ = fs::rename(self.root.path(&net), self.root.path(&format!("{gone}/net")));
        } else if path == "/sys/bus/pci/drivers_probe" {
            let wanted = self.root.read(&format!("/sys/bus/pci/devices/{line}/driver_override")).unwrap();
            self.bind(line, if wanted == "(null)" { "e1000e" } else { &wanted });
        } else if let Some(driver) = path.strip_suffix("/bind") {
            self.bind(line, driver.rsplit('/').next().unwrap());
        } else if path.ends_with("/nr_hugepages") {
            let count: u64 = line.parse().unwrap();
            put(&self.root, path, &count.min(self.most_pages).to_string());
        } else {
            panic!("Linux has no {path}");
        }
        Ok(())
    }

    fn load(&mut self, module: &str) -> Result<()> {
        if self.broken == Some(module) {
            bail!("modprobe: ERROR: could not insert '{module}': Operation not permitted");
        }
        put(&self.root, &format!("/sys/bus/pci/drivers/{module}/bind"), "");
        Ok(())
    }
}

impl Imitation {
    fn bind(&self, address: &str, driver: &str) {
        let there = self.root.exists(&format!("/sys/bus/pci/drivers/{driver}"));
        if there && self.shy != Some(driver) {
            put(
                &self.root,
                &format!("/sys/bus/pci/devices/{address}/driver"),
                &format!("-> ../../drivers/{driver}"),
            );
            if driver == "e1000e" {
                let device = self.root.path(&format!("/sys/bus/pci/devices/{address}"));
                let _ = fs::rename(device.join("gone/net"), device.join("net"));
            }
        }
    }
}

/// Two NICs of Linux behind an IOMMU, on a machine with two nodes.
fn two_nics() -> (TempDir, Imitation) {
    with(&[
        Card { driver: Some("e1000e"), group: Some("5"), node: 0, interface: Some("eth1"), ..Card::at(WAN) },
        Card { driver: Some("e1000e"), group: Some("6"), node: 0, interface: Some("eth2"), ..Card::at(LAN) },
    ])
}

fn with(cards: &[Card<'_>]) -> (TempDir, Imitation) {
    let (directory, root) = machine(&[
        ("/proc/sys/kernel/osrelease", "6.1.0-13-amd64"),
        ("/proc/sys/kernel/random/boot_id", "first"),
        ("/proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 8000000 kB"),
        (
            "/lib/modules/6.1.0-13-amd64/modules.dep",
            "kernel/drivers/vfio/pci/vfio-pci.ko: kernel/x.ko\nkernel/drivers/uio/uio_pci_generic.ko.xz: kernel/drivers/uio/uio.ko.xz",
        ),
    ]);
    for node in [NODE0, NODE1] {
        put(&root, &format!("{node}/nr_hugepages"), "16");
        put(&root, &format!("{node}/free_hugepages"), "10");
    }
    cards.iter().for_each(|card| plug(&root, card));
    (directory, Imitation { root, most_pages: 100_000, shy: None, broken: None })
}

fn config(text: &str) -> Config {
    let ports = format!(
        "{text}\n[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"{WAN}\"\n[[port]]\nname = \"lan\"\ndevice = \"{LAN}\"\n"
    );
    crate::config::parse(Path::new("/etc/rvs/rvs.toml"), ports.into()).unwrap()
}

fn planned(kernel: &Imitation) -> Plan {
    plan(kernel.root(), &config(""), &Lifelines::default(), &Consent::Unused)
}

/// The one reason why nothing would be done.
fn refusal(kernel: &Imitation, lifelines: &Lifelines, take: bool) -> String {
    let consent = if take { Consent::Used } else { Consent::Unused };
    let plan = plan(kernel.root(), &config(""), lifelines, &consent);
    let [refusal] = &plan.refusals[..] else { panic!("{plan:#?}") };
    refusal.clone()
}

fn run(kernel: &mut Imitation, mode: Mode) -> (String, Result<()>) {
    let plan = planned(kernel);
    assert_eq!(plan.refusals, [""; 0]);
    let mut out = Vec::new();
    let result = apply(kernel, &plan.changes, mode, &mut out);
    (String::from_utf8(out).unwrap(), result)
}

/// All files of the machine, and what is in them.
fn everything(kernel: &Imitation) -> Vec<(String, String)> {
    fn collect(directory: &Path, all: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                collect(&path, all);
                continue;
            }
            let contents = match kind.is_symlink() {
                true => fs::read_link(&path).unwrap().display().to_string(),
                false => fs::read_to_string(&path).unwrap(),
            };
            all.push((path.display().to_string(), contents));
        }
    }
    let mut all = Vec::new();
    collect(&kernel.root.path("/"), &mut all);
    // What goes with the driver, and modules, which stay loaded.
    all.retain(|(path, _)| !path.contains("/net/eth") && !path.contains("/drivers/"));
    for (path, contents) in &mut all {
        if path.ends_with("/driver") {
            *contents = contents.rsplit('/').next().unwrap().to_owned();
        }
    }
    all.sort();
    all
}

const STEPS: &str = "\
echo 262 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
modprobe vfio-pci
echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override
echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind
echo 0000:01:00.0 > /sys/bus/pci/drivers_probe
echo vfio-pci > /sys/bus/pci/devices/0000:01:00.1/driver_override
echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind
echo 0000:01:00.1 > /sys/bus/pci/drivers_probe
";

#[test]
fn what_is_missing_is_done_once_and_taken_back() {
    let (_directory, mut kernel) = two_nics();
    let before = everything(&kernel);
    let (said, result) = run(&mut kernel, Mode::DryRun);
    result.unwrap();
    assert_eq!(said, STEPS);
    assert_eq!(everything(&kernel), before);

    let (said, result) = run(&mut kernel, Mode::Do);
    result.unwrap();
    assert_eq!(said, STEPS);
    for address in [WAN, LAN] {
        assert_eq!(driver_of(&kernel.root, address).as_deref(), Some("vfio-pci"));
    }
    put(&kernel.root, &format!("{NODE0}/free_hugepages"), "256");
    assert_eq!(planned(&kernel).changes, []);

    let mut out = Vec::new();
    assert!(undo(&mut kernel, Mode::Do, &mut out).unwrap());
    let expected = "\
echo > /sys/bus/pci/devices/0000:01:00.1/driver_override
echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind
echo 0000:01:00.1 > /sys/bus/pci/drivers/e1000e/bind
echo > /sys/bus/pci/devices/0000:01:00.0/driver_override
echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind
echo 0000:01:00.0 > /sys/bus/pci/drivers/e1000e/bind
echo 16 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    put(&kernel.root, &format!("{NODE0}/free_hugepages"), "10");
    assert_eq!(everything(&kernel), before);
    assert!(!undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
}

#[test]
fn a_second_run_does_not_forget_what_was_before_the_first() {
    let (_directory, mut kernel) = two_nics();
    run(&mut kernel, Mode::Do).1.unwrap();
    // The pages have all been taken by somebody else.
    put(&kernel.root, &format!("{NODE0}/free_hugepages"), "0");
    let (said, result) = run(&mut kernel, Mode::Do);
    result.unwrap();
    assert_eq!(said, format!("echo 518 > {NODE0}/nr_hugepages\n"));
    assert!(undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
    assert_eq!(kernel.root.number(&format!("{NODE0}/nr_hugepages")), Some(16));
    assert_eq!(driver_of(&kernel.root, WAN).as_deref(), Some("e1000e"));
}

#[test]
fn what_was_noted_before_a_boot_is_of_no_use() {
    let (_directory, mut kernel) = two_nics();
    run(&mut kernel, Mode::Do).1.unwrap();
    put(&kernel.root, "/proc/sys/kernel/random/boot_id", "second");
    assert!(!undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
}

#[test]
fn pages_on_the_node_of_each_nic() {
    let (_directory, kernel) = with(&[
        Card { driver: Some("vfio-pci"), group: Some("5"), node: 0, ..Card::at(WAN) },
        Card { driver: Some("vfio-pci"), group: Some("6"), node: 1, ..Card::at(LAN) },
    ]);
    let plan = plan(kernel.root(), &config("[eal]\nmemory = 101"), &Lifelines::default(), &Consent::Unused);
    let steps: Vec<String> =
        plan.changes.iter().flat_map(|change| change.steps()).map(|step| step.to_string()).collect();
    // 51 MB each; ten pages are free.
    assert_eq!(steps, [format!("echo 32 > {NODE0}/nr_hugepages"), format!("echo 32 > {NODE1}/nr_hugepages")]);
}

#[test]
fn what_fails_takes_all_of_it_back() {
    let (nothing, unset) = ("nothing is changed: ", "all of it is taken back, but what was set in Linux on ");
    for (broken, shy, most_pages, begin, expected) in [
        (
            Some("vfio-pci"),
            None,
            1 << 20,
            nothing.to_owned(),
            "cannot load vfio-pci: modprobe: ERROR: could not insert 'vfio-pci'",
        ),
        (
            Some("0000:01:00.1/driver_override"),
            None,
            1 << 20,
            format!("{unset}0000:01:00.0 ("),
            "cannot write \"vfio-pci\" to /sys/bus/pci/devices/0000:01:00.1",
        ),
        (
            None,
            Some("vfio-pci"),
            1 << 20,
            format!("{unset}0000:01:00.0 ("),
            "vfio-pci does not take 0000:01:00.0; `dmesg` may tell why",
        ),
        (None, None, 100, nothing.to_owned(), "Linux has found memory for 100 of 262 hugepages"),
    ] {
        let (_directory, mut kernel) = two_nics();
        let before = everything(&kernel);
        (kernel.broken, kernel.shy, kernel.most_pages) = (broken, shy, most_pages);
        let (_, result) = run(&mut kernel, Mode::Do);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.starts_with(&begin) && error.contains(expected), "{error}");
        assert_eq!(everything(&kernel), before, "{expected}");
    }
}

#[test]
fn what_could_not_be_taken_back_can_be_tried_again() {
    let (_directory, mut kernel) = two_nics();
    // The second NIC fails, and then the driver refuses to take the first one back.
    (kernel.broken, kernel.shy) = (Some("0000:01:00.1/driver_override"), Some("e1000e"));
    let error = format!("{:#}", run(&mut kernel, Mode::Do).1.unwrap_err());
    assert!(error.contains("driver_override: Input/output error"), "{error}");
    assert!(error.contains("it could not be taken back (`rvs setup --undo` tries again)"), "{error}");
    assert!(error.contains("0000:01:00.0 is not with e1000e again"), "{error}");
    (kernel.broken, kernel.shy) = (None, None);
    assert!(undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
    for address in [WAN, LAN] {
        assert_eq!(driver_of(&kernel.root, address).as_deref(), Some("e1000e"));
    }

    run(&mut kernel, Mode::Do).1.unwrap();
    kernel.broken = Some("e1000e/bind");
    let error = undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("to /sys/bus/pci/drivers/e1000e/bind: Input/output error"), "{error}");
    kernel.broken = None;
    assert!(undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
    assert_eq!(driver_of(&kernel.root, WAN).as_deref(), Some("e1000e"));
}

#[test]
fn what_keeps_the_operator_in_stays() {
    let (_directory, kernel) = two_nics();
    let mut lines = Lifelines::default();
    lines.addresses.push(("eth2".to_owned(), "10.0.0.1".parse().unwrap()));
    assert_eq!(
        refusal(&kernel, &lines, false),
        "port lan: 0000:01:00.1 has the address 10.0.0.1 (eth2); remove it, or `rvs setup --take` takes the NIC all the same"
    );
    assert_eq!(plan(kernel.root(), &config(""), &lines, &Consent::Used).refusals, [""; 0]);
    lines.ssh = Some(("198.51.100.7".parse().unwrap(), "eth2".to_owned()));
    let session =
        "port lan: 0000:01:00.1 carries your SSH session from 198.51.100.7 (eth2); it stays with Linux";
    assert!(refusal(&kernel, &lines, true).starts_with(session));
    lines.default_routes.insert("eth1".to_owned());
    lines.ssh = None;
    let route = "port wan: 0000:01:00.0 carries the default route (eth1); it stays with Linux";
    assert!(refusal(&kernel, &lines, true).starts_with(route));
}

#[test]
fn nics_that_cannot_be_had() {
    let lan = Card { driver: Some("vfio-pci"), group: Some("6"), ..Card::at(LAN) };
    let refused = |cards: &[Card<'_>]| {
        let (_directory, kernel) = with(cards);
        refusal(&kernel, &Lifelines::default(), true)
    };
    assert_eq!(
        refused(std::slice::from_ref(&lan)),
        "port wan: there is no PCI device 0000:01:00.0; take an address that `rvs ports` shows"
    );
    assert_eq!(
        refused(&[lan.clone(), Card { class: "0x010802", driver: Some("nvme"), ..Card::at(WAN) }]),
        "port wan: 0000:01:00.0 is no NIC (PCI class 0x010802); take an address that `rvs ports` shows"
    );
    let shared = refused(&[
        lan.clone(),
        Card { driver: Some("e1000e"), group: Some("5"), ..Card::at(WAN) },
        Card {
            driver: Some("snd_hda_intel"),
            group: Some("5"),
            class: "0x040300",
            ..Card::at("0000:01:00.2")
        },
    ]);
    let expected = "port wan: 0000:01:00.0 shares its IOMMU group 5 with what stays with Linux: 0000:01:00.2 (snd_hda_intel); take";
    assert!(shared.starts_with(expected), "{shared}");

    let (_directory, kernel) =
        with(&[Card { driver: Some("vfio-pci"), group: Some("5"), ..Card::at(WAN) }, lan]);
    put(&kernel.root, "/proc/12/fd/3", "-> /dev/vfio/5");
    put(&kernel.root, "/proc/12/comm", "testpmd");
    let used =
        "port wan: 0000:01:00.0 is in use by process 12 (testpmd); end process 12, or take another NIC";
    assert_eq!(refusal(&kernel, &Lifelines::default(), true), used);
    // RVS itself, as long as it is this one.
    put(&kernel.root, "/proc/12/comm", "rvs");
    assert!(refusal(&kernel, &Lifelines::default(), true).contains("process 12 (rvs)"));
    put(&kernel.root, "/run/rvs/rvs.sock", "");
    assert_eq!(planned(&kernel).refusals, [""; 0]);
}

#[test]
fn ports_that_share_a_group_go_together() {
    let cards = [
        Card { driver: Some("e1000e"), group: Some("5"), interface: Some("eth1"), ..Card::at(WAN) },
        Card { driver: Some("e1000e"), group: Some("5"), interface: Some("eth2"), ..Card::at(LAN) },
    ];
    let (_directory, mut kernel) = with(&cards);
    run(&mut kernel, Mode::Do).1.unwrap();
    assert_eq!(driver_of(&kernel.root, LAN).as_deref(), Some("vfio-pci"));
    // Half done is no reason not to do the other half.
    let (_directory, kernel) =
        with(&[Card { driver: Some("vfio-pci"), ..cards[0].clone() }, cards[1].clone()]);
    assert!(planned(&kernel).refusals.is_empty());
}

#[test]
fn without_an_iommu() {
    let cards = [
        Card { driver: Some("e1000e"), interface: Some("eth1"), ..Card::at(WAN) },
        Card { driver: Some("vfio-pci"), ..Card::at(LAN) },
    ];
    let (_directory, mut kernel) = with(&cards);
    let plan = planned(&kernel);
    let note = "port wan: there is no IOMMU, or it is off: by uio_pci_generic 0000:01:00.0 can write to all of the memory";
    assert_eq!(plan.notes[0], note);
    let (said, result) = run(&mut kernel, Mode::Do);
    result.unwrap();
    assert_eq!(said.matches("modprobe uio_pci_generic").count(), 1, "{said}");
    for address in [WAN, LAN] {
        assert_eq!(driver_of(&kernel.root, address).as_deref(), Some("uio_pci_generic"));
    }

    let (_directory, kernel) =
        with(&[cards[0].clone(), Card { driver: Some("uio_pci_generic"), ..Card::at(LAN) }]);
    fs::remove_dir_all(kernel.root.path("/sys/bus/pci/drivers/uio_pci_generic")).unwrap();
    put(&kernel.root, "/lib/modules/6.1.0-13-amd64/modules.dep", "");
    let refusal = refusal(&kernel, &Lifelines::default(), false);
    let expected = "port wan: 0000:01:00.0 is behind no IOMMU, and this kernel has no module uio_pci_generic; switch the IOMMU on";
    assert!(refusal.starts_with(expected), "{refusal}");
}

#[test]
fn drivers_beside_which_dpdk_works_keep_their_nics() {
    let shared = |address, interface| Card {
        driver: Some("mlx5_core"),
        group: Some("5"),
        interface: Some(interface),
        ..Card::at(address)
    };
    let (_directory, kernel) = with(&[shared(WAN, "eth1"), shared(LAN, "eth2")]);
    put(&kernel.root, &format!("{NODE0}/free_hugepages"), "300");
    let plan = planned(&kernel);
    assert_eq!((plan.changes, plan.refusals), (Vec::new(), Vec::new()));
    assert_eq!(plan.notes[0], "port wan: 0000:01:00.0 stays with mlx5_core, beside which DPDK works");
    // DPDK gets what comes to it all the same.
    let lines = Lifelines { default_routes: ["eth1".to_owned()].into(), ..Lifelines::default() };
    let route = "port wan: 0000:01:00.0 carries the default route (eth1); it stays with Linux";
    assert!(refusal(&kernel, &lines, true).starts_with(route));
}

#[test]
fn more_memory_than_there_is_is_not_asked_for() {
    let (_directory, kernel) = two_nics();
    put(&kernel.root, "/proc/meminfo", "MemAvailable: 400000 kB");
    let expected = "memory: 492 MB of hugepages are missing, and 390 MB of memory are available";
    assert!(refusal(&kernel, &Lifelines::default(), false).starts_with(expected));
}

#[test]
fn nothing_is_taken_back_from_under_a_running_program() {
    let (_directory, mut kernel) = two_nics();
    run(&mut kernel, Mode::Do).1.unwrap();
    put(&kernel.root, "/proc/12/fd/3", "-> /dev/vfio/6");
    put(&kernel.root, "/proc/12/comm", "rvs");
    let error = undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "0000:01:00.1 is in use by process 12 (rvs); end it first (`systemctl stop rvs`)");
    assert_eq!(driver_of(&kernel.root, WAN).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_boot_takes_what_was_taken_by_hand() {
    let boot = |kernel: &Imitation, lifelines: &Lifelines| {
        let permit = Permit::read(kernel.root()).unwrap();
        plan(kernel.root(), &config(""), lifelines, &Consent::Permitted(permit))
    };
    let (_directory, mut kernel) = two_nics();
    let unknown =
        "has not been taken by hand yet, and a boot takes no others; run `rvs setup -c /etc/rvs/rvs.toml`";
    assert_eq!(
        boot(&kernel, &Lifelines::default()).refusals,
        [format!("port wan: {WAN} {unknown}"), format!("port lan: {LAN} {unknown}")]
    );

    Permit::give(kernel.root(), &config("")).unwrap();
    // One that was taken may have its address already, but is not what this machine is reached by.
    let mut lines = Lifelines::default();
    lines.addresses.push(("eth2".to_owned(), "10.0.0.1".parse().unwrap()));
    let plan = boot(&kernel, &lines);
    assert_eq!((&plan.refusals[..], plan.changes), (&[][..], planned(&kernel).changes));
    lines.default_routes.insert("eth2".to_owned());
    assert!(boot(&kernel, &lines).refusals[0].contains("carries the default route"));

    // One is missing: the other is taken all the same, but not by hand.
    let missing = kernel.root().path(&format!("/sys/bus/pci/devices/{LAN}"));
    let aside = kernel.root().path("/aside");
    fs::rename(&missing, &aside).unwrap();
    let plan = boot(&kernel, &Lifelines::default());
    assert_eq!(plan.refusals, [""; 0]);
    assert!(
        plan.notes.iter().any(|note| note.contains(&format!("port lan: there is no PCI device {LAN}"))),
        "{plan:?}"
    );
    assert!(
        plan.changes.iter().any(|change| matches!(change, Change::Bind { address, .. } if address == WAN))
    );
    assert!(planned(&kernel).refusals[0].starts_with(&format!("port lan: there is no PCI device {LAN}")));
    fs::rename(&aside, &missing).unwrap();

    // Another card has its address.
    put(&kernel.root, &format!("/sys/bus/pci/devices/{WAN}/device"), "0x1521");
    let changed = format!("port wan: {WAN} is a 8086:1521 now and was a 8086:10d3 when it was taken by hand");
    assert!(boot(&kernel, &Lifelines::default()).refusals[0].starts_with(&changed));
    put(&kernel.root, &format!("/sys/bus/pci/devices/{WAN}/device"), "0x10d3");

    // A file that names another NIC.
    let other = crate::config::parse(
        Path::new("/etc/rvs/rvs.toml"),
        format!("[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"{WAN}\"\n").into(),
    );
    Permit::give(kernel.root(), &other.unwrap()).unwrap();
    assert_eq!(boot(&kernel, &Lifelines::default()).refusals, [format!("port lan: {LAN} {unknown}")]);

    // What is taken back is not taken again.
    Permit::give(kernel.root(), &config("")).unwrap();
    run(&mut kernel, Mode::Do).1.unwrap();
    put(&kernel.root, "/proc/sys/kernel/random/boot_id", "second");
    assert_eq!(boot(&kernel, &Lifelines::default()).refusals, [""; 0]);
    assert!(!undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
    assert_eq!(Permit::read(kernel.root()).unwrap(), Permit::default());
}

#[test]
fn virtual_functions_are_not_lost_by_the_way() {
    let (_directory, kernel) = two_nics();
    let functions = format!("/sys/bus/pci/devices/{WAN}/sriov_numvfs");
    put(&kernel.root, &functions, "0");
    assert_eq!(planned(&kernel).refusals, [""; 0]);
    put(&kernel.root, &functions, "4");
    let expected =
        format!("port wan: {WAN} has 4 virtual functions, which would be lost with its driver; take one of");
    assert!(refusal(&kernel, &Lifelines::default(), true).starts_with(&expected));
}

/// A reader that has gone.
struct Gone;

impl io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nobody_has_to_read_along() {
    let (_directory, mut kernel) = two_nics();
    let before = everything(&kernel);
    let plan = planned(&kernel);
    kernel.broken = Some("0000:01:00.1/driver_override");
    let error = format!("{:#}", apply(&mut kernel, &plan.changes, Mode::Do, &mut Gone).unwrap_err());
    assert!(error.contains("driver_override: Input/output error"), "{error}");
    assert_eq!(everything(&kernel), before);
    kernel.broken = None;
    apply(&mut kernel, &plan.changes, Mode::Do, &mut Gone).unwrap();
    assert_eq!(driver_of(&kernel.root, LAN).as_deref(), Some("vfio-pci"));
    assert!(undo(&mut kernel, Mode::Do, &mut Gone).unwrap());
    assert_eq!(everything(&kernel), before);
}

#[test]
fn hugepages_that_others_have_added_stay() {
    let (_directory, mut kernel) = two_nics();
    run(&mut kernel, Mode::Do).1.unwrap();
    let file = format!("{NODE0}/nr_hugepages");
    put(&kernel.root, &file, "300");
    assert!(undo(&mut kernel, Mode::Do, &mut Vec::new()).unwrap());
    assert_eq!(kernel.root.number(&file), Some(300 - 246));
}
