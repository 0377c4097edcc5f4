//! `kind = "udp"`: a datagram is sent, and a reply may be required.

use std::sync::Arc;

use super::bytes::{BYTES, bytes};
use super::pattern::Pattern;
use super::{CheckKind, Section};

/// What a UDP check sends and wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Udp {
    /// The datagram.
    pub payload: Vec<u8>,
    /// What the reply must match.
    pub reply: Option<Pattern>,
    /// Whether silence is a failure. Without it, only a host that says that nobody listens is.
    pub require_reply: bool,
}

pub(super) const KEYS: &[&str] = &["payload", "reply", "require_reply"];

/// Some text, as with keepalived: an empty datagram is what some servers take for the end of their input.
const PAYLOAD: &[u8] = b"rvs health check\n";

/// The most that IPv4 carries.
const MAX_PAYLOAD: usize = 65_507;

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let payload = section.or("payload", PAYLOAD.to_vec(), |field| {
        field.parse(BYTES, |typed| match bytes(typed)? {
            payload if payload.len() > MAX_PAYLOAD => {
                Err(format!("has {} bytes, and a datagram at most {MAX_PAYLOAD}", payload.len()))
            }
            payload => Ok(payload),
        })
    });
    let reply = section.optional("reply", |field| Pattern::read_for_bytes(&field));
    let wanted = section.get("reply").is_some();
    let require_reply = section.or("require_reply", wanted, |field| match field.boolean()? {
        false if wanted => {
            field.error("without a reply there is none to match; expected true, or no reply key")
        }
        require => Some(require),
    });
    Some(CheckKind::Udp(Arc::new(Udp { payload: payload?, reply: reply?, require_reply: require_reply? })))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn what_the_keys_mean() {
        let CheckKind::Udp(udp) = kind(r#"kind = "udp""#) else { panic!() };
        assert_eq!(*udp, Udp { payload: PAYLOAD.to_vec(), reply: None, require_reply: false });
        let CheckKind::Udp(udp) = kind("kind = \"udp\"\npayload = '\\x01\\xff'\nreply = '^\\x81'") else {
            panic!()
        };
        assert_eq!((&udp.payload[..], udp.require_reply), (&b"\x01\xff"[..], true));
        assert_eq!(udp.reply.as_ref().unwrap().find(b"\x81\xff"), Some(1));
    }

    #[test]
    fn wrong_values() {
        let long = format!("kind = \"udp\"\npayload = \"hex:{}\"", "00".repeat(65_508));
        let message = format!(
            r#"
f:12:11: service[0].check.payload: has 65508 bytes, and a datagram at most 65507; expected ASCII with \xNN, \r, \n, \t, \0 and \\ in single quotes, e.g. 'PING\r\n', or "hex:0011ff"
   12 | payload = "hex:{}...
      |           {}"#,
            "0".repeat(85),
            "^".repeat(90)
        );
        assert_messages(&[
            (
                "kind = \"udp\"\npayload = '\\q'",
                r#"
f:12:11: service[0].check.payload: "\q" is not an escape; expected ASCII with \xNN, \r, \n, \t, \0 and \\ in single quotes, e.g. 'PING\r\n', or "hex:0011ff"
   12 | payload = '\q'
      |           ^^^^"#,
            ),
            (&long, &message),
            (
                "kind = \"udp\"\nreply = \"a(b\"",
                r#"
f:12:9: service[0].check.reply: "a(b" is wrong: unclosed group; expected a regular expression, e.g. "status: (ok|fine)"
   12 | reply = "a(b"
      |         ^^^^^"#,
            ),
            (
                "kind = \"udp\"\nreply = \"a\"\nrequire_reply = false",
                r#"
f:13:17: service[0].check.require_reply: without a reply there is none to match; expected true, or no reply key
   13 | require_reply = false
      |                 ^^^^^"#,
            ),
            (
                "kind = \"udp\"\nsend = \"a\"",
                r#"
f:12:1: service[0].check.send: unknown key (did you mean kind?); expected one of kind, address, port, interval, timeout, rise, fall, jitter, start, payload, reply, require_reply
   12 | send = "a"
      | ^^^^"#,
            ),
        ]);
    }
}
