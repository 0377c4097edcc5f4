//! `rvs schema`.

use std::io;

use clap::Args;

use super::{Exit, pretty};
use crate::config::schema;

#[derive(Debug, Args)]
pub(super) struct Schema {}

impl Schema {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        pretty(&mut io::stdout(), &schema::schema())?;
        Ok(Exit::Ok)
    }
}
