//! What the readers of [`value`](crate::config::value) and of times take, as patterns of ECMA-262.
//!
//! An editor shows a pattern when it does not match, so each is put together from named parts but written as one. What
//! no pattern can say, or none that anybody would read, stays with the reader: that `"90m"` is more than an hour, that
//! `192.0.2.0/24` is a network, that `::ffff:192.0.2.1` is an address of IPv4.

/// The first number of an address that a single host can have: not 0, 127, nor 224 to 239.
const FIRST: &str =
    "(?:[1-9]|[1-9][0-9]|1[01][0-9]|12[0-689]|1[3-9][0-9]|2[01][0-9]|22[0-3]|24[0-9]|25[0-5])";
/// Another one.
const NEXT: &str = "(?:[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])";
/// Up to eight of these are an address of IPv6.
const GROUP: &str = "[0-9A-Fa-f]{1,4}";
/// After an address of IPv6 comes something else.
const END: &str = "(?![0-9A-Fa-f:.])";
/// 1 to 65535.
const PORT: &str =
    "0*(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
/// 1 to 32.
const LENGTH: &str = "0*(?:[1-9]|[12][0-9]|3[0-2])";
/// 1 to 128.
const LENGTH_IPV6: &str = "0*(?:[1-9]|[1-9][0-9]|1[01][0-9]|12[0-8])";
/// Units of time, as the crate humantime has them.
const UNIT: &str = "(?:nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|\
                    hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y)";

/// The definitions of the schema that have a pattern, by name.
pub(super) fn patterns() -> [(&'static str, String); 6] {
    let host = format!("(?!255\\.255\\.255\\.255(?![0-9])){FIRST}(?:\\.{NEXT}){{3}}");
    let ipv6 = ipv6();
    [
        ("address", format!("^(?:{host}|{ipv6}|\\[{ipv6}\\])$")),
        ("socket", format!("^(?:{host}|\\[{ipv6}\\]):(?:0+|{PORT})$")),
        ("endpoint", format!("^(?:{host}|\\[{ipv6}\\]):{PORT}$")),
        ("server_address", format!("^(?:(?:{host}|\\[{ipv6}\\])(?::{PORT})?|{ipv6})$")),
        ("prefix", format!("^(?:{host}/{LENGTH}|{ipv6}/{LENGTH_IPV6})$")),
        ("time", format!("^(?:0|\\s*(?:[0-9][0-9\\s]*(?:\\.\\s*[0-9][0-9\\s]*)?{UNIT}\\s*)+)$")),
    ]
}

/// An address of IPv6 that a single host can have: not unspecified, loopback, multicast or link-local. Of an abbreviated one
/// (`::`), at most seven groups are there; its last two may be written as an address of IPv4.
fn ipv6() -> String {
    let dotted = format!("{NEXT}(?:\\.{NEXT}){{3}}");
    let not = format!("(?![0:.]*1?{END})(?![Ff]{{2}}[0-9A-Fa-f]{{2}}:)(?![Ff][Ee][89ABab][0-9A-Fa-f]:)");
    let whole = format!("(?:{GROUP}:){{6}}(?:{GROUP}:{GROUP}|{dotted})");
    let few = format!("(?=:*(?:(?:{GROUP}:*){{0,7}}{END}|(?:{GROUP}:+){{0,5}}{dotted}{END}))");
    let cut = format!("(?:{GROUP}(?::{GROUP})*)?::(?:(?:{GROUP}:)*(?:{GROUP}|{dotted}))?");
    format!("{not}(?:{whole}|{few}{cut})")
}
