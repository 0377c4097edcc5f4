//! `rvs fmt`.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nix::unistd::{Gid, Uid, fchown};

use super::{Exit, finish};
use crate::config::{self, format};

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done; with --check, every file is formatted
  1  a file could not be written; with --check, the files that are named would change
  2  the command line is wrong, or a file is not TOML";

#[derive(Debug, Args)]
pub(super) struct Fmt {
    /// The configurations; \"-\", or none, formats stdin to stdout
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Change nothing, and name the files that would change
    #[arg(long)]
    check: bool,
}

impl Fmt {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let stdin = [PathBuf::from("-")];
        let files = if self.files.is_empty() { &stdin } else { self.files.as_slice() };
        // A bad file does not keep the others from being looked at.
        let exits = files.iter().map(|file| finish(self.file(file)));
        Ok(exits.max_by_key(|exit| *exit as u8).unwrap_or(Exit::Ok))
    }

    fn file(&self, path: &Path) -> anyhow::Result<Exit> {
        let from_stdin = path == Path::new("-");
        let bytes = if from_stdin {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
            bytes
        } else {
            config::read(path)?
        };
        let shown = if from_stdin { Path::new("<stdin>") } else { path };
        let source = config::text(shown, bytes)?;
        let formatted = format::format(&source)?;
        let same = formatted == source.text();
        if self.check {
            if !same {
                writeln!(io::stdout(), "{}", shown.display())?;
            }
            return Ok(if same { Exit::Ok } else { Exit::Failed });
        }
        if from_stdin {
            io::stdout().write_all(formatted.as_bytes())?;
        } else if !same {
            replace(path, &formatted).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Exit::Ok)
    }
}

/// Puts another text into a file, all of it or nothing: a reload never meets half a file. Mode and owner
/// stay, and a symbolic link stays one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let path = fs::canonicalize(path)?;
    let metadata = fs::metadata(&path)?;
    let directory = path.parent().context("it has no directory")?;
    let mut file = tempfile::Builder::new().prefix(".rvs-fmt-").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // Only root can give a file away; whoever else may write here gets a file of his own.
    let _ = fchown(&file, Some(Uid::from_raw(metadata.uid())), Some(Gid::from_raw(metadata.gid())));
    file.as_file().set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIDY: &str = "[workers]\ncores=[1]\n";
    const TIDY: &str = "[workers]\ncores = [1]\n";

    fn fmt(files: &[&Path], check: bool) -> Exit {
        let files = files.iter().map(|path| path.to_path_buf()).collect();
        finish(Fmt { files, check }.execute())
    }

    #[test]
    fn files_are_replaced_with_their_mode_and_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("rvs.toml"), directory.path().join("link.toml"));
        fs::write(&file, UNTIDY).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();

        assert_eq!(fmt(&[&link], true), Exit::Failed);
        assert_eq!(fs::read_to_string(&file).unwrap(), UNTIDY);
        assert_eq!(fmt(&[&link], false), Exit::Ok);
        assert_eq!(fs::read_to_string(&file).unwrap(), TIDY);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fmt(&[&link], true), Exit::Ok);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn a_bad_file_stays_and_does_not_stop_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let (bad, good) = (directory.path().join("bad.toml"), directory.path().join("good.toml"));
        fs::write(&bad, "[workers\n").unwrap();
        fs::write(&good, UNTIDY).unwrap();
        assert_eq!(fmt(&[&bad, &good], false), Exit::Usage);
        assert_eq!(fs::read_to_string(&bad).unwrap(), "[workers\n");
        assert_eq!(fs::read_to_string(&good).unwrap(), TIDY);
        assert_eq!(fmt(&[&directory.path().join("none.toml")], false), Exit::Usage);
    }
}
