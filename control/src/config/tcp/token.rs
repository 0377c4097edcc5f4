//! Tokens: secrets in a file, one a line, that say who may do what.
//!
//! A file may have several, so that one can be replaced without a moment in which neither the old nor the new one counts.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use subtle::{Choice, ConstantTimeEq};

use crate::config::error::quoted;
use crate::config::file;

/// What [`load`] reads.
pub(super) const EXPECTED: &str = "the absolute path of a file with tokens, one a line, of 16 to 512 letters, digits or \
     -._~+/=, e.g. from `openssl rand -hex 32`";

/// How long a token may be: too long to be guessed, and short enough for a header.
const LENGTH: RangeInclusive<usize> = 16..=512;

/// A secret that is shown as `Authorization: Bearer ...`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Who is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Those that may do everything.
    pub full: Vec<Token>,
    /// Those that may only look.
    pub read: Vec<Token>,
}

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// To look.
    Read,
}

/// The tokens of a file, at least one, or what is wrong with it.
pub fn load(path: &Path) -> Result<Vec<Token>, String> {
    let shown = quoted(&path.display().to_string());
    let contents = file::secret(path)?;
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(contents.split(|&byte| byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if !line.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte)) {
            return Err(format!("{shown} has other characters in line {number}"));
        }
        if !LENGTH.contains(&line.len()) {
            return Err(format!("{shown} has a token of {} characters in line {number}", line.len()));
        }
        tokens.push(Token(String::from_utf8_lossy(line).into_owned()));
    }
    if tokens.is_empty() {
        return Err(format!("{shown} has no token"));
    }
    Ok(tokens)
}

impl Token {
    /// The secret itself, to be shown to a server.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl Tokens {
    /// What whoever shows this may do, if anything. How long it takes to say so tells nothing of the tokens but how long
    /// they are, and how many.
    pub fn access(&self, shown: &[u8]) -> Option<Access> {
        let among = |tokens: &[Token]| -> bool {
            let each = tokens.iter().map(|token| token.0.as_bytes().ct_eq(shown));
            each.fold(Choice::from(0), |found, equal| found | equal).into()
        };
        match (among(&self.full), among(&self.read)) {
            (true, _) => Some(Access::Full),
            (false, true) => Some(Access::Read),
            (false, false) => None,
        }
    }
}

/// Nobody finds it in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}
