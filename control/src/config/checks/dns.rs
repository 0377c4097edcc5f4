//! `kind = "dns"`: a question, and what must be answered.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::{CheckKind, Field, Section, one_of};
use crate::config::error::quoted;

/// What a name server is asked, and what it should say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dns {
    /// The name in question.
    pub name: Name,
    /// The type of record in question.
    pub record: RecordType,
    /// One of these must be among the answers, each in the form of `canonical`; if there are none, any answer will do,
    /// also an empty one.
    pub expect: Vec<String>,
    /// The code that the answer must have.
    pub rcode: ResponseCode,
    /// How the question goes out.
    pub transport: Transport,
}

/// How a question goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a connection of its own.
    Tcp,
}

pub(super) const KEYS: &[&str] = &["name", "type", "expect", "rcode", "transport"];

const NAME: &str = "a domain name, e.g. \"www.example.org\"";

/// The types that can be asked for.
const TYPES: [(&str, RecordType); 12] = [
    ("A", RecordType::A),
    ("AAAA", RecordType::AAAA),
    ("CAA", RecordType::CAA),
    ("CNAME", RecordType::CNAME),
    ("HTTPS", RecordType::HTTPS),
    ("MX", RecordType::MX),
    ("NS", RecordType::NS),
    ("PTR", RecordType::PTR),
    ("SOA", RecordType::SOA),
    ("SRV", RecordType::SRV),
    ("SVCB", RecordType::SVCB),
    ("TXT", RecordType::TXT),
];

/// The codes of RFC 1035 and 2136 by the names that every tool gives them.
const RCODES: [(&str, ResponseCode); 11] = [
    ("NOERROR", ResponseCode::NoError),
    ("FORMERR", ResponseCode::FormErr),
    ("SERVFAIL", ResponseCode::ServFail),
    ("NXDOMAIN", ResponseCode::NXDomain),
    ("NOTIMP", ResponseCode::NotImp),
    ("REFUSED", ResponseCode::Refused),
    ("YXDOMAIN", ResponseCode::YXDomain),
    ("YXRRSET", ResponseCode::YXRRSet),
    ("NXRRSET", ResponseCode::NXRRSet),
    ("NOTAUTH", ResponseCode::NotAuth),
    ("NOTZONE", ResponseCode::NotZone),
];

/// The name of a code.
pub fn rcode_name(rcode: ResponseCode) -> String {
    let known = RCODES.iter().find(|(_, code)| *code == rcode);
    known.map_or_else(|| format!("RCODE {}", u16::from(rcode)), |(name, _)| (*name).to_owned())
}

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let name = section.or("name", Name::root(), |field| {
        let wrong = |typed: &str| format!("{} is not a domain name", quoted(typed));
        field.parse(NAME, |typed| domain(typed).ok_or_else(|| wrong(typed)))
    });
    let record = section.or("type", RecordType::SOA, |field| named("record type", &TYPES, &field));
    let expect = section.or("expect", Vec::new(), |field| expected(&field, record?));
    let rcode = section.or("rcode", ResponseCode::NoError, |field| named("response code", &RCODES, &field));
    let transports = [("udp", Transport::Udp), ("tcp", Transport::Tcp)];
    let transport = section.or("transport", Transport::Udp, |field| named("transport", &transports, &field));
    Some(CheckKind::Dns(Arc::new(Dns {
        name: name?,
        record: record?,
        expect: expect?,
        rcode: rcode?,
        transport: transport?,
    })))
}

fn named<T: Copy>(what: &str, values: &[(&str, T)], field: &Field<'_>) -> Option<T> {
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let value = |typed: &str| values.iter().find(|(name, _)| *name == typed).map(|(_, value)| *value);
    one_of(what, &names, value, field)
}

/// A name that ends at the root, whether or not its last dot was typed. Names have no case.
fn domain(typed: &str) -> Option<Name> {
    let mut name = Name::from_ascii(typed).ok().filter(|_| !typed.is_empty())?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

fn expected(field: &Field<'_>, record: RecordType) -> Option<Vec<String>> {
    let Some(example) = example(record) else {
        return field.error(format_args!("records of type {record} have no one form; expected no such key"));
    };
    let answers = field.all(|element| {
        element.parse(example, |typed| {
            canonical(record, typed).ok_or_else(|| format!("{} is no {record} record", quoted(typed)))
        })
    })?;
    match answers.is_empty() {
        true => field.error(format_args!("is empty; expected at least one answer: {example}")),
        false => Some(answers),
    }
}

/// What the data of a record look like, for the types that can be compared.
fn example(record: RecordType) -> Option<&'static str> {
    Some(match record {
        RecordType::A => "an IPv4 address, e.g. \"192.0.2.1\"",
        RecordType::AAAA => "an IPv6 address, e.g. \"2001:db8::1\"",
        RecordType::CNAME | RecordType::NS | RecordType::PTR => NAME,
        RecordType::MX => "preference and name, e.g. \"10 mail.example.org\"",
        RecordType::SRV => "priority, weight, port and name, e.g. \"0 5 5060 sip.example.org\"",
        RecordType::SOA => {
            "two names and five numbers, e.g. \"ns.example.org root.example.org 1 7200 3600 1209600 300\""
        }
        RecordType::TXT => "its text, without quotes",
        _ => return None,
    })
}

/// The data of a record in the one form in which answers are compared: names in lower case and with their last dot,
/// numbers and addresses as one writes them, fields with one blank between, and of TXT the strings joined.
fn canonical(record: RecordType, typed: &str) -> Option<String> {
    // n a name, i an integer.
    let fields = match record {
        RecordType::A => return typed.parse::<Ipv4Addr>().ok().map(|address| address.to_string()),
        RecordType::AAAA => return typed.parse::<Ipv6Addr>().ok().map(|address| address.to_string()),
        RecordType::TXT => return Some(typed.to_owned()),
        RecordType::MX => "in",
        RecordType::SRV => "iiin",
        RecordType::SOA => "nniiiii",
        _ => "n",
    };
    let words: Vec<&str> = typed.split_whitespace().collect();
    let word = |(field, word): (char, &&str)| match field {
        'n' => domain(word).map(|name| name.to_ascii()),
        _ => word.parse::<u32>().ok().map(|number| number.to_string()),
    };
    if words.len() != fields.len() {
        return None;
    }
    let words: Vec<String> = fields.chars().zip(&words).map(word).collect::<Option<_>>()?;
    Some(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn what_the_keys_mean() {
        let default = Dns {
            name: Name::root(),
            record: RecordType::SOA,
            expect: vec![],
            rcode: ResponseCode::NoError,
            transport: Transport::Udp,
        };
        assert_eq!(kind(r#"kind = "dns""#), CheckKind::Dns(Arc::new(default)));
        let typed = r#"
kind = "dns"
name = "WWW.example.org"
type = "A"
expect = ["192.0.2.1"]
rcode = "NXDOMAIN"
transport = "tcp""#;
        let CheckKind::Dns(dns) = kind(typed) else { panic!() };
        assert_eq!(dns.name.to_ascii(), "www.example.org.");
        assert_eq!((dns.record, dns.rcode), (RecordType::A, ResponseCode::NXDomain));
        assert_eq!((&dns.expect[..], dns.transport), (&["192.0.2.1".to_owned()][..], Transport::Tcp));
    }

    #[test]
    fn one_form_for_each_answer() {
        for (record, typed, expected) in [
            (RecordType::A, "192.0.2.1", Some("192.0.2.1")),
            (RecordType::A, "192.0.2.01", None),
            (RecordType::AAAA, "2001:DB8:0::1", Some("2001:db8::1")),
            (RecordType::NS, "NS1.Example.org", Some("ns1.example.org.")),
            (RecordType::CNAME, "a b", None),
            (RecordType::MX, "010  mail.example.org.", Some("10 mail.example.org.")),
            (RecordType::MX, "mail.example.org", None),
            (RecordType::SRV, "0 5 5060 sip.example.org", Some("0 5 5060 sip.example.org.")),
            (RecordType::SOA, "a. b. 1 2 3 4 5", Some("a. b. 1 2 3 4 5")),
            (RecordType::SOA, "a. b. 1 2 3 4", None),
            (RecordType::TXT, "v=spf1 -ALL", Some("v=spf1 -ALL")),
        ] {
            assert_eq!(canonical(record, typed).as_deref(), expected, "{record} {typed}");
        }
    }

    #[test]
    fn wrong_values() {
        assert_messages(&[
            (
                "kind = \"dns\"\nname = \"a..b\"",
                r#"
f:12:8: service[0].check.name: "a..b" is not a domain name; expected a domain name, e.g. "www.example.org"
   12 | name = "a..b"
      |        ^^^^^^"#,
            ),
            (
                "kind = \"dns\"\nname = \"\"",
                r#"
f:12:8: service[0].check.name: "" is not a domain name; expected a domain name, e.g. "www.example.org"
   12 | name = ""
      |        ^^"#,
            ),
            (
                "kind = \"dns\"\ntype = \"ANY\"",
                r#"
f:12:8: service[0].check.type: unknown record type "ANY"; expected one of A, AAAA, CAA, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, SVCB, TXT
   12 | type = "ANY"
      |        ^^^^^"#,
            ),
            (
                "kind = \"dns\"\nrcode = \"0\"\ntransport = \"tls\"",
                r#"
f:12:9: service[0].check.rcode: unknown response code "0"; expected one of NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, YXRRSET, NXRRSET, NOTAUTH, NOTZONE
   12 | rcode = "0"
      |         ^^^
f:13:13: service[0].check.transport: unknown transport "tls"; expected one of udp, tcp
   13 | transport = "tls"
      |             ^^^^^"#,
            ),
            (
                "kind = \"dns\"\ntype = \"A\"\nexpect = [\"www\"]",
                r#"
f:13:11: service[0].check.expect[0]: "www" is no A record; expected an IPv4 address, e.g. "192.0.2.1"
   13 | expect = ["www"]
      |           ^^^^^"#,
            ),
            (
                "kind = \"dns\"\ntype = \"MX\"\nexpect = []",
                r#"
f:13:10: service[0].check.expect: is empty; expected at least one answer: preference and name, e.g. "10 mail.example.org"
   13 | expect = []
      |          ^^"#,
            ),
            (
                "kind = \"dns\"\ntype = \"HTTPS\"\nexpect = [\"1 .\"]",
                r#"
f:13:10: service[0].check.expect: records of type HTTPS have no one form; expected no such key
   13 | expect = ["1 ."]
      |          ^^^^^^^"#,
            ),
        ]);
    }
}
