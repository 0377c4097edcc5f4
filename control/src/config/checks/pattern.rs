//! A regular expression that an answer is compared with.

use std::fmt;
use std::hash::{Hash, Hasher};

use regex::bytes::{Regex, RegexBuilder};

use crate::config::error::quoted;
use crate::config::raw::Field;

/// What is expected of one.
const PATTERN: &str = "a regular expression, e.g. \"status: (ok|fine)\"";

/// The most that a compiled pattern may take, in bytes. It is compiled once a check, and all servers share it.
const MAX_COMPILED: usize = 1 << 20;

/// A compiled regular expression in the syntax of the `regex` crate (Perl's, without look-around and back-references: it
/// takes time in proportion to what it is compared with). It looks at bytes, as an answer need not be UTF-8.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Reads one, and compiles it.
    pub(super) fn read(field: &Field<'_>) -> Option<Pattern> {
        field.parse(PATTERN, |typed| match typed {
            "" => Err("\"\" matches whatever comes".to_owned()),
            _ => Pattern::new(typed).map_err(|why| format!("{} is wrong: {why}", quoted(typed))),
        })
    }

    fn new(typed: &str) -> Result<Pattern, String> {
        RegexBuilder::new(typed).size_limit(MAX_COMPILED).build().map(Pattern).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => format!("needs more than {} KiB", MAX_COMPILED >> 10),
            // The crate shows the pattern with a caret, as the configuration's errors do already; its last line says
            // what is wrong.
            other => {
                let text = other.to_string();
                let last = text.lines().last().unwrap_or(&text);
                last.strip_prefix("error: ").unwrap_or(last).to_owned()
            }
        })
    }

    /// Whether it occurs.
    pub fn is_in(&self, answer: &[u8]) -> bool {
        self.0.is_match(answer)
    }
}

/// As it was typed.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}
