//! For the tests of the kinds: a file with one service, and the check that a test is about from line 11 on.

use std::path::Path;

use super::{Check, CheckKind};
use crate::config::{ConfigErrors, parse};

const FILE: &str = r#"[workers]
cores = [1]
[[port]]
name = "p"
device = "net_null"
[[service]]
address = "192.0.2.10:80"
mode = "nat"
server = [{ address = "10.0.0.11" }]
[service.check]
"#;

fn read(check: &str) -> Result<Check, ConfigErrors> {
    let config = parse(Path::new("f"), format!("{FILE}{check}\n").into_bytes())?;
    Ok(config.services[0].checks[0].clone())
}

/// What these keys mean.
#[track_caller]
pub(super) fn kind(check: &str) -> CheckKind {
    read(check).unwrap_or_else(|errors| panic!("{errors}")).kind
}

/// Each check with the whole message that it earns.
#[track_caller]
pub(super) fn assert_messages(cases: &[(&str, &str)]) {
    for (check, message) in cases {
        let errors = read(check).expect_err(check);
        assert_eq!(errors.to_string(), message.trim_start_matches('\n'), "{check}");
    }
}
