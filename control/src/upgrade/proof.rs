//! Whether another program could take over: it is asked, as a child, while this one goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::estate;
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
}

impl Proof {
    /// This program's.
    pub fn own() -> Proof {
        Proof { version: env!("CARGO_PKG_VERSION").to_owned(), estate: estate::FORM }
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

    async fn say(script: &str) -> Result<Proof> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("rvs");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Proof::of(&program, Path::new("/etc/rvs.toml")).await
    }

    #[tokio::test]
    async fn a_program_is_asked_and_must_answer_well() {
        let own = serde_json::to_string(&Proof::own()).unwrap();
        let good = format!("[ \"$*\" = 'prove -c /etc/rvs.toml' ] && echo '{own}'");
        assert_eq!(say(&good).await.unwrap(), Proof::own());
        for (script, expected) in [
            ("echo f:1:1: bad >&2; exit 2".to_owned(), "has not proven itself (exit status: 2): f:1:1: bad"),
            ("echo hello".to_owned(), "does not prove itself as rvs does: hello"),
            (format!("echo '{}'", own.replace("\"estate\":", "\"estate\":9")), "from other versions than"),
        ] {
            let error = format!("{:#}", say(&script).await.unwrap_err());
            assert!(error.contains(expected), "{script}: {error}");
        }
        let error = Proof::of(Path::new("/nonexistent"), Path::new("f")).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot start /nonexistent; expected an rvs program: No such"));
    }
}
