//! A certificate authority of the tests' own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::state::State;

/// A CA, with its certificate in a file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

/// From the first day of one year to that of another.
type Years = (i32, i32);

/// Years in which we all are.
pub const NOW: Years = (2000, 3000);
/// Years that are over.
pub const PAST: Years = (2000, 2001);

impl Authority {
    /// Makes one of this name.
    pub fn new(state: &State, name: &str) -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = state.file(&format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key)?.pem())?;
        Ok(Authority { issuer: Issuer::new(params, key), file })
    }

    /// The file with its certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A new certificate of a server of this name, and its key, as nginx wants them in one file.
    pub fn certify(&self, name: &str, (from, to): Years) -> Result<String> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(certificate.pem() + &key.serialize_pem())
    }
}
