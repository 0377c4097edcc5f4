//! For the tests of the kinds: a file with one service, and the check that a test is about from line 11 on.

use std::path::Path;

use super::{Check, CheckKind};
use crate::config::{Config, ConfigErrors, parse};

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

/// A file with a service that has a check with these keys.
pub(crate) fn read(check: &str) -> Result<Config, ConfigErrors> {
    parse(Path::new("f"), format!("{FILE}{check}\n").into_bytes())
}

/// The check with these keys.
#[track_caller]
pub(crate) fn check(keys: &str) -> Check {
    read(keys).unwrap_or_else(|errors| panic!("{errors}")).services[0].checks[0].clone()
}

/// What these keys mean.
#[track_caller]
pub(super) fn kind(keys: &str) -> CheckKind {
    check(keys).kind
}

/// Each check with the whole message that it earns.
#[track_caller]
pub(super) fn assert_messages(cases: &[(&str, &str)]) {
    for (check, message) in cases {
        let errors = read(check).expect_err(check);
        assert_eq!(errors.to_string(), message.trim_start_matches('\n'), "{check}");
    }
}
