//! A throw-away copy of this machine, to install packages in.
//!
//! What is installed here is there, too, and nothing that is changed there stays: an overlay on `/`, whose upper layer is in
//! memory, in a mount namespace of a process that holds it. dpkg, maintainer scripts and programs run in it as on a
//! machine of their own, in a network namespace of the cluster. Only systemd is not there: a script answers for it.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    netns::Namespace,
    process::{Command, Daemon, Output},
    router,
    state::State,
    wait::{self, PATIENCE},
};

/// Builds it in the directory `$1`, and stays in it.
const HOLD: &str = r#"
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
for seen in proc sys dev; do mount --rbind "/$seen" "root/$seen"; done
# Whoever is removed in here gives nothing of the machine's back: neither its NICs, nor its tables.
mount -o remount,bind,ro root/sys
rm -rf root/var/lib/rvs
if [ -d root/dev/hugepages ]; then mount -t tmpfs tmpfs root/dev/hugepages; fi
mount -t tmpfs tmpfs root/run
mkdir -p root/run/systemd/system root/run/rvs
# Debian's answer to whether a service may be stopped: yes.
rm -f root/usr/sbin/policy-rc.d
exec chroot root sleep infinity
"#;

/// What is asked of systemd is written down, and answered for the one service.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> /run/systemctl.log
case "$*" in
*is-active*rvs.service*) test -e /run/rvs/rvs.sock ;;
*stop*rvs.service*) test ! -e /run/rvs/rvs.sock || rvs stop ;;
esac
"#;

/// A copy of this machine; gone when dropped.
#[derive(Debug)]
pub struct Image {
    state: State,
    directory: PathBuf,
    holder: Daemon,
    /// What it has hidden of the machine from the beginning.
    hidden: BTreeSet<String>,
}

impl Image {
    /// One whose network is that namespace.
    pub fn new(namespace: &Namespace) -> Result<Image> {
        let state = namespace.state().clone();
        let directory = state.file("image");
        fs::create_dir(&directory)?;
        let holder = namespace.command("sh").args(["-ec", HOLD, "sh"]).arg(&directory).spawn("image")?;
        let mut image = Image { state, directory, holder, hidden: BTreeSet::new() };
        wait::until("the image is there", PATIENCE, || {
            image.holder.check_running()?;
            let name = fs::read_to_string(format!("/proc/{}/comm", image.holder.pid()))?;
            ensure!(name == "sleep\n", "{name:?} builds it");
            Ok(())
        })?;
        let systemctl = image.file("/usr/bin/systemctl");
        fs::write(&systemctl, SYSTEMCTL)?;
        fs::set_permissions(&systemctl, Permissions::from_mode(0o755))?;
        image.hidden = image.differences()?;
        Ok(image)
    }

    /// A program to run in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let holder = self.holder.pid().to_string();
        Command::new(&self.state, "nsenter")
            .args(["--target", &holder, "--mount", "--net", "--root", "--wd"])
            .arg(program)
            .env("DEBIAN_FRONTEND", "noninteractive")
    }

    /// Where a file of it is found from here.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.pid()))
    }

    /// Installs a package, in place of what is there of it.
    pub fn install(&self, package: &Path) -> Result<Output> {
        fs::copy(package, self.file("/run/package.deb"))?;
        self.command("dpkg").words("--install /run/package.deb").output()
    }

    /// What systemd was asked so far.
    pub fn systemctl(&self) -> String {
        fs::read_to_string(self.file("/run/systemctl.log")).unwrap_or_default()
    }

    /// The files and links that have come since it was made, or gone.
    pub fn changed(&self) -> Result<BTreeSet<String>> {
        Ok(&self.differences()? - &self.hidden)
    }

    /// The files, links and whiteouts by which it differs from this machine.
    fn differences(&self) -> Result<BTreeSet<String>> {
        let upper = self.directory.join("upper");
        let holder = self.holder.pid().to_string();
        let found = Command::new(&self.state, "nsenter")
            .args(["--target", &holder, "--mount", "find"])
            .arg(&upper)
            .words("! -type d -printf /%P\\n")
            .run()?;
        Ok(found.lines().map(str::to_owned).collect())
    }
}

/// Packs the built program: `rvs_VERSION_ARCH.deb` and its `.changes`, beside each other in the state directory.
///
/// Without what takes long and is of use to others only: debug symbols and a small file.
pub fn package(state: &State, version: &str) -> Result<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/debian/build");
    let said = Command::new(state, build)
        .arg(router::program()?)
        .arg(state.file("packages"))
        .arg(version)
        .env("DEB_BUILD_OPTIONS", "noautodbgsym")
        .env("DPKG_DEB_COMPRESSOR_TYPE", "gzip")
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "1")
        .run()?;
    let path = said.lines().last().map(PathBuf::from).context("it says where the package is")?;
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}
