//! What was typed: tables, keys and values, with the place and the path of each.
//!
//! One would expect structs that derive `Deserialize` here. They were not chosen, because such a reader
//! stops at the first error, knows no path of keys (`service[2].server[0].weight`), and says of a wrong
//! value what Rust expected rather than what an operator should write. The parser's own tree with spans is
//! the struct: a [`Section`] is a table and a [`Field`] a value in it, and whatever is wrong with them goes
//! to the [`Report`] while reading goes on.

use std::fmt::{self, Display};
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigErrors, Report, Source, quoted, shortened};

/// A file as the parser sees it.
pub struct Document<'a> {
    root: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// Parses the text. Of syntax errors only the first is told: the others mostly follow from it.
    pub fn parse(source: &'a Source) -> Result<Document<'a>, ConfigErrors> {
        match DeTable::parse(source.text()) {
            Ok(root) => Ok(Document { root }),
            Err(error) => {
                let report = Report::new(source.clone());
                let length = source.text().len();
                let span = error.span().unwrap_or(length..length);
                let key = key_before(source.text(), span.start).unwrap_or("syntax");
                report.error(span.clone(), key, syntax_message(error.message(), source.text(), span));
                report.finish()?;
                unreachable!("an error has been reported")
            }
        }
    }

    /// The table of the whole file.
    pub fn root<'d>(&'d self, report: &'d Report) -> Section<'d> {
        Section { table: self.root.get_ref(), span: 0..0, path: Path::default(), report }
    }

    /// Where the value with this path stands, or else the innermost table around it.
    pub fn find(&self, path: &str) -> Range<usize> {
        let mut span = 0..0;
        let mut table = Some(self.root.get_ref());
        for segment in path.split('.') {
            let (key, indices) = segment.split_once('[').unwrap_or((segment, ""));
            let Some(mut value) = table.and_then(|table| table.get(key)) else { break };
            for index in
                indices.split('[').filter_map(|index| index.trim_end_matches(']').parse::<usize>().ok())
            {
                match value.get_ref().as_array().and_then(|array| array.get(index)) {
                    Some(element) => value = element,
                    None => break,
                }
            }
            span = value.span();
            table = value.get_ref().as_table();
        }
        span
    }
}

/// The parser's `what, expected this` in our form.
fn syntax_message(message: &str, text: &str, span: Range<usize>) -> String {
    let typed = text.get(span).unwrap_or_default();
    // The parser takes `nat` for a `nan` gone wrong, and `idle` for an `inf`.
    let word =
        !typed.is_empty() && typed.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match message.split_once(", expected ") {
        _ if message.starts_with("duplicate key") => {
            "duplicate key; expected each key once in a table".to_owned()
        }
        _ if word && typed.len() <= 40 && message.starts_with("invalid float") => {
            format!("string values must be quoted; expected \"{typed}\"")
        }
        Some((wrong, expected)) => format!("{wrong}; expected {expected}"),
        None => format!("{message}; expected TOML"),
    }
}

/// The key of the line, if the offset is in its value or its name.
fn key_before(text: &str, offset: usize) -> Option<&str> {
    let start = text.get(..offset)?.rfind('\n').map_or(0, |newline| newline + 1);
    let (line, _) = text.get(start..)?.split_once('\n').unwrap_or((&text[start..], ""));
    let key = line.split_once('=')?.0.trim();
    let name =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    name.then_some(key)
}

/// A table.
#[derive(Clone)]
pub struct Section<'d> {
    table: &'d DeTable<'d>,
    span: Range<usize>,
    path: Path<'d>,
    report: &'d Report,
}

/// The keys that lead to a table. Written out for an error only: to do so for each value took as long as parsing.
#[derive(Clone, Default)]
struct Path<'d>(Option<Rc<Step<'d>>>);

/// The path of a value.
#[derive(Clone)]
struct Step<'d> {
    parent: Path<'d>,
    name: Name<'d>,
}

#[derive(Clone, Copy)]
enum Name<'d> {
    Key(&'d str),
    Index(usize),
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |step| step.fmt(f))
    }
}

impl Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parent.fmt(f)?;
        match self.name {
            Name::Key(key) if self.parent.0.is_none() => f.write_str(key),
            Name::Key(key) => write!(f, ".{key}"),
            Name::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl<'d> Section<'d> {
    /// Reports every key that is not one of these.
    pub fn known(&self, keys: &[&str]) {
        #[cfg(test)]
        self.report.note_known(without_indices(&self.path.to_string()), keys);
        for key in self.table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref())) {
            let typed = key.get_ref().as_ref();
            let guess =
                nearest(typed, keys).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            let message = format_args!("unknown key{guess}; expected one of {}", keys.join(", "));
            self.report.error(key.span(), self.path_of(typed), message);
        }
    }

    /// The value of a key, if the key is there.
    pub fn get(&self, key: &str) -> Option<Field<'d>> {
        let (key, value) = self.table.get_key_value(key)?;
        Some(self.field(key.get_ref(), value))
    }

    /// The value of a key, which must be there.
    pub fn require(&self, key: &str, expected: impl Display) -> Option<Field<'d>> {
        let field = self.get(key);
        if field.is_none() {
            self.report.error(
                self.span.clone(),
                self.path_of(key),
                format_args!("missing; expected {expected}"),
            );
        }
        field
    }

    /// What `read` makes of the value of a key, or the default if the key is absent; `None` after an error.
    pub fn or<T>(&self, key: &str, default: T, read: impl FnOnce(Field<'d>) -> Option<T>) -> Option<T> {
        self.get(key).map_or(Some(default), read)
    }

    /// What `read` makes of the value of a key; the outer `None` after an error.
    pub fn optional<T>(&self, key: &str, read: impl FnOnce(Field<'d>) -> Option<T>) -> Option<Option<T>> {
        self.get(key).map_or(Some(None), |field| read(field).map(Some))
    }

    /// The table under a key; an empty one if the key is absent.
    pub fn section(&self, key: &str) -> Option<Section<'d>> {
        self.get(key)?.section()
    }

    /// The elements of an array of tables; none if the key is absent.
    pub fn sections(&self, key: &str) -> Vec<Section<'d>> {
        let Some(field) = self.get(key) else { return Vec::new() };
        if let DeValue::Array(_) = field.value.get_ref() {
            field.elements().into_iter().flatten().filter_map(|element| element.section()).collect()
        } else {
            field.mismatch::<()>(format_args!(
                "tables that begin with [[{}]]",
                without_indices(&field.path.to_string())
            ));
            Vec::new()
        }
    }

    /// The keys with their values.
    pub fn fields(&self) -> impl Iterator<Item = (&'d str, Field<'d>)> + '_ {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), self.field(key.get_ref(), value)))
    }

    fn field(&self, key: &'d str, value: &'d Spanned<DeValue<'d>>) -> Field<'d> {
        let path = Step { parent: self.path.clone(), name: Name::Key(key) };
        Field { value, path, report: self.report }
    }

    /// Reports an error of the table as a whole.
    pub fn error(&self, message: impl Display) {
        self.report.error(self.span.clone(), &self.path, message);
    }

    fn path_of(&self, key: &str) -> String {
        Step { parent: self.path.clone(), name: Name::Key(key) }.to_string()
    }
}

/// A value.
#[derive(Clone)]
pub struct Field<'d> {
    value: &'d Spanned<DeValue<'d>>,
    path: Step<'d>,
    report: &'d Report,
}

impl<'d> Field<'d> {
    /// Reports an error; returns `None`, so that a reader can end with it.
    pub fn error<T>(&self, message: impl Display) -> Option<T> {
        self.report.error(self.value.span(), &self.path, message);
        None
    }

    /// The line it stands in.
    pub fn line(&self) -> usize {
        self.report.source().position(self.value.span().start).0
    }

    /// A string.
    pub fn string(&self, expected: impl Display) -> Option<&'d str> {
        match self.value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.mismatch(expected),
        }
    }

    /// A string that `read` understands, or else says: what is wrong; what is expected.
    pub fn parse<T>(&self, expected: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(self.string(expected)?) {
            Ok(value) => Some(value),
            Err(wrong) => self.error(format_args!("{wrong}; expected {expected}")),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => self.mismatch("true or false"),
        }
    }

    /// An integer within a range.
    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        let DeValue::Integer(typed) = self.value.get_ref() else { return self.mismatch(expected()) };
        match i128::from_str_radix(typed.as_str(), typed.radix())
            .ok()
            .and_then(|value| u64::try_from(value).ok())
        {
            Some(value) if range.contains(&value) => Some(value),
            _ => {
                let typed = self.report.source().text().get(self.value.span()).unwrap_or_default();
                self.error(format_args!("{} is out of range; expected {}", shortened(typed), expected()))
            }
        }
    }

    /// A time: a string such as `"1m 30s"`, or an integer of seconds.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let show = humantime::format_duration;
        let expected = format!("a time from {} to {}, e.g. \"2s\"", show(*range.start()), show(*range.end()));
        let value = match self.value.get_ref() {
            DeValue::String(text) => match humantime::parse_duration(text) {
                Ok(value) => value,
                Err(_) => {
                    return self.error(format_args!("{} is not a time; expected {expected}", quoted(text)));
                }
            },
            DeValue::Integer(_) => Duration::from_secs(self.integer(0..=u64::from(u32::MAX))?),
            _ => return self.mismatch(expected),
        };
        if range.contains(&value) {
            return Some(value);
        }
        self.error(format_args!("{} is out of range; expected {expected}", show(value)))
    }

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Array(_))
    }

    /// Whether it is an integer.
    pub fn is_integer(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Integer(_))
    }

    /// An array.
    pub fn elements(&self) -> Option<Vec<Field<'d>>> {
        let DeValue::Array(array) = self.value.get_ref() else { return self.mismatch("an array") };
        let parent = self.path();
        let field = |(index, value)| {
            let path = Step { parent: parent.clone(), name: Name::Index(index) };
            Field { value, path, report: self.report }
        };
        Some(array.iter().enumerate().map(field).collect())
    }

    /// What `read` makes of all elements of an array; `None` if it fails for any.
    pub fn all<T>(&self, read: impl Fn(Field<'d>) -> Option<T>) -> Option<Vec<T>> {
        let read: Vec<Option<T>> = self.elements()?.into_iter().map(read).collect();
        read.into_iter().collect()
    }

    /// A table.
    pub fn section(&self) -> Option<Section<'d>> {
        match self.value.get_ref() {
            DeValue::Table(table) => {
                Some(Section { table, span: self.value.span(), path: self.path(), report: self.report })
            }
            _ => self.mismatch(format_args!("a table [{}]", without_indices(&self.path.to_string()))),
        }
    }

    /// The path of what is in it.
    fn path(&self) -> Path<'d> {
        Path(Some(Rc::new(self.path.clone())))
    }

    /// Reports a value of the wrong type.
    fn mismatch<T>(&self, expected: impl Display) -> Option<T> {
        let is = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.error(format_args!("is {is}; expected {expected}"))
    }
}

/// `service[0].server` is written `service.server` in a header.
fn without_indices(path: &str) -> String {
    path.split('.').map(|segment| segment.split('[').next().unwrap_or(segment)).collect::<Vec<_>>().join(".")
}

/// The key that was probably meant.
fn nearest<'k>(typed: &str, keys: &[&'k str]) -> Option<&'k str> {
    if typed.len() > 40 {
        return None;
    }
    let near = keys.iter().map(|key| (distance(&typed.to_lowercase(), key), *key)).min()?;
    (near.0 <= near.1.len().div_ceil(3)).then_some(near.1)
}

/// How many letters must be inserted, removed or replaced to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_path_finds_its_value() {
        let text = "a = 1\n[b]\nc = [1, 22]\n[[d]]\n[[d]]\ne = { f = 3 }\n";
        let source = Source::new(Path::new("f"), text.to_owned());
        let document = Document::parse(&source).unwrap();
        for (path, expected) in [
            ("a", "1"),
            ("b.c[1]", "22"),
            ("d[1].e.f", "3"),
            ("d[1].e.missing", "{ f = 3 }"),
            ("d[1]", "[[d]]"),
        ] {
            assert_eq!(&text[document.find(path)], expected, "{path}");
        }
        assert_eq!(document.find("nothing.here"), 0..0);
    }

    #[test]
    fn the_nearest_key_is_near() {
        let keys = ["address", "scheduler", "server", "port"];
        assert_eq!(nearest("schedular", &keys), Some("scheduler"));
        assert_eq!(nearest("Adress", &keys), Some("address"));
        assert_eq!(nearest("ports", &keys), Some("port"));
        assert_eq!(nearest("banana", &keys), None);
        assert_eq!(nearest(&"s".repeat(10_000), &keys), None);
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
