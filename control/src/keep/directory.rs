//! A directory of files in memory that outlive their process, on tmpfs or hugetlbfs.
//!
//! On any other file system Linux would write each page that a packet has touched to a disk, again and again.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use dataplane::table::write_mapped;
use rustix::fs::{FallocateFlags, fallocate, fstatfs};

/// What statfs(2) calls them.
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58F6;

/// Each file takes whole pages. With pages of a gigabyte the smallest would take one.
const LARGEST_PAGE: u64 = 2 << 20;

/// How long a program takes to begin that another process has started. Until then it holds whatever that one held, its lock among it, even if that one
/// has ended: flock(2) is of the open file, which fork(2) shares.
const STARTING: Duration = Duration::from_millis(500);

/// A directory that this process has to itself.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    page: u64,
    /// The lock goes with it, however this process ends.
    _handle: File,
}

impl Directory {
    /// Takes it, and makes it if it is not there. Errors say what is expected.
    pub fn open(path: &Path) -> Result<Directory> {
        let shown = path.display();
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| {
                format!(
                    "cannot make {shown}; expected a directory in one that is there, on hugetlbfs or tmpfs"
                )
            })?,
        }
        let handle =
            File::open(path).with_context(|| format!("cannot open {shown}; expected a directory"))?;
        let about = handle.metadata()?;
        ensure!(about.is_dir(), "{shown} is no directory; expected one");
        ensure!(
            about.uid() == nix::unistd::geteuid().as_raw() && about.mode() & 0o022 == 0,
            "{shown} can be written by others; expected a directory of the user that rvs runs as, mode 0700"
        );
        let system = fstatfs(&handle).with_context(|| format!("cannot find out where {shown} is"))?;
        ensure!(
            [TMPFS, HUGETLBFS].contains(&(system.f_type as u64)),
            "{shown} is on a disk; expected a directory on hugetlbfs or tmpfs, e.g. \"/dev/hugepages/rvs\""
        );
        let page = system.f_bsize as u64;
        ensure!(
            page <= LARGEST_PAGE,
            "{shown} has pages of {} MB; expected a hugetlbfs that is mounted with pagesize=2M",
            page >> 20
        );
        let began = Instant::now();
        loop {
            match handle.try_lock() {
                Ok(()) => return Ok(Directory { path: path.to_owned(), page, _handle: handle }),
                Err(TryLockError::WouldBlock) if began.elapsed() < STARTING => sleep(STARTING / 50),
                Err(TryLockError::WouldBlock) => {
                    bail!("another rvs has {shown}; stop it first, or give this one another directory")
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {shown}"));
                }
            }
        }
    }

    /// A new file of so many bytes or some more, all zeros, whose memory is there.
    pub fn create(&self, name: &str, bytes: u64) -> Result<File> {
        let path = self.path.join(name);
        let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = made.with_context(|| format!("cannot make {}", path.display()))?;
        let length = bytes.next_multiple_of(self.page);
        // What is missing has to show here: later it would be SIGBUS in the middle of a packet.
        let sized = file.set_len(length);
        let taken = sized.and_then(|()| Ok(fallocate(&file, FallocateFlags::empty(), 0, length)?));
        if let Err(error) = taken {
            let _ = fs::remove_file(&path);
            let (shown, megabytes) = (self.path.display(), length.div_ceil(1 << 20));
            return Err(error).context(format!(
                "{shown} has no room for {megabytes} MB; expected more free hugepages, or a larger tmpfs"
            ));
        }
        Ok(file)
    }

    /// Puts a file with these contents, and zeros to the end of its last page, in the place of whatever has this name.
    pub fn replace(&self, name: &str, contents: &[u8]) -> Result<()> {
        let new = format!("{name}.new");
        self.remove(&new)?;
        let file = self.create(&new, contents.len() as u64)?;
        write_mapped(&file, contents)
            .with_context(|| format!("cannot write {}", self.path.join(&new).display()))?;
        let (from, to) = (self.path.join(&new), self.path.join(name));
        fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))
    }

    /// A file's contents, if it is there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(contents) => Ok(Some(contents)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// A file to be mapped.
    pub fn open_file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let opened = File::options().read(true).write(true).open(&path);
        opened.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Notes that a file is in use now.
    pub fn touch(&self, name: &str) -> Result<()> {
        self.open_file(name)?.set_modified(SystemTime::now()).with_context(|| format!("cannot touch {name}"))
    }

    /// How long ago a file was in use.
    pub fn untouched(&self, name: &str) -> Result<Duration> {
        let touched = self.open_file(name)?.metadata().and_then(|metadata| metadata.modified());
        let touched = touched.with_context(|| format!("cannot look at {name}"))?;
        // A clock that was set back says nothing.
        Ok(touched.elapsed().unwrap_or_default())
    }

    /// Takes a file away, if it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The names of its files that begin so.
    pub fn names(&self, beginning: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(beginning)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    /// A directory on tmpfs.
    pub fn on_tmpfs() -> TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn refusal(path: &Path) -> String {
        format!("{:#}", Directory::open(path).unwrap_err())
    }

    #[test]
    fn files_are_replaced_whole() {
        let parent = on_tmpfs();
        let directory = Directory::open(&parent.path().join("table")).unwrap();
        assert_eq!(fs::metadata(&directory.path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(directory.read("index").unwrap(), None);
        for contents in [&b"long enough"[..], b"short"] {
            // Somebody died while it was written.
            fs::write(directory.path.join("index.new"), "half").unwrap();
            directory.replace("index", contents).unwrap();
            let read = directory.read("index").unwrap().unwrap();
            assert!(read.starts_with(contents) && read[contents.len()..].iter().all(|&byte| byte == 0));
        }
        assert_eq!(directory.names("index"), ["index"]);
        directory.remove("index").unwrap();
        directory.remove("index").unwrap();
        assert_eq!(directory.names(""), [""; 0]);
    }

    #[test]
    fn one_process_at_a_time() {
        let parent = on_tmpfs();
        let held = Directory::open(parent.path()).unwrap();
        assert!(refusal(parent.path()).contains("another rvs has"), "{}", refusal(parent.path()));
        drop(held);
        Directory::open(parent.path()).unwrap();
    }

    #[test]
    fn what_a_process_was_starting_when_it_ended_has_the_lock_for_a_moment() {
        let parent = on_tmpfs();
        let held = Directory::open(parent.path()).unwrap();
        let started = held._handle.try_clone().unwrap();
        drop(held);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(STARTING / 4);
                drop(started);
            });
            Directory::open(parent.path()).unwrap();
        });
    }

    #[test]
    fn what_does_not_do_is_refused() {
        let parent = on_tmpfs();
        let path = parent.path();
        assert!(refusal(&path.join("a/b")).contains("expected a directory in one that is there"));
        fs::write(path.join("file"), "").unwrap();
        assert!(refusal(&path.join("file")).contains("is no directory"));
        assert!(
            refusal(Path::new("/proc")).contains("on a disk")
                || refusal(Path::new("/proc")).contains("others")
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(path).contains("can be written by others"), "{}", refusal(path));
    }

    #[test]
    fn too_large_is_an_error_and_leaves_nothing() {
        let parent = on_tmpfs();
        let directory = Directory::open(parent.path()).unwrap();
        let error = format!("{:#}", directory.create("table", 1 << 50).unwrap_err());
        assert!(error.contains("has no room for 1073741824 MB; expected"), "{error}");
        assert_eq!(directory.names(""), [""; 0]);
    }
}
