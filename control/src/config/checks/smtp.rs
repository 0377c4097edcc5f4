//! `kind = "smtp"`: greeting, HELO and QUIT. No mail is sent.

use std::sync::Arc;

use super::{CheckKind, Section};
use crate::config::error::quoted;

/// How a mail server is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Smtp {
    /// What this machine calls itself; its own name if none is given.
    pub helo: Option<String>,
    /// A sender to begin a mail from, which a server without room for mail refuses.
    pub from: Option<String>,
}

pub(super) const KEYS: &[&str] = &["helo", "from"];

const HELO: &str = "a name or an address in brackets, e.g. \"lb.example.org\"";
const FROM: &str = "a mail address, e.g. \"rvs@example.org\", or \"\" for the null sender";

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let helo = section.optional("helo", |field| {
        field.parse(HELO, |typed| match is_helo(typed) {
            true => Ok(typed.to_owned()),
            false => Err(format!("{} is not a name", quoted(typed))),
        })
    });
    let from = section.optional("from", |field| {
        field.parse(FROM, |typed| match typed {
            "" => Ok(String::new()),
            // Whatever else a server makes of it, it must stay within the command.
            _ if typed.len() > 254
                || !typed.contains('@')
                || typed.contains(|c: char| !c.is_ascii_graphic() || matches!(c, '<' | '>')) =>
            {
                Err(format!("{} is not a mail address", quoted(typed)))
            }
            _ => Ok(typed.to_owned()),
        })
    });
    Some(CheckKind::Smtp(Arc::new(Smtp { helo: helo?, from: from? })))
}

/// Whether this can stand after EHLO (RFC 5321, 4.1.1.1).
pub(crate) fn is_helo(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn what_the_keys_mean() {
        assert_eq!(kind(r#"kind = "smtp""#), CheckKind::Smtp(Arc::new(Smtp { helo: None, from: None })));
        let given = Smtp { helo: Some("[192.0.2.1]".to_owned()), from: Some("a@example.org".to_owned()) };
        assert_eq!(
            kind("kind = \"smtp\"\nhelo = \"[192.0.2.1]\"\nfrom = \"a@example.org\""),
            CheckKind::Smtp(Arc::new(given))
        );
        let null = Smtp { helo: None, from: Some(String::new()) };
        assert_eq!(kind("kind = \"smtp\"\nfrom = \"\""), CheckKind::Smtp(Arc::new(null)));
    }

    #[test]
    fn wrong_values() {
        assert_messages(&[
            (
                "kind = \"smtp\"\nhelo = \"a\\r\\nb\"",
                r#"
f:12:8: service[0].check.helo: "a\r\nb" is not a name; expected a name or an address in brackets, e.g. "lb.example.org"
   12 | helo = "a\r\nb"
      |        ^^^^^^^^"#,
            ),
            (
                "kind = \"smtp\"\nfrom = \"a@b> SIZE=1\"",
                r#"
f:12:8: service[0].check.from: "a@b> SIZE=1" is not a mail address; expected a mail address, e.g. "rvs@example.org", or "" for the null sender
   12 | from = "a@b> SIZE=1"
      |        ^^^^^^^^^^^^^"#,
            ),
        ]);
    }
}
