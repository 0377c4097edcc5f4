//! `kind = "ping"`: an ICMP echo.

use super::{CheckKind, Section, narrow};

/// What an echo request carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ping {
    /// Bytes after the ICMP header.
    pub size: u16,
}

pub(super) const KEYS: &[&str] = &["size"];

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    // 65535 less the headers of IPv4 and ICMP.
    let size = section.or("size", 56, |field| narrow(field.integer(0..=65_507)));
    Some(CheckKind::Ping(Ping { size: size? }))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(kind(r#"kind = "ping""#), CheckKind::Ping(Ping { size: 56 }));
        assert_eq!(kind("kind = \"ping\"\nsize = 0"), CheckKind::Ping(Ping { size: 0 }));
        assert_messages(&[(
            "kind = \"ping\"\nsize = 65508",
            r#"
f:12:8: service[0].check.size: 65508 is out of range; expected an integer from 0 to 65507
   12 | size = 65508
      |        ^^^^^"#,
        )]);
    }
}
