//! The file of the admin socket: made, taken over from a dead predecessor, removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};

/// Owner and group may ask and reload; connecting takes permission to write.
const MODE: u32 = 0o660;

/// A bound socket. Its file is removed when it is dropped.
pub struct Socket {
    pub(super) listener: UnixListener,
    pub(super) file: Arc<SocketFile>,
}

impl Socket {
    /// What whoever follows needs to listen on.
    pub fn heirloom(&self) -> io::Result<Heirloom> {
        Ok(Heirloom { listener: self.listener.as_fd().try_clone_to_owned()?, file: self.file.clone() })
    }
}

/// A socket that can be handed on; who connects meanwhile waits.
pub struct Heirloom {
    listener: OwnedFd,
    file: Arc<SocketFile>,
}

impl Heirloom {
    /// Its file stays when this process gives it up.
    pub fn hand_on(self) -> OwnedFd {
        self.file.is_handed_on.store(true, Ordering::Relaxed);
        self.listener
    }
}

/// Goes on listening on the socket of a predecessor, if it is still the one at `path`; else that one is removed.
pub fn inherit(listener: OwnedFd, path: &Path) -> io::Result<Option<Socket>> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    let address = listener.local_addr()?;
    if address.as_pathname() != Some(path) || !path.exists() {
        if let Some(old) = address.as_pathname() {
            // Whoever finds it there is refused, and told that it is stale.
            let _ = fs::remove_file(old);
        }
        return Ok(None);
    }
    listener.set_nonblocking(true)?;
    let file = Arc::new(SocketFile::new(path)?);
    Ok(Some(Socket { listener: UnixListener::from_std(listener)?, file }))
}

/// Binds the admin socket. What a dead `rvs` has left is replaced; a live one is left alone.
///
/// Members of `group`, which is the process' own if there is none, may ask.
pub async fn bind(path: &Path, group: Option<&str>) -> anyhow::Result<Socket> {
    let shown = path.display();
    let group = group.map(find_group).transpose()?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            refuse_unless_stale(path).await?;
            fs::remove_file(path).with_context(|| format!("cannot remove the stale {shown}"))?;
            UnixListener::bind(path)
        }
        result => result,
    };
    let listener = listener.with_context(|| format!("cannot bind the admin socket {shown}"))?;
    let file = SocketFile::new(path).with_context(|| format!("cannot find the admin socket {shown}"))?;
    if let Some(group) = group {
        chown(path, None, Some(group)).with_context(|| format!("cannot give {shown} to its group"))?;
    }
    fs::set_permissions(path, Permissions::from_mode(MODE))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    Ok(Socket { listener, file: Arc::new(file) })
}

fn find_group(name: &str) -> anyhow::Result<u32> {
    let found = Group::from_name(name).with_context(|| format!("cannot look for the group {name:?}"))?;
    let found = found.with_context(|| {
        format!("admin.group: this machine has no group {name:?}; expected one that `getent group` lists")
    })?;
    Ok(found.gid.as_raw())
}

async fn refuse_unless_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {shown}"))?;
    if !metadata.file_type().is_socket() {
        bail!("{shown} exists and is not a socket; expected none, or that of an earlier rvs");
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            bail!("another rvs answers at {shown}; stop it first, or give this one another admin.socket")
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot tell whether another rvs answers at {shown}"))
        }
    }
}

/// The file of a socket that this process has bound.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    is_handed_on: AtomicBool,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.to_owned(),
            identity: identity(path)?,
            is_handed_on: AtomicBool::new(false),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever took the path over in the meantime keeps it.
        if !self.is_handed_on.load(Ordering::Relaxed)
            && identity(&self.path).is_ok_and(|now| now == self.identity)
        {
            // At exit there is nobody left to tell, and the next start replaces what stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
