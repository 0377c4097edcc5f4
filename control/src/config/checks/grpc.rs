//! `kind = "grpc"`: gRPC's health protocol.

use std::sync::Arc;

use hyper::http::uri::Authority;

use super::tls::{self, Tls};
use super::{CheckKind, http};
use crate::config::error::quoted;
use crate::config::raw::Section;

/// What is asked of whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grpc {
    /// The service whose health is asked for; empty: that of the whole server.
    pub service: String,
    /// Whom the request is for (`:authority`); without one, the address checked.
    pub host: Option<Authority>,
    /// How it goes over TLS, if it does.
    pub tls: Option<Tls>,
}

/// What this kind understands.
pub(super) const KEYS: [&str; 6] = ["service", "host", "tls", "sni", "ca", "skip_verify"];

const SERVICE: &str = "the name of a service of at most 255 bytes, e.g. \"shop.Cart\"";

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let service = section.or("service", String::new(), |field| {
        field.parse(SERVICE, |typed| match typed {
            _ if typed.len() > 255 => Err(format!("has {} bytes", typed.len())),
            _ if typed.contains(char::is_control) => {
                Err(format!("{} has a control character", quoted(typed)))
            }
            _ => Ok(typed.to_owned()),
        })
    });
    let host = section.optional("host", |field| http::host(&field));
    let tls = section.or("tls", false, |field| field.boolean()).and_then(|over| {
        if over {
            return tls::read(section, host.clone().flatten().as_ref()).map(Some);
        }
        let stray: Vec<_> = tls::KEYS.iter().filter_map(|key| section.get(key)).collect();
        for field in &stray {
            field.error::<()>("has no meaning without TLS; expected tls = true, or no such key");
        }
        stray.is_empty().then_some(None)
    });
    Some(CheckKind::Grpc(Arc::new(Grpc { service: service?, host: host?, tls: tls? })))
}
