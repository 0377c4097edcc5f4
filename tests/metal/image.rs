//! What the guest boots: Debian's kernel, an initramfs that finds the root, and a disk for what it writes.
//!
//! Kernel and busybox come from Debian's packages, by the machine's own apt, once, into `target/metal`. The root is the
//! machine's own, read-only over 9p; on top of it lies the guest's disk, which is new for each run and has in it what makes
//! the guest a machine of its own: no services of this machine, no data of its users.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use harness::{process::Command, state::State};

/// Modules that the initramfs needs; their dependencies are found.
const MODULES: [&str; 6] = ["virtio_pci", "9p", "9pnet_virtio", "virtio_blk", "ext4", "overlay"];

/// Directories of the machine's root that the guest sees; of others it has its own.
const SEEN: [&str; 10] = ["bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr", "var"];

/// Directories in there whose content the guest does not see: what this machine starts, and what it has written.
const HIDDEN: [&str; 14] = [
    "etc/systemd/system",
    "etc/rc0.d",
    "etc/rc1.d",
    "etc/rc2.d",
    "etc/rc3.d",
    "etc/rc4.d",
    "etc/rc5.d",
    "etc/rc6.d",
    "etc/rcS.d",
    "var/lib/rvs",
    "var/log",
    "var/tmp",
    // Indices over everything that Debian has, or that is installed here: minutes of emulation.
    "var/lib/apt/lists",
    "var/lib/man-db",
];

/// Where all of it is.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
    version: String,
    disk: PathBuf,
}

impl Image {
    /// Makes what is missing below `directory`, and a new disk in `state` with this package in the guest's `/root`.
    pub fn build(directory: &Path, state: &State, package: &Path) -> Result<Image> {
        fs::create_dir_all(directory)?;
        let directory = &directory.canonicalize()?;
        unpack(state, directory, "linux-image-amd64", "kernel")?;
        unpack(state, directory, "busybox-static", "busybox")?;
        let modules = directory.join("kernel/lib/modules");
        let version =
            fs::read_dir(&modules)?.next().context("the kernel's package has no modules")??.file_name();
        let version = version.to_string_lossy().into_owned();
        let image = Image { directory: directory.to_owned(), version, disk: state.file("disk") };
        image.make_initrd(state)?;
        image.make_share()?;
        image.make_disk(state, package)?;
        Ok(image)
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(format!("kernel/boot/vmlinuz-{}", self.version))
    }

    /// The initramfs.
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd.cpio")
    }

    /// All modules, as `/usr/lib/modules`.
    pub fn modules(&self) -> PathBuf {
        self.directory.join("kernel/lib/modules")
    }

    /// What the guest sees as `/rig`.
    pub fn share(&self) -> PathBuf {
        self.directory.join("share")
    }

    /// The disk.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    fn make_initrd(&self, state: &State) -> Result<()> {
        let (root, kernel) = (self.directory.join("initrd"), self.directory.join("kernel"));
        Command::new(state, "depmod").arg("-b").arg(&kernel).arg(&self.version).run()?;
        empty(&root)?;
        fs::create_dir(root.join("modules"))?;
        fs::copy(self.directory.join("busybox/bin/busybox"), root.join("busybox"))?;
        program(&root.join("init"), include_str!("guest/init"))?;
        let found = Command::new(state, "modprobe")
            .args(["--show-depends", "-S", &self.version, "-d"])
            .arg(&kernel)
            .args(["-a"])
            .args(MODULES)
            .run()?;
        let mut order: Vec<&str> = Vec::new();
        for path in found.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
            let name = path.rsplit('/').next().unwrap_or(path);
            if !order.contains(&name) {
                fs::copy(path, root.join("modules").join(name)).context(path.to_owned())?;
                order.push(name);
            }
        }
        fs::write(root.join("order"), order.join("\n"))?;
        Command::new(state, "sh")
            .args(["-c", "cd \"$1\" && find . | cpio --quiet -o -H newc > \"$2\"", "sh"])
            .arg(&root)
            .arg(self.initrd())
            .run()?;
        Ok(())
    }

    fn make_share(&self) -> Result<()> {
        empty(&self.share())?;
        program(&self.share().join("login"), include_str!("guest/login"))?;
        program(&self.share().join("agent"), include_str!("guest/agent"))
    }

    fn make_disk(&self, state: &State, package: &Path) -> Result<()> {
        let root = self.directory.join("disk");
        empty(&root)?;
        let upper = root.join("upper");
        fs::create_dir_all(root.join("work"))?;
        let (mut opaque, mut gone): (Vec<String>, _) = (HIDDEN.map(str::to_owned).into(), Vec::new());
        for entry in fs::read_dir("/")? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type()?.is_dir() {
                _ if SEEN.contains(&name.as_str()) => {}
                true => opaque.push(name),
                // /.dockerenv, by which systemd would take the guest for a container, which has no disks to write back at its
                // end.
                false => gone.push(name),
            }
        }
        for directory in
            opaque.iter().map(String::as_str).chain(["proc", "sys", "dev", "run", "rig", "usr/lib/modules"])
        {
            fs::create_dir_all(upper.join(directory))?;
        }
        for directory in ["tmp", "var/tmp"] {
            fs::set_permissions(upper.join(directory), Permissions::from_mode(0o1777))?;
        }
        let name = package.file_name().context("the package has no name")?;
        fs::copy(package, upper.join("root").join(name)).with_context(|| package.display().to_string())?;
        let units = upper.join("etc/systemd/system");
        fs::write(units.join("rig-agent.service"), include_str!("guest/rig-agent.service"))?;
        fs::create_dir(units.join("multi-user.target.wants"))?;
        symlink("../rig-agent.service", units.join("multi-user.target.wants/rig-agent.service"))?;
        fs::create_dir_all(upper.join("usr/sbin"))?;
        program(&upper.join("usr/sbin/update-grub"), include_str!("guest/update-grub"))?;
        fs::write(upper.join("etc/fstab"), "")?;
        fs::write(upper.join("etc/hostname"), "router\n")?;
        // Of nobody; without one systemd takes this for the first boot ever, and enables what packages would like to be.
        fs::write(upper.join("etc/machine-id"), "52565300000000000000000000000001\n")?;
        fs::File::create(&self.disk)?.set_len(1 << 30)?;
        Command::new(state, "mke2fs").words("-q -t ext4 -d").arg(&root).arg(&self.disk).run()?;
        // As overlayfs wants it.
        let opaque = opaque.iter().map(|name| format!("ea_set /upper/{name} trusted.overlay.opaque y\n"));
        let gone = gone.iter().map(|name| format!("mknod {name} c 0 0\n"));
        let script: String = opaque.chain(["cd /upper\n".to_owned()]).chain(gone).collect();
        Command::new(state, "debugfs").words("-w -f -").arg(&self.disk).input(script).run()?;
        Ok(())
    }
}

/// Fetches a package, or the one that this one stands for, and unpacks it into `directory/name`, unless that is there.
fn unpack(state: &State, directory: &Path, package: &str, name: &str) -> Result<()> {
    let target = directory.join(name);
    if target.exists() {
        return Ok(());
    }
    let depends = Command::new(state, "apt-cache").args(["depends", package]).run()?;
    // Of linux-image-amd64 there is one dependency: the kernel of the day.
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package = kernel.map_or(package.to_owned(), |rest| format!("linux-image-{rest}"));
    let new = directory.join(format!("{name}.new"));
    empty(&new)?;
    Command::new(state, "sh")
        .args(["-c", "cd \"$1\" && apt-get -qq download \"$2\" && dpkg-deb -x ./*.deb . && rm ./*.deb", "sh"])
        .arg(&new)
        .arg(&package)
        .limit(std::time::Duration::from_secs(300))
        .run()?;
    ensure!(fs::read_dir(&new)?.next().is_some(), "{package} is empty");
    Ok(fs::rename(new, target)?)
}

fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::create_dir_all(directory)?)
}

fn program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}
