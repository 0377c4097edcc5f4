//! The file system that facts about a machine are read from: `/`, or a made-up one in tests.
//!
//! What cannot be read is not there: a container, a virtual machine or an old kernel lacks one thing or the other.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;

/// A file system to read facts from. Paths are those of the real one, `/sys/...`.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// The one below this directory.
    pub fn new(directory: &Path) -> Root {
        Root(directory.to_owned())
    }

    /// Where a path of it is in ours.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A small file, without the newline at its end.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    /// A file with a number in it.
    pub fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.read(path)?.trim().parse().ok()
    }

    /// A file with a hexadecimal number in it, `0x8086`.
    pub fn hex(&self, path: &str) -> Option<u32> {
        u32::from_str_radix(self.read(path)?.trim_start_matches("0x"), 16).ok()
    }

    /// The names in a directory, sorted; none if there is no such directory.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What a symbolic link points to, as it stands there.
    pub fn link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }

    /// The last part of what a symbolic link points to, e.g. the driver of a device.
    pub fn target(&self, path: &str) -> Option<String> {
        Some(self.link(path)?.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether there is something; a link to nowhere is nothing.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The file system that a path is on: its type and its options.
    pub fn file_system(&self, path: &Path) -> Option<(String, String)> {
        let mounts = self.read("/proc/mounts").unwrap_or_default();
        let mount = |line: &str| {
            let mut words = line.split(' ').skip(1).map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        };
        let around = mounts.lines().filter_map(mount).filter(|(point, ..)| path.starts_with(point));
        // Of two at the same place the later one is seen.
        let nearest = around.max_by_key(|(point, ..)| Path::new(point).components().count());
        nearest.map(|(_, system, options)| (system, options))
    }

    /// Whether an RVS runs with this configuration, or has left its socket when it was killed.
    pub fn runs(&self, config: &Config) -> bool {
        self.exists(&config.admin.socket.to_string_lossy())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A machine that nobody owns: files with their contents; `-> target` is a symbolic link.
    pub fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        files.iter().for_each(|(path, contents)| put(&root, path, contents));
        (directory, root)
    }

    /// Puts a file into it, or another one in its place.
    pub fn put(root: &Root, path: &str, contents: &str) {
        let path = root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match contents.strip_prefix("-> ") {
            Some(target) => {
                let _ = fs::remove_file(&path);
                std::os::unix::fs::symlink(target, path).unwrap();
            }
            None => fs::write(path, format!("{contents}\n")).unwrap(),
        }
    }
}
