//! Files that a configuration names: certificates, keys, tokens, lists.
//!
//! They are read together with the configuration and are part of it: a missing or garbled file is an error of the file that
//! names it, and a reload after a renewal brings the new contents into force.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::error::quoted;

/// A larger file is no certificate, key or token: the CAs of a whole system take a quarter of a megabyte.
const MAX_FILE: u64 = 4 << 20;

/// What others may read or write (chmod(1)).
const OTHERS: u32 = 0o006;

/// All certificates of a PEM file, at least one, or what is wrong with it.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, _) = contents(path, MAX_FILE)?;
    let garbled = |number| format!("{} is garbled at its certificate {number}", shown(path));
    let certificates = (1..).zip(CertificateDer::pem_slice_iter(&pem));
    let certificates: Vec<_> = certificates
        .map(|(number, certificate)| certificate.map_err(|_| garbled(number)))
        .collect::<Result<_, _>>()?;
    match certificates.is_empty() {
        true => Err(format!("{} has no certificate", shown(path))),
        false => Ok(certificates),
    }
}

/// What only the owner of a file and its group may know, or what is wrong with it.
pub fn secret(path: &Path) -> Result<Vec<u8>, String> {
    let (contents, metadata) = contents(path, MAX_FILE)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(format!("{} is open to everybody (mode {mode:04o}; `chmod o=` mends it)", shown(path)));
    }
    Ok(contents)
}

/// The contents of a list, of so many bytes at the most, or what is wrong with it.
pub fn list(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    Ok(contents(path, most)?.0)
}

/// A key in a file that not everybody can read: as many bytes, as hexadecimal digits.
pub fn key<const BYTES: usize>(path: &Path) -> Result<[u8; BYTES], String> {
    let contents = secret(path)?;
    let digits = contents.trim_ascii();
    let no_key = || format!("{} has no key", shown(path));
    if digits.len() != 2 * BYTES {
        return Err(no_key());
    }
    let mut key = [0; BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(no_key);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Ok(key)
}

fn contents(path: &Path, most: u64) -> Result<(Vec<u8>, Metadata), String> {
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", shown(path)));
    }
    read(path, most).map_err(|error| format!("{} cannot be read: {error}", shown(path)))
}

/// A regular file's: whoever opens a pipe may wait for ever.
fn read(path: &Path, most: u64) -> io::Result<(Vec<u8>, Metadata)> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut contents = Vec::new();
    file.take(most + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {} MB", most >> 20)));
    }
    Ok((contents, metadata))
}

fn shown(path: &Path) -> String {
    quoted(&path.display().to_string())
}
