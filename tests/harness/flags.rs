//! Files by which a test tells a running server how to behave.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A directory of them.
#[derive(Clone, Debug)]
pub struct Flags(PathBuf);

impl Flags {
    /// Those in this directory, which is made if it is not there.
    pub fn new(directory: PathBuf) -> Result<Flags> {
        fs::create_dir_all(&directory)?;
        Ok(Flags(directory))
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the file of this name.
    pub fn raise(&self, name: &str) -> Result<()> {
        self.write(name, "")
    }

    /// Removes the file of this name, if it is there.
    pub fn lower(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(name.to_owned()),
            _ => Ok(()),
        }
    }

    /// Replaces the file of this name: whoever reads it sees all of the old text, or all of the new one.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = self.0.join(format!(".{name}"));
        fs::write(&new, text)?;
        fs::rename(new, self.file(name)).with_context(|| name.to_owned())
    }
}
