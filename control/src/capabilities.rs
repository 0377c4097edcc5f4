//! What RVS may do, given up as soon as it has done it.
//!
//! The start takes a good part of root: devices, hugepages, interfaces. Going on takes little, and what is
//! not there cannot be abused by whoever finds a hole in a parser. So when everything is open, RVS
//! keeps, of the capabilities that it was started with (capabilities(7)):
//!
//! | capability | for |
//! |---|---|
//! | `NET_ADMIN` | addresses of the twins, neighbours, and to close devices in order |
//! | `NET_RAW` | packets that Linux sends for RVS, pings of health checks |
//! | `SYS_ADMIN`, `BPF` | with an AF_XDP port only: its driver unloads its program at the end |
//! | `SETUID`, `SETGID`, `KILL` | with a `user` of a check or a hook only: to start its program, and to end it |
//!
//! Programs that RVS starts get none of them, also when they run as root (`SECBIT_NOROOT`), and cannot regain any
//! (`no_new_privs`): the ambient and inheritable sets are empty. The bounding set has what RVS keeps, since that is what can
//! be [lent](lending) to a program on its way to another user, and [handed on](hand_on) to the program that RVS becomes.
//! Workers have no capabilities at all.
//!
//! Capabilities belong to a thread and are inherited by those that it starts. The control thread gives its own up
//! before it starts the workers; EAL's interrupt thread exists by then and is asked to do it; threads for
//! blocking calls do it as they start. [`keepers`] finds threads that a driver has started and that nobody can ask.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use rustix::thread::{CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits};

use crate::config::Config;
use crate::config::value::pci_address;
use crate::hardware::Nic;
use crate::root::Root;

/// What it takes to become another user.
const LENT: [Capability; 2] = [Capability::CAP_SETUID, Capability::CAP_SETGID];

/// What goes on needing them, with these devices.
pub fn needed(config: &Config) -> CapsHashSet {
    use Capability::*;
    let mut needed = CapsHashSet::from([CAP_NET_ADMIN, CAP_NET_RAW]);
    let drivers = config.devices().map(|(_, _, device)| device);
    if drivers.chain(config.eal.args.iter().map(String::as_str)).any(|text| text.contains("net_af_xdp")) {
        needed.extend([CAP_SYS_ADMIN, CAP_BPF]);
    }
    if config.users().next().is_some() {
        needed.extend(LENT);
        // A check that is out of time.
        needed.insert(CAP_KILL);
    }
    needed
}

/// Leaves the calling thread only these, of those that it has; what it starts gets none.
pub fn keep(needed: &CapsHashSet) -> Result<CapsHashSet> {
    let failed = |what| move |error: CapsError| anyhow::anyhow!("cannot {what}: {error}");
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    let has = caps::read(None, CapSet::Permitted).map_err(failed("read the capabilities"))?;
    caps::clear(None, CapSet::Ambient).map_err(failed("clear the ambient set"))?;
    // Without this capability nothing can be taken out of the bounding set, nor from root. Then a program that runs as
    // root gets what that set has, which whoever started RVS has chosen.
    if has.contains(&Capability::CAP_SETPCAP) {
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed("use CAP_SETPCAP"))?;
        for capability in caps::runtime::thread_all_supported() {
            if !needed.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed("shrink the bounding set"))?;
            }
        }
        let bits = capabilities_secure_bits().context("cannot read the secure bits")?;
        let no_root = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED;
        set_capabilities_secure_bits(bits | no_root).context("cannot set SECBIT_NOROOT")?;
    }
    let kept: CapsHashSet = has.intersection(needed).copied().collect();
    caps::clear(None, CapSet::Inheritable).map_err(failed("clear the inheritable set"))?;
    // The effective set must at no time have what the permitted one lacks.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(failed("give capabilities up"))?;
    }
    Ok(kept)
}

/// The program that this process becomes gets what this thread has. Without this a program that has given up the rights of
/// root, as this one has, gets nothing.
pub fn hand_on() -> Result<()> {
    let has = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    caps::set(None, CapSet::Inheritable, &has).context("cannot make capabilities inheritable")?;
    for capability in has {
        caps::raise(None, CapSet::Ambient, capability)
            .with_context(|| format!("cannot hand on {capability}"))?;
    }
    Ok(())
}

/// Whether a program with what is [`needed`] can open the devices once more. Who may lock memory without a limit can,
/// unless a device takes physical addresses, which Linux shows to root only.
pub fn enough_to_start_again(config: &Config) -> Result<()> {
    let may = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    let most = caps::read(None, CapSet::Bounding).context("cannot read the bounding set")?;
    ensure!(
        may.is_subset(&most),
        "rvs was started with a bounding set that lacks {}, so that it cannot be handed on; restart instead",
        show(&may.difference(&most).copied().collect())
    );
    if config.run.drop_capabilities { can_open(&Root::new(Path::new("/")), config) } else { Ok(()) }
}

/// Whether a program with the capabilities of this one can open the devices of a configuration.
pub fn enough_to_open(config: &Config) -> Result<()> {
    let is_root = caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN);
    match is_root.context("cannot read the capabilities")? {
        true => Ok(()),
        false => can_open(&Root::new(Path::new("/")), config),
    }
}

/// Whether no device takes more than what is kept. One that is absent is spoken of elsewhere.
fn can_open(root: &Root, config: &Config) -> Result<()> {
    let addresses = config.devices().filter_map(|(_, _, device)| pci_address(device));
    let mut nics = addresses.filter_map(|address| Nic::read(root, &address));
    match nics.find(|nic| !nic.is_confined(root)) {
        None => Ok(()),
        Some(Nic { address, .. }) => bail!(
            "DPDK does not have {address} by vfio-pci behind an IOMMU, so that to open it takes capabilities that this \
             program has given up; restart instead, or set run.drop_capabilities = false"
        ),
    }
}

/// What is started meanwhile, by this thread, gets what it takes to become another user.
pub fn lending<T>(start: impl FnOnce() -> T) -> Result<T> {
    let has = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    let lent = CapsHashSet::from(LENT);
    ensure!(
        has.is_superset(&lent),
        "rvs lacks {}, which it keeps if its file names a user at the start; expected a restart",
        show(&lent)
    );
    let loan = Loan;
    caps::set(None, CapSet::Inheritable, &lent).context("cannot make capabilities inheritable")?;
    for capability in lent {
        caps::raise(None, CapSet::Ambient, capability)
            .with_context(|| format!("cannot lend {capability}"))?;
    }
    let started = start();
    drop(loan);
    Ok(started)
}

/// Ends with what it lasts for, also if that panics.
struct Loan;

impl Drop for Loan {
    fn drop(&mut self) {
        // What is not inheritable is not ambient either.
        if let Err(error) = caps::clear(None, CapSet::Inheritable) {
            tracing::error!(%error, "a thread goes on lending its capabilities");
        }
    }
}

/// The threads of this process, by name, that have more than these.
pub fn keepers(kept: &CapsHashSet) -> Result<Vec<String>> {
    let allowed = kept.iter().fold(0, |mask, capability| mask | capability.bitmask());
    let threads = fs::read_dir("/proc/self/task").context("cannot list the threads")?;
    // A thread that ends meanwhile has none.
    let statuses = threads.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    Ok(statuses.filter_map(|status| keeper(&status, allowed)).collect())
}

fn keeper(status: &str, allowed: u64) -> Option<String> {
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
    let has = u64::from_str_radix(fields.get("CapPrm")?.trim(), 16).ok()?;
    (has & !allowed != 0).then(|| (*fields.get("Name").unwrap_or(&"?")).to_owned())
}

/// For the log: `cap_net_admin,cap_net_raw`.
pub fn show(capabilities: &CapsHashSet) -> String {
    let mut names: Vec<String> =
        capabilities.iter().map(|capability| capability.to_string().to_lowercase()).collect();
    names.sort();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::hardware::testing::{Card, tree};
    use crate::root::testing::put;

    #[test]
    fn what_the_next_program_can_open() {
        const NIC: &str = "0000:01:00.0";
        let with = |driver, group, name| {
            let (_directory, root) = tree(&[Card { driver: Some(driver), group, ..Card::at(NIC) }]);
            if let Some(name) = name {
                put(&root, "/sys/kernel/iommu_groups/3/name", name);
            }
            can_open(&root, &config(NIC)).map_err(|error| error.to_string())
        };
        assert_eq!(with("vfio-pci", Some("3"), None), Ok(()));
        // The driver has memory translated.
        assert_eq!(with("mlx5_core", None, None), Ok(()));
        let refused = with("vfio-pci", Some("3"), Some("vfio-noiommu")).unwrap_err();
        assert!(refused.starts_with("DPDK does not have 0000:01:00.0 by vfio-pci behind"), "{refused}");
        assert!(with("uio_pci_generic", Some("3"), None).is_err());
        assert!(with("vfio-pci", None, None).is_err());
    }

    fn config(device: &str) -> Config {
        let text = format!("[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"{device}\"\n");
        crate::config::parse(Path::new("f"), text.into()).unwrap()
    }

    #[test]
    fn what_is_needed_depends_on_the_driver() {
        let plain = "cap_net_admin,cap_net_raw";
        assert_eq!(show(&needed(&config("0000:01:00.0"))), plain);
        let xdp = show(&needed(&config("net_af_xdp,iface=eth1")));
        assert!(xdp.contains("cap_sys_admin") && xdp.contains("cap_bpf"), "{xdp}");
    }

    /// In a thread of its own, which is all that it changes.
    #[test]
    fn a_thread_gives_up_and_its_children_have_nothing() {
        let needed = needed(&config("net_null"));
        let (kept, status) = std::thread::spawn(move || {
            let kept = keep(&needed).unwrap();
            // Once more changes nothing.
            assert_eq!(keep(&needed).unwrap(), kept);
            assert!(kept.is_subset(&needed));
            assert_eq!(caps::read(None, CapSet::Effective).unwrap(), kept);
            (kept, Command::new("cat").arg("/proc/self/status").output().unwrap())
        })
        .join()
        .unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        // Whoever runs the tests without CAP_SETPCAP keeps the bounding set.
        if caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP).unwrap() {
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
            }
            // This thread has kept all, and is found out.
            assert!(!keepers(&kept).unwrap().is_empty());
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }

    /// What Linux says of the capabilities of a program that this thread starts.
    fn of_a_program() -> BTreeMap<String, u64> {
        let status = Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
        let status = String::from_utf8(status).unwrap();
        let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
        sets.map(|(set, mask)| (set.to_owned(), u64::from_str_radix(mask, 16).unwrap())).collect()
    }

    /// A program that runs as root and is started by a thread that has given up the rights of root.
    #[test]
    fn what_is_kept_can_be_handed_on() {
        let needed = needed(&config("net_null"));
        let has = caps::read(None, CapSet::Permitted).unwrap();
        if !has.is_superset(&needed) || !has.contains(&Capability::CAP_SETPCAP) {
            eprintln!("SKIPPED: only root has what can be handed on");
            return;
        }
        std::thread::spawn(move || {
            let mask = keep(&needed).unwrap().iter().fold(0, |mask, capability| mask | capability.bitmask());
            enough_to_start_again(&config("net_null")).unwrap();
            assert_eq!(of_a_program()["Prm"], 0);
            hand_on().unwrap();
            let program = of_a_program();
            assert_eq!(["Prm", "Eff", "Bnd"].map(|set| program[set]), [mask; 3]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_lent_is_lent_to_one_program_only() {
        let lent = LENT.iter().fold(0, |mask, capability| mask | capability.bitmask());
        let mut needed = needed(&config("net_null"));
        let stingy = needed.clone();
        needed.extend(LENT);
        let has = caps::read(None, CapSet::Permitted).unwrap();
        if !has.is_superset(&needed) || !has.contains(&Capability::CAP_SETPCAP) {
            eprintln!("SKIPPED: only root can lend");
            return;
        }
        std::thread::spawn(move || {
            keep(&needed).unwrap();
            let program = lending(of_a_program).unwrap();
            assert_eq!(["Prm", "Eff", "Amb", "Inh"].map(|set| program[set]), [lent; 4]);
            // Also if it runs as root, as here.
            let other = of_a_program();
            assert_eq!(["Prm", "Eff", "Amb", "Inh"].map(|set| other[set]), [0; 4]);
            // In vain, once it has been given up.
            keep(&stingy).unwrap();
            let error = lending(of_a_program).unwrap_err().to_string();
            assert!(error.starts_with("rvs lacks cap_setgid,cap_setuid, "), "{error}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_user_in_the_file_takes_more() {
        let text = "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n[[service]]\n\
                    address = \"192.0.2.10:80\"\nmode = \"nat\"\n";
        for (keys, more) in [
            ("hooks = { user = \"root\" }", true),
            ("check = { kind = \"command\", command = [\"/bin/true\"], user = \"root\" }", true),
            ("check = { kind = \"command\", command = [\"/bin/true\"] }", false),
        ] {
            let config = crate::config::parse(Path::new("f"), format!("{text}{keys}\n").into()).unwrap();
            let expected = if more {
                "cap_kill,cap_net_admin,cap_net_raw,cap_setgid,cap_setuid"
            } else {
                "cap_net_admin,cap_net_raw"
            };
            assert_eq!(show(&needed(&config)), expected, "{keys}");
        }
    }

    #[test]
    fn who_keeps_too_much() {
        let status = "Name:\tmlx5-thread\nCapPrm:\t0000000000003000\n";
        assert_eq!(keeper(status, 0x3000), None);
        assert_eq!(keeper(status, 0x1000).as_deref(), Some("mlx5-thread"));
    }
}
