//! Whether another program could take over: it is asked, as a child, while this one goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::table::LAYOUT;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::estate;
use crate::config::Config;
use crate::process::Running;

/// How long the other program may take: to read ten thousand services takes a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a program says of itself when it accepts a configuration (`rvs prove`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Its version.
    pub version: String,
    /// The form of estate that it understands.
    pub estate: u32,
    /// The layout of the connection table that it understands.
    pub table: u32,
    /// Where it will keep the table, by that configuration.
    pub keep: Option<PathBuf>,
}

impl Proof {
    /// This program's, by a configuration.
    pub fn own(config: &Config) -> Proof {
        let (version, keep) = (env!("CARGO_PKG_VERSION").to_owned(), config.table.keep.clone());
        Proof { version, estate: estate::FORM, table: LAYOUT, keep }
    }

    /// Why it would not know the connections of this program, which runs by this configuration.
    pub fn loses(&self, running: &Config) -> Option<&'static str> {
        match &running.table.keep {
            None => Some("connections end with this process, since [table] keep is not set"),
            here if self.keep != *here => Some("[table] keep is another in the file than in force"),
            Some(_) if self.table != LAYOUT => Some("it lays out the connection table otherwise"),
            Some(_) => None,
        }
    }

    /// That of another program, which says it by the configuration at `config`.
    pub async fn of(binary: &Path, config: &Path) -> Result<Proof> {
        let mut command = Command::new(binary);
        command.arg("prove").arg("-c").arg(config);
        let shown = binary.display();
        let end = async {
            let started = tokio::task::spawn_blocking(move || Running::start(command, None)).await;
            started.map_err(std::io::Error::other)??.end().await
        };
        let ended = tokio::time::timeout(PATIENCE, end)
            .await
            .with_context(|| format!("{shown} has not proven itself within {} s", PATIENCE.as_secs()))?;
        let (status, output) =
            ended.with_context(|| format!("cannot start {shown}; expected an rvs program"))?;
        let output = String::from_utf8_lossy(&output);
        ensure!(status.success(), "{shown} has not proven itself ({status}): {}", output.trim());
        let proof: Proof = serde_json::from_str(output.trim())
            .with_context(|| format!("{shown} does not prove itself as rvs does: {}", output.trim()))?;
        ensure!(
            proof.estate == estate::FORM,
            "{shown} (version {}) takes over from other versions than {}; restart instead",
            proof.version,
            env!("CARGO_PKG_VERSION")
        );
        Ok(proof)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(table: &str) -> Config {
        let text =
            format!("[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\n{table}");
        crate::config::parse(Path::new("f"), text.into()).unwrap()
    }

    #[test]
    fn who_would_not_know_the_connections() {
        let (kept, elsewhere) = ("[table]\nkeep = \"/run/a\"\n", "[table]\nkeep = \"/run/b\"\n");
        for (running, file, reason) in [
            (kept, kept, None),
            ("", "", Some("[table] keep is not set")),
            ("", kept, Some("[table] keep is not set")),
            (kept, elsewhere, Some("is another")),
            (kept, "", Some("is another")),
        ] {
            let found = Proof::own(&config(file)).loses(&config(running));
            assert_eq!(found.is_some(), reason.is_some(), "{running} {file}");
            assert!(found.unwrap_or_default().contains(reason.unwrap_or_default()), "{found:?}");
        }
        let newer = Proof { table: LAYOUT + 1, ..Proof::own(&config(kept)) };
        assert!(newer.loses(&config(kept)).unwrap().contains("otherwise"));
    }

    async fn say(script: &str) -> Result<Proof> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("rvs");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Proof::of(&program, Path::new("/etc/rvs.toml")).await
    }

    #[tokio::test]
    async fn a_program_is_asked_and_must_answer_well() {
        let expected = Proof::own(&config(""));
        let own = serde_json::to_string(&expected).unwrap();
        let good = format!("[ \"$*\" = 'prove -c /etc/rvs.toml' ] && echo '{own}'");
        assert_eq!(say(&good).await.unwrap(), expected);
        for (script, expected) in [
            ("echo f:1:1: bad >&2; exit 2".to_owned(), "has not proven itself (exit status: 2): f:1:1: bad"),
            ("echo hello".to_owned(), "does not prove itself as rvs does: hello"),
            (format!("echo '{}'", own.replace("\"estate\":", "\"estate\":9")), "from other versions than"),
        ] {
            let error = format!("{:#}", say(&script).await.unwrap_err());
            assert!(error.contains(expected), "{script}: {error}");
        }
        let error = Proof::of(Path::new("/nonexistent"), Path::new("f")).await.unwrap_err();
        assert!(
            format!("{error:#}").starts_with("cannot start /nonexistent; expected an rvs program: No such")
        );
    }
}
