//! `kind = "http"` and `kind = "https"`: a request, and what its answer must be.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery};
use rustls::pki_types::ServerName;

use super::pattern::Pattern;
use super::{CheckKind, tls};
use crate::config::check::one_of;
use crate::config::error::quoted;
use crate::config::raw::{Field, Section};

/// A request and what is expected of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Http {
    /// How it is asked.
    pub method: Method,
    /// For what.
    pub path: PathAndQuery,
    /// Of whom; without one, of the address checked.
    pub host: Option<Authority>,
    /// Headers besides those of every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The statuses that are right.
    pub status: Statuses,
    /// What must be in the body.
    pub body: Option<Pattern>,
    /// What must not be in it.
    pub body_not: Option<Pattern>,
}

/// A set of HTTP statuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

/// What `http` understands.
pub(super) const KEYS: [&str; 7] = ["method", "path", "host", "headers", "status", "body", "body_not"];
/// What `https` understands.
pub(super) const KEYS_TLS: [&str; 10] =
    ["method", "path", "host", "headers", "status", "body", "body_not", "sni", "ca", "skip_verify"];

const PATH: &str = "a path that begins with '/', its special characters as %XX, e.g. \"/health?full=1\"";
const HOST: &str = "a name or an address, with or without a port, e.g. \"www.example.com\"";
const STATUS: &str = "a status from 100 to 599, or several, e.g. \"200-299\"";

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    request(section).map(|http| CheckKind::Http(Arc::new(http)))
}

pub(super) fn read_tls(section: &Section<'_>) -> Option<CheckKind> {
    let http = request(section);
    let tls = tls::read(section, http.as_ref().and_then(|http| http.host.as_ref()));
    Some(CheckKind::Https(Arc::new(http?), tls?))
}

fn request(section: &Section<'_>) -> Option<Http> {
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::OPTIONS];
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let named = |name: &str| methods.iter().find(|method| *method == name).cloned();
    let method = section.or("method", Method::GET, |field| one_of("method", &names, named, &field));
    let path = section.or("path", PathAndQuery::from_static("/"), |field| field.parse(PATH, path));
    let host = section.optional("host", |field| host(&field));
    let headers = section.or("headers", Vec::new(), |field| headers(&field.section()?));
    let status = section.or("status", Statuses(vec![200..=299]), |field| statuses(&field));
    let pattern = |key| {
        section.optional(key, |field| match &method {
            Some(method) if method == Method::HEAD => {
                field.error("an answer to HEAD has no body; expected method = \"GET\", or no such key")
            }
            _ => Pattern::read(&field),
        })
    };
    let (body, body_not) = (pattern("body"), pattern("body_not"));
    Some(Http {
        method: method?,
        path: path?,
        host: host?,
        headers: headers?,
        status: status?,
        body: body?,
        body_not: body_not?,
    })
}

fn path(typed: &str) -> Result<PathAndQuery, String> {
    if !typed.starts_with('/') {
        return Err(format!("{} does not begin with '/'", quoted(typed)));
    }
    // A fragment is the browser's own; the parser would drop it without a word.
    match typed.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(wrong) => Err(format!("{} contains {wrong:?}", quoted(typed))),
        None => typed.parse().map_err(|_| format!("{} is no path", quoted(typed))),
    }
}

/// Whom a request is for, as it stands in a URI.
pub(super) fn host(field: &Field<'_>) -> Option<Authority> {
    field.parse(HOST, |typed| {
        let wrong = || format!("{} is no host", quoted(typed));
        let host: Authority = typed.parse().map_err(|_| wrong())?;
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(name).map_err(|_| wrong())?;
        // Neither somebody's password before it, nor anything but a port behind it.
        match host.port_u16() {
            Some(port) if typed == format!("{}:{port}", host.host()) => Ok(host),
            None if typed == host.host() => Ok(host),
            _ => Err(wrong()),
        }
    })
}

fn headers(section: &Section<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    let mut good = true;
    for (typed, field) in section.fields() {
        match header(typed, &field) {
            Some((name, _)) if headers.iter().any(|(other, _)| *other == name) => {
                good = false;
                field.error::<()>(format_args!("header {name} stands there twice; expected it once"));
            }
            Some(header) => headers.push(header),
            None => good = false,
        }
    }
    good.then_some(headers)
}

fn header(typed: &str, field: &Field<'_>) -> Option<(HeaderName, HeaderValue)> {
    let Ok(name) = typed.parse::<HeaderName>() else {
        return field
            .error(format_args!("{} is no name of a header; expected e.g. X-Checked-By", quoted(typed)));
    };
    if name == header::HOST {
        return field.error("header Host is a key of its own; expected host = \"...\" beside headers");
    }
    // They say where the message ends, and that is not the operator's to say.
    if [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(&name) {
        return field.error(format_args!("header {name} is always set by the check; expected another"));
    }
    let value = field.parse("a value in printable ASCII", |typed| {
        HeaderValue::from_str(typed).map_err(|_| format!("{} cannot be sent", quoted(typed)))
    })?;
    Some((name, value))
}

fn statuses(field: &Field<'_>) -> Option<Statuses> {
    let ranges = field.all(|element| {
        if element.is_integer() {
            let status = element.integer(100..=599).and_then(|status| u16::try_from(status).ok())?;
            return Some(status..=status);
        }
        element.parse(STATUS, |typed| {
            let (first, last) = typed.split_once('-').unwrap_or((typed, typed));
            match (status(first), status(last)) {
                (Some(first), Some(last)) if first <= last => Ok(first..=last),
                (Some(_), Some(_)) => Err(format!("{} ends before it begins", quoted(typed))),
                _ => Err(format!("{} is no status", quoted(typed))),
            }
        })
    })?;
    if ranges.is_empty() {
        return field.error("is empty; expected at least one status, e.g. [200]");
    }
    Some(Statuses(ranges))
}

fn status(typed: &str) -> Option<u16> {
    let digits = typed.len() == 3 && typed.bytes().all(|byte| byte.is_ascii_digit());
    typed.parse().ok().filter(|status| digits && (100..=599).contains(status))
}

impl Statuses {
    /// Whether it is one of them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// As it is typed: `200-299, 404`.
impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}
