//! `kind = "tls"`, and the keys that say with whom the kinds that go over TLS speak.
//!
//! The certificates of CAs are read together with the configuration and are part of it: a missing or garbled file is an
//! error of the file that names it, and a reload after a renewal brings the new ones into force.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use hyper::http::uri::Authority;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::config::error::quoted;
use crate::config::file;
use crate::config::raw::Section;

/// With whom a check speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The name that the server is asked for (SNI) and must have a certificate of; without one, the address checked.
    pub name: Option<ServerName<'static>>,
    /// Whose certificates count.
    pub trust: Trust,
}

/// Whose certificates count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Those that one of these has signed, for the right name, within their time.
    Authorities(Authorities),
    /// Any: only that there is TLS is checked.
    Anyone,
}

/// The certificates of CAs. Copies share them.
#[derive(Clone)]
pub struct Authorities(Arc<Certificates>);

struct Certificates {
    given: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

/// What this kind understands.
pub(super) const KEYS: [&str; 3] = ["sni", "ca", "skip_verify"];

const NAME: &str = "a name or an address, e.g. \"www.example.com\"";
const CA: &str = "the absolute path of a PEM file with certificates of CAs";

/// `host`: whom the request is for, and so the name to ask for unless another is given.
pub(super) fn read(section: &Section<'_>, host: Option<&Authority>) -> Option<Tls> {
    let name = section.optional("sni", |field| {
        field.parse(NAME, |typed| {
            ServerName::try_from(typed.to_owned()).map_err(|_| format!("{} is no name", quoted(typed)))
        })
    });
    let of_host = || match ServerName::try_from(host?.host()) {
        Ok(name @ ServerName::DnsName(_)) => Some(name.to_owned()),
        _ => None,
    };
    let trust = trust(section);
    Some(Tls { name: name?.or_else(of_host), trust: trust? })
}

fn trust(section: &Section<'_>) -> Option<Trust> {
    let ca = section.optional("ca", |field| field.parse(CA, |typed| Authorities::load(Path::new(typed))));
    let skip = section.get("skip_verify");
    match skip.as_ref().map_or(Some(false), |field| field.boolean())? {
        true if section.get("ca").is_some() => {
            skip?.error("who is not verified needs no ca; expected false, or no key ca")
        }
        true => Some(Trust::Anyone),
        false => match ca? {
            Some(ca) => Some(Trust::Authorities(ca)),
            None => Authorities::of_system().map(Trust::Authorities).or_else(|| {
                section.error(
                    "this machine has no certificates of CAs; expected ca = \"FILE\", or skip_verify = true",
                );
                None
            }),
        },
    }
}

impl Authorities {
    fn new(given: Vec<CertificateDer<'static>>, roots: RootCertStore) -> Authorities {
        Authorities(Arc::new(Certificates { given, roots: Arc::new(roots) }))
    }

    /// What can be verified with.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.0.roots)
    }

    /// The CAs that this machine trusts, if it knows any. They are read once, at the first check that needs them, as there
    /// may be thousands of such checks and some hundred certificates; what the system updates comes into force with a
    /// restart.
    pub fn of_system() -> Option<Authorities> {
        static SYSTEM: OnceLock<Authorities> = OnceLock::new();
        if let Some(known) = SYSTEM.get() {
            return Some(known.clone());
        }
        let given = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        // A system's collection may have one that cannot be used; the others can.
        let (usable, _) = roots.add_parsable_certificates(given.iter().cloned());
        (usable > 0).then(|| SYSTEM.get_or_init(|| Authorities::new(given, roots)).clone())
    }

    /// All certificates of a PEM file, or what is wrong with it.
    pub fn load(path: &Path) -> Result<Authorities, String> {
        let shown = quoted(&path.display().to_string());
        let mut given = Vec::new();
        let mut roots = RootCertStore::empty();
        for (number, certificate) in (1..).zip(file::certificates(path)?) {
            roots
                .add(certificate.clone())
                .map_err(|_| format!("{shown} has a certificate {number} that cannot be read"))?;
            given.push(certificate);
        }
        Ok(Authorities::new(given, roots))
    }
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Authorities) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.given == other.0.given
    }
}

impl Eq for Authorities {}

/// Their number will do: what has an equal hash is compared anyway, and every server of a service is looked up with
/// all its certificates a few times a reload.
impl Hash for Authorities {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.given.len().hash(state);
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({} certificates)", self.0.given.len())
    }
}
