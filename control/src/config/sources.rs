//! `[sources]` and `[service.sources]`: from where connections may begin, and from where not.
//!
//! A list is typed, or is a file of a prefix a line, with a million lines if need be. Files are read with the configuration, so a
//! reload brings what they say by then into force. What they say is compiled once: a list that has not changed since, or that several services
//! have, is found again by its digest and is the same in memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dataplane::admission::Sources;
use ring::digest::{self, SHA256};

use super::Prefix;
use super::error::quoted;
use super::file;
use super::raw::{Field, Section};
use super::value::{self, NETWORK};

/// The keys, each with that of its file.
const ALLOW: [&str; 2] = ["allow", "allow_file"];
const DENY: [&str; 2] = ["deny", "deny_file"];

/// A million prefixes of IPv6 with all their digits are 44 MB.
const MAX_LIST: u64 = 64 << 20;

const FILE: &str = "the absolute path of a file with a prefix a line, e.g. 198.51.100.0/24";

/// The table `sources` of a section.
pub(super) fn sources(section: &Section<'_>) -> Option<Option<Arc<Sources>>> {
    section.optional("sources", |field| read(&field.section()?))
}

fn read(section: &Section<'_>) -> Option<Arc<Sources>> {
    section.known(&[ALLOW, DENY].concat());
    let (allow, deny) = (List::read(section, ALLOW), List::read(section, DENY));
    let (allow, deny) = (allow?, deny?);
    if !allow.is_given && !deny.is_given {
        section.error("lists nobody; expected allow, deny, allow_file or deny_file");
        return None;
    }
    let digest = digest(&[&allow, &deny]);
    if let Some(known) = known(&digest) {
        return Some(known);
    }
    let closed = allow.is_given;
    let (allow, deny) = (allow.prefixes(section, ALLOW), deny.prefixes(section, DENY));
    let made = Arc::new(Sources::new(closed.then_some(&allow?), &deny?));
    remember(digest, &made);
    Some(made)
}

/// What stands in the file of the configuration, and the contents of the file that it names.
struct List {
    /// Whether there is one, though it be empty.
    is_given: bool,
    typed: Vec<Prefix>,
    contents: Vec<u8>,
}

impl List {
    fn read(section: &Section<'_>, [key, file_key]: [&str; 2]) -> Option<List> {
        let typed = section.or(key, Vec::new(), |field| field.all(|one| one.parse(NETWORK, value::network)));
        let contents = section.or(file_key, Vec::new(), |field| {
            field.parse(FILE, |typed| file::list(Path::new(typed), MAX_LIST))
        });
        let is_given = [key, file_key].iter().any(|key| section.get(key).is_some());
        Some(List { is_given, typed: typed?, contents: contents? })
    }

    /// All of its prefixes: first addresses and lengths.
    fn prefixes(&self, section: &Section<'_>, [_, file_key]: [&str; 2]) -> Option<Vec<(IpAddr, u8)>> {
        let mut all: Vec<(IpAddr, u8)> = self.typed.iter().map(of).collect();
        match lines(&self.contents) {
            Ok(prefixes) => all.extend(prefixes),
            Err(wrong) => return section.get(file_key)?.error(located(&section.get(file_key)?, &wrong)),
        }
        Some(all)
    }
}

fn of(prefix: &Prefix) -> (IpAddr, u8) {
    (prefix.address, prefix.length)
}

/// A line that is no prefix.
#[derive(Debug, PartialEq, Eq)]
struct Wrong {
    line: usize,
    /// In bytes; of lists there are no others than characters.
    column: usize,
    what: String,
}

/// The prefixes of a file: one a line, blanks around it and what follows a `#` do not count.
fn lines(contents: &[u8]) -> Result<Vec<(IpAddr, u8)>, Wrong> {
    let mut prefixes = Vec::new();
    for (line, number) in contents.split(|&byte| byte == b'\n').zip(1..) {
        let text = line.split(|&byte| byte == b'#').next().unwrap_or_default();
        let typed = text.trim_ascii();
        if typed.is_empty() {
            continue;
        }
        let wrong = |what| {
            let column = 1 + text.len() - text.trim_ascii_start().len();
            Wrong { line: number, column, what }
        };
        // What a wrong file has in it may be nobody's business.
        let typed = str::from_utf8(typed).map_err(|_| wrong("is not UTF-8".to_owned()))?;
        let prefix = value::network(typed).map_err(|_| wrong("is no prefix".to_owned()))?;
        prefixes.push(of(&prefix));
    }
    Ok(prefixes)
}

fn located(field: &Field<'_>, Wrong { line, column, what }: &Wrong) -> String {
    let path = field.string(FILE).unwrap_or_default();
    format!("{}:{line}:{column} {what}; expected {NETWORK}", quoted(path).trim_matches('"'))
}

type Digest = [u8; 32];

/// What tells lists apart that are not the same.
fn digest(lists: &[&List; 2]) -> Digest {
    let mut context = digest::Context::new(&SHA256);
    for List { is_given, typed, contents } in lists {
        let typed: String = typed.iter().map(|prefix| format!("{prefix} ")).collect();
        for part in [&[u8::from(*is_given)], typed.as_bytes(), contents] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// What has been made and is in use.
static MADE: Mutex<Option<HashMap<Digest, Weak<Sources>>>> = Mutex::new(None);

fn known(digest: &Digest) -> Option<Arc<Sources>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(digest)?.upgrade()
}

fn remember(digest: Digest, sources: &Arc<Sources>) {
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = made.get_or_insert_default();
    made.retain(|_, known| known.strong_count() > 0);
    made.insert(digest, Arc::downgrade(sources));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::{Config, ConfigErrors, parse};

    fn config(router: &str, service: &str) -> Result<Config, ConfigErrors> {
        let text = format!(
            "[workers]\ncores = [0]\n{router}\n[[port]]\nname = 'wan'\ndevice = 'net_null0'\n\
             [[service]]\naddress = '192.0.2.10:80'\nmode = 'nat'\n{service}\n"
        );
        parse(Path::new("f"), text.into())
    }

    fn allows(sources: &Option<Arc<Sources>>, address: [u8; 4]) -> bool {
        sources.as_ref().unwrap().allows(u32::from(Ipv4Addr::from(address)))
    }

    #[test]
    fn lists_of_the_router_and_of_a_service() {
        let read = config(
            "[sources]\ndeny = ['198.51.100.0/24', '2001:db8::/32', '203.0.113.7']",
            "sources = { allow = ['10.0.0.0/8'], deny = ['10.1.0.0/16'] }",
        )
        .unwrap();
        let of_service = &read.services[0].sources;
        assert_eq!(
            [[198, 51, 100, 1], [203, 0, 113, 7], [203, 0, 113, 8]].map(|a| allows(&read.sources, a)),
            [false, false, true]
        );
        assert_eq!(
            [[10, 0, 0, 1], [10, 1, 0, 1], [11, 0, 0, 1]].map(|a| allows(of_service, a)),
            [true, false, false]
        );
        assert!(config("", "").unwrap().services[0].sources.is_none());
        let emptied = config("", "sources = { allow = [] }").unwrap();
        assert!(!allows(&emptied.services[0].sources, [10, 0, 0, 1]), "nobody is let in");
        let open = config("", "sources = { deny = [] }").unwrap();
        assert!(allows(&open.services[0].sources, [10, 0, 0, 1]));
    }

    #[test]
    fn a_list_that_did_not_change_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deny");
        let text = format!("sources = {{ deny_file = {path:?} }}");
        let read = |contents: &str| {
            std::fs::write(&path, contents).unwrap();
            config(&format!("[sources]\ndeny_file = {path:?}"), &text).unwrap()
        };
        let first = read("# nobody of these\n 198.51.100.0/24   # a tab\t\n\n10.0.0.1\r\n2001:db8::/32");
        let own = &first.services[0].sources;
        assert_eq!(own.as_ref().unwrap().prefixes(), 3);
        let same = |a: &Option<Arc<Sources>>, b: &Option<Arc<Sources>>| {
            Arc::ptr_eq(a.as_ref().unwrap(), b.as_ref().unwrap())
        };
        assert!(same(&first.sources, own), "two that are equal");
        let again = config("", &text).unwrap();
        assert!(same(own, &again.services[0].sources), "read once more");
        let other = read("198.51.100.0/24");
        assert!(!same(own, &other.services[0].sources));
        assert!(!allows(own, [10, 0, 0, 1]) && allows(&other.services[0].sources, [10, 0, 0, 1]));
    }

    #[test]
    fn errors_name_the_line_of_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deny");
        std::fs::write(&path, "10.0.0.0/8\n# fine\n\t 10.0.0.1/8 # not\n").unwrap();
        let error = config("", &format!("sources = {{ deny_file = {path:?} }}")).unwrap_err();
        let headline = format!("{error:#}");
        let expected = format!(
            "f:10:25: service[0].sources.deny_file: {}:3:3 is no prefix; expected {NETWORK}",
            path.display()
        );
        assert_eq!(headline, expected);
        for (table, message) in [
            (
                "sources = {}",
                "service[0].sources: lists nobody; expected allow, deny, allow_file or deny_file",
            ),
            (
                "sources = { allow_file = 'list' }",
                "\"list\" is not an absolute path; expected the absolute path",
            ),
            ("sources = { deny_file = '/nonexistent' }", "\"/nonexistent\" cannot be read: No such file"),
            (
                "sources = { deny = ['10.0.0.1/8'] }",
                "10.0.0.1/8 has more than 8 bits; expected ADDRESS/LENGTH",
            ),
            ("sources = { denied = [] }", "service[0].sources.denied: unknown key; expected one of allow,"),
        ] {
            let error = config("", table).unwrap_err().to_string();
            assert!(error.contains(message), "{table}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_line() {
        let wrong = |line, column| Wrong { line, column, what: "is no prefix".to_owned() };
        assert_eq!(lines(b"10.0.0.0/8\n  10.0.0.0/33\n"), Err(wrong(2, 3)));
        assert_eq!(lines(b"10.0.0.0/8 10.1.0.0/16"), Err(wrong(1, 1)), "two in a line");
        assert_eq!(lines(b"\n\xff\n"), Err(Wrong { line: 2, column: 1, what: "is not UTF-8".to_owned() }));
        assert_eq!(lines(b"0.0.0.0/0\n::/0"), Ok(vec![([0; 4].into(), 0), ([0; 16].into(), 0)]));
    }
}
