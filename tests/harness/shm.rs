//! A place in memory for what outlives a program.

use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::cluster::Cluster;

/// A directory on tmpfs, whatever /run is on, or in what RVS_KEEP_IN names, e.g. a hugetlbfs; gone with the test.
#[derive(Debug)]
pub struct Place(pub PathBuf);

impl Place {
    /// One of this cluster.
    pub fn new(cluster: &Cluster) -> Result<Place> {
        let place = Place(place(cluster.state().id()));
        fs::create_dir(&place.0)?;
        Ok(place)
    }

    /// What the configuration says of the table.
    pub fn keep(&self) -> Option<String> {
        Some(self.0.join("table").display().to_string())
    }
}

/// Where it is, for the cluster with this name.
pub(crate) fn place(id: &str) -> PathBuf {
    let parent = std::env::var_os("RVS_KEEP_IN").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    parent.join(format!("rvs-tests-{id}"))
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
