//! Errors in a configuration, in the form in which compilers have taught everyone to read them:
//!
//! ```text
//! rvs.toml:14:13: service[0].scheduler: unknown scheduler "foo"; expected one of rr, wrr, lc, wlc
//!    14 | scheduler = "foo"
//!       |             ^^^^^
//! ```
//!
//! A file may be anything, also ten megabytes of noise in one line. So positions are found by index and
//! not by counting from the start, lines are cut around the error, what a terminal would obey is
//! replaced, and no more than [`MAX_SHOWN`] errors are shown.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// How many errors of a file are shown.
pub const MAX_SHOWN: usize = 20;

/// How many errors of a file are kept, to show the first of them; the others are only counted.
const MAX_KEPT: usize = 1000;

/// How many characters of a source line are shown.
const MAX_LINE: usize = 100;

/// How many characters of a key or a value are repeated in a message.
const MAX_QUOTED: usize = 60;

/// One error, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// Counted from 1; 0 if the error concerns the file as a whole.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// Path of the key, e.g. `service[0].scheduler`; empty if the error concerns the file as a whole.
    pub key: String,
    /// What is wrong; what is expected.
    pub message: String,
    /// The line and a caret below what is wrong.
    excerpt: Option<Excerpt>,
}

/// The errors of a file, in its order: at least one.
///
/// `{}` shows each with its source line; `{:#}` only the headlines, one a line, as suits a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// At most [`MAX_SHOWN`].
    shown: Vec<ConfigError>,
    /// How many more there are.
    more: usize,
}

impl ConfigErrors {
    /// The errors shown.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.shown.iter()
    }

    /// An error of the file as a whole: it cannot be read.
    pub(super) fn of_file(path: &Path, message: impl Display) -> ConfigErrors {
        let error = ConfigError {
            file: file_name(path),
            line: 0,
            column: 0,
            key: String::new(),
            message: message.to_string(),
            excerpt: None,
        };
        ConfigErrors { shown: vec![error], more: 0 }
    }
}

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.shown.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            error.fmt(f)?;
        }
        match self.more {
            0 => Ok(()),
            1 => write!(f, "\n... and one more error"),
            more => write!(f, "\n... and {more} more errors"),
        }
    }
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.excerpt {
            Some(excerpt) if !f.alternate() => {
                let number = format!("{:>5}", self.line);
                write!(f, "\n{number} | {}", excerpt.text)?;
                let (blank, indent) = (" ".repeat(number.len()), " ".repeat(excerpt.indent));
                write!(f, "\n{blank} | {indent}{}", "^".repeat(excerpt.carets))
            }
            _ => Ok(()),
        }
    }
}

/// Part of a source line, made harmless, and where the carets go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    text: String,
    indent: usize,
    carets: usize,
}

/// The text of a file, with an index by which an offset becomes line and column at once.
#[derive(Clone, Default)]
pub struct Source(Arc<Inner>);

#[derive(Default)]
struct Inner {
    file: String,
    text: String,
    /// Made for the first error: most files have none.
    index: OnceLock<Index>,
}

struct Index {
    /// Where each line starts.
    lines: Vec<usize>,
    /// How many characters precede each [`STRIDE`] of bytes.
    characters: Vec<usize>,
}

/// Bytes between two entries of [`Index::characters`]: bounds what a column costs in a line of megabytes.
const STRIDE: usize = 4096;

impl Source {
    /// A text from this file.
    pub fn new(path: &Path, text: String) -> Source {
        Source(Arc::new(Inner { file: file_name(path), text, index: OnceLock::new() }))
    }

    fn index(&self) -> &Index {
        self.0.index.get_or_init(|| {
            let newlines = self.text().bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            let lines = std::iter::once(0).chain(newlines.map(|(offset, _)| offset + 1)).collect();
            let chunks = self.text().as_bytes().chunks(STRIDE);
            let characters =
                chunks.scan(0, |sum, chunk| Some(std::mem::replace(sum, *sum + count_characters(chunk))));
            Index { lines, characters: characters.collect() }
        })
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Line and column of an offset into the text, both counted from 1, the column in characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let start = self.index().lines.get(line).copied().unwrap_or(0);
        let column = self.characters_before(offset).saturating_sub(self.characters_before(start));
        (line + 1, column + 1)
    }

    /// The index of the line of an offset.
    fn line(&self, offset: usize) -> usize {
        self.index().lines.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn characters_before(&self, offset: usize) -> usize {
        let offset = offset.min(self.text().len());
        let block = offset / STRIDE;
        let counted = self.index().characters.get(block).copied().unwrap_or(0);
        counted + self.0.text.as_bytes().get(block * STRIDE..offset).map_or(0, count_characters)
    }

    fn error(&self, span: Range<usize>, key: String, message: String) -> ConfigError {
        let (line, column) = self.position(span.start);
        ConfigError {
            file: self.0.file.clone(),
            line,
            column,
            key,
            message,
            excerpt: Some(self.excerpt(span)),
        }
    }

    fn excerpt(&self, span: Range<usize>) -> Excerpt {
        let line = self.line(span.start);
        let start = self.index().lines.get(line).copied().unwrap_or(0);
        let end = self.index().lines.get(line + 1).copied().unwrap_or(self.text().len());
        let before = self.text().get(start..span.start).unwrap_or_default();
        let after = self.text().get(span.start..end).unwrap_or_default().trim_end_matches(['\r', '\n']);
        let marked = self.text().get(span.start..span.end.min(end)).unwrap_or_default().trim_end();

        // Enough of the line before the error to see what it is about, more of what follows.
        let keep =
            if before.chars().take(MAX_LINE).count() > MAX_LINE * 6 / 10 { MAX_LINE / 2 } else { MAX_LINE };
        let mut head: Vec<char> = before.chars().rev().take(keep).collect();
        head.reverse();
        let tail: Vec<char> = after.chars().take(MAX_LINE - head.len()).collect();

        let mut text = String::new();
        if head.iter().map(|c| c.len_utf8()).sum::<usize>() < before.len() {
            text.push_str("...");
        }
        text.extend(head.iter().copied().map(harmless));
        let indent = text.chars().count();
        text.extend(tail.iter().copied().map(harmless));
        if tail.iter().map(|c| c.len_utf8()).sum::<usize>() < after.len() {
            text.push_str("...");
        }
        let carets = marked.chars().take(tail.len()).count().max(1);
        Excerpt { text: text.trim_end().to_owned(), indent, carets }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} bytes)", self.0.file, self.text().len())
    }
}

/// Collects the errors of a file while it is read.
pub struct Report {
    source: Source,
    found: RefCell<Vec<Found>>,
    count: std::cell::Cell<usize>,
    /// Which keys the reader has said that it knows, by the path of their table.
    #[cfg(test)]
    pub(super) known: RefCell<std::collections::BTreeMap<String, std::collections::BTreeSet<String>>>,
}

struct Found {
    span: Range<usize>,
    key: String,
    message: String,
}

impl Report {
    /// Nothing found yet.
    pub fn new(source: Source) -> Report {
        Report {
            source,
            found: RefCell::default(),
            count: Default::default(),
            #[cfg(test)]
            known: RefCell::default(),
        }
    }

    /// For the test that holds the schema against the reader.
    #[cfg(test)]
    pub(super) fn note_known(&self, path: String, keys: &[&str]) {
        let mut known = self.known.borrow_mut();
        known.entry(path).or_default().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Adds an error. The message says what is wrong; what is expected.
    pub fn error(&self, span: Range<usize>, key: impl Display, message: impl Display) {
        self.count.set(self.count.get() + 1);
        let mut found = self.found.borrow_mut();
        if found.len() < MAX_KEPT {
            found.push(Found { span, key: shortened(&key.to_string()), message: message.to_string() });
        }
    }

    /// The errors, if there are any, in the order of the file.
    pub fn finish(self) -> Result<(), ConfigErrors> {
        let mut found = self.found.into_inner();
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by_key(|error| error.span.start);
        found.truncate(MAX_SHOWN);
        let more = self.count.get() - found.len();
        let shown = found.into_iter().map(|one| self.source.error(one.span, one.key, one.message)).collect();
        Err(ConfigErrors { shown, more })
    }
}

/// A value as a message quotes it: in quotes, escaped, and not longer than a message bears.
pub fn quoted(value: &str) -> String {
    format!("{:?}", shortened(value))
}

/// A text that is not longer than a message bears.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// What stands for a character that a terminal would obey instead of showing it.
pub fn harmless(character: char) -> char {
    match character {
        '\t' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
            '\u{fffd}'
        }
        other if other.is_control() => '\u{fffd}',
        other => other,
    }
}

/// Every byte but a continuation byte of UTF-8 begins a character.
fn count_characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

fn file_name(path: &Path) -> String {
    path.display().to_string().chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let report = Report::new(Source::new(Path::new("f"), text.to_owned()));
        report.error(span, "k", "wrong; expected right");
        report.finish().unwrap_err().to_string()
    }

    #[test]
    fn an_error_shows_its_line() {
        assert_eq!(
            shown("a\nbc = 1\n", 7..8),
            "f:2:6: k: wrong; expected right\n    2 | bc = 1\n      |      ^"
        );
    }

    #[test]
    fn columns_are_characters() {
        assert_eq!(shown("ä\té=1", 5..6), "f:1:4: k: wrong; expected right\n    1 | ä é=1\n      |    ^");
    }

    #[test]
    fn the_end_of_the_file_is_a_place() {
        assert_eq!(shown("ab\n", 3..3), "f:2:1: k: wrong; expected right\n    2 | \n      | ^");
        assert_eq!(shown("", 0..0), "f:1:1: k: wrong; expected right\n    1 | \n      | ^");
    }

    #[test]
    fn a_long_line_is_cut_on_both_sides() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let expected = format!(
            "f:1:501: k: wrong; expected right\n    1 | ...{}X{}...\n      | {}^",
            "a".repeat(50),
            "b".repeat(49),
            " ".repeat(53)
        );
        assert_eq!(shown(&line, 500..501), expected);
    }

    #[test]
    fn control_characters_reach_no_terminal() {
        let message = shown("a\u{1b}[2J\u{202e}\r\n", 0..1);
        assert_eq!(message, "f:1:1: k: wrong; expected right\n    1 | a\u{fffd}[2J\u{fffd}\n      | ^");
    }

    #[test]
    fn many_errors_are_counted_but_not_shown() {
        let report = Report::new(Source::new(Path::new("f"), "x".repeat(5000)));
        for offset in (0..5000).rev() {
            report.error(offset..offset + 1, "k", "wrong");
        }
        let errors = report.finish().unwrap_err();
        assert_eq!(errors.iter().count(), MAX_SHOWN);
        assert!(errors.to_string().ends_with("\n... and 4980 more errors"), "{errors}");
    }

    #[test]
    fn a_position_is_counted_in_characters() {
        let text = "eins\nzwö = 1\n\u{10348}x".repeat(1000);
        let source = Source::new(Path::new("f"), text.clone());
        let (mut line, mut column) = (1, 1);
        for (offset, character) in text.char_indices() {
            assert_eq!(source.position(offset), (line, column));
            (line, column) = if character == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
    }
}
