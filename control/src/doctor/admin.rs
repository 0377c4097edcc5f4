//! The certificate of the admin API, which goes out of date by itself.

use std::time::Duration;

use super::{Finding, Severity};
use crate::config::Config;

/// How long before its end a certificate is worth a word.
pub(super) const AHEAD: Duration = Duration::from_secs(14 * 24 * 3600);

pub(super) fn judge(config: &Config, ahead: Duration) -> Vec<Finding> {
    let Some(tcp) = &config.admin.tcp else { return Vec::new() };
    let problem = match (tcp.identity.flaw(Duration::ZERO), tcp.identity.flaw(ahead)) {
        (Some(flaw), _) => format!("its certificate {flaw}, so clients refuse it"),
        (None, Some(_)) => format!("its certificate expires within {}", humantime::format_duration(ahead)),
        (None, None) => return Vec::new(),
    };
    let remedy = "put another one into admin.tcp.certificate, its key into admin.tcp.key, and `rvs reload`";
    vec![Finding::new("admin-certificate", Severity::Warning, "admin.tcp", problem, remedy)]
}

#[cfg(test)]
mod tests {
    use super::super::testing::short;
    use super::*;
    use crate::config::tcp::fixture::Files;

    #[test]
    fn a_certificate_out_of_date_and_one_that_will_be() {
        let files = Files::new();
        let judge = |ahead| short(&judge(&files.read(&files.table("192.0.2.1:9443")).unwrap(), ahead));
        assert_eq!(judge(AHEAD), [""; 0]);
        // In the year 3000.
        let soon = judge(AHEAD * 26 * 1_000);
        assert!(soon[0].starts_with("warning its certificate expires within "), "{soon:?}");
        files.renew(2000, 2001);
        assert_eq!(judge(AHEAD), ["warning its certificate has expired, so clients refuse it"]);
        assert_eq!(super::judge(&files.read("").unwrap(), AHEAD), []);
    }
}
