//! The layout of a configuration: one way to write what means the same.
//!
//! Taplo lays out, conservatively: order and comments stay, and so do lines that somebody has broken. Since
//! the file is somebody's work, its result is not trusted: what comes back must have the same values and the
//! same comments, or the file is refused and stays as it is.

use taplo::formatter::{self, Options};
use taplo::syntax::{SyntaxKind, SyntaxNode};

use super::ConfigErrors;
use super::error::{Report, Source};
use super::raw::Document;

/// Taplo comes to rest after one round, mostly. A round that undoes the one before would go on for ever.
const ROUNDS: usize = 8;

/// The text, formatted. What is not TOML is refused; whether it is a configuration is not asked.
pub fn format(source: &Source) -> Result<String, ConfigErrors> {
    Document::parse(source)?;
    let typed = source.text();
    let parsed = taplo::parser::parse(typed);
    let report = Report::new(source.clone());
    for error in &parsed.errors {
        // TOML 1.1, which the reader knows already: inline tables over several lines.
        let span = usize::from(error.range.start())..usize::from(error.range.end());
        let message = format_args!("cannot be formatted: {}; expected TOML 1.0", error.message);
        report.error(span, "syntax", message);
    }
    report.finish()?;

    let options = || Options {
        column_width: 100,
        array_auto_collapse: false,
        inline_table_expand: false,
        align_comments: false,
        allowed_blank_lines: 1,
        crlf: typed.find('\n').is_some_and(|newline| typed[..newline].ends_with('\r')),
        ..Options::default()
    };
    let mut formatted = typed.to_owned();
    for _ in 0..ROUNDS {
        let next = formatter::format(&formatted, options());
        if next == formatted {
            break;
        }
        formatted = next;
    }
    let at_rest = formatter::format(&formatted, options()) == formatted;
    if at_rest && values(typed) == values(&formatted) && comments(typed) == comments(&formatted) {
        return Ok(formatted);
    }
    let report = Report::new(source.clone());
    report.error(0..0, "", "cannot be formatted without a change of what it says; expected simpler TOML");
    report.finish()?;
    unreachable!("an error has been reported")
}

fn values(text: &str) -> Option<toml::Table> {
    text.parse().ok()
}

fn comments(text: &str) -> Vec<String> {
    let tree: SyntaxNode = taplo::parser::parse(text).into_syntax();
    let tokens = tree.descendants_with_tokens().filter_map(|element| element.into_token());
    let comments = tokens.filter(|token| token.kind() == SyntaxKind::COMMENT);
    comments.map(|token| token.text().trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn formatted(text: &str) -> Result<String, ConfigErrors> {
        format(&Source::new(Path::new("f"), text.to_owned()))
    }

    fn examples() -> Vec<String> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        files.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn our_own_examples_are_formatted() {
        for example in examples() {
            assert_eq!(formatted(&example).unwrap(), example);
        }
    }

    #[test]
    fn what_it_does() {
        let typed = "# first\n\n\n\n[[port]]   # the only one\nname=\"wan\"\n   device   =  'net_null'\n\
                     addresses=[ \"192.0.2.1/24\",\"192.0.2.2/24\" ]\n[[service]]\n\
                     check={kind=\"tcp\",rise=2}   \n# last";
        let expected = "# first\n\n[[port]] # the only one\nname = \"wan\"\ndevice = 'net_null'\n\
                        addresses = [\"192.0.2.1/24\", \"192.0.2.2/24\"]\n[[service]]\n\
                        check = { kind = \"tcp\", rise = 2 }\n# last\n";
        assert_eq!(formatted(typed).unwrap(), expected);
        let crlf = typed.replace('\n', "\r\n");
        assert_eq!(formatted(&crlf).unwrap(), expected.replace('\n', "\r\n"));
        assert_eq!(formatted("").unwrap().trim(), "");
    }

    #[test]
    fn what_is_not_toml_is_refused_in_our_words() {
        let error = formatted("[workers]\ncores = [1\nidle = busy\n").unwrap_err().to_string();
        assert!(error.starts_with("f:") && error.contains("expected"), "{error}");
    }

    /// What an editor does to a line.
    #[derive(Clone, Debug)]
    enum Edit {
        Blank,
        Comment,
        Indent,
        Trail,
        Squeeze,
        Spread,
        Remove,
        Repeat,
        Cut(usize),
    }

    fn edit(lines: &mut Vec<String>, at: usize, edit: &Edit) {
        let line = lines[at].clone();
        match edit {
            Edit::Blank => lines.insert(at, String::new()),
            Edit::Comment => lines.insert(at, format!("   #noted  {at} ")),
            Edit::Indent => lines[at] = format!("\t  {line}"),
            Edit::Trail => lines[at] = format!("{line} \t"),
            Edit::Squeeze => lines[at] = line.replace(" = ", "=").replace(", ", ","),
            Edit::Spread => lines[at] = line.replace(" = ", "   =  ").replace('[', "[ "),
            Edit::Remove => drop(lines.remove(at)),
            Edit::Repeat => lines.insert(at, line),
            Edit::Cut(column) => lines[at] = line.chars().take(*column).collect(),
        }
    }

    fn any_edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            Just(Edit::Blank),
            Just(Edit::Comment),
            Just(Edit::Indent),
            Just(Edit::Trail),
            Just(Edit::Squeeze),
            Just(Edit::Spread),
            Just(Edit::Remove),
            Just(Edit::Repeat),
            (0usize..40).prop_map(Edit::Cut),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn whatever_was_edited(
            example in any::<prop::sample::Index>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any_edit()), 0..20),
        ) {
            let examples = examples();
            let mut lines: Vec<String> = example.get(&examples).lines().map(str::to_owned).collect();
            for (at, what) in &edits {
                let at = at.index(lines.len());
                edit(&mut lines, at, what);
            }
            let text = lines.join("\n");
            let is_toml = Document::parse(&Source::new(Path::new("f"), text.clone())).is_ok();
            match formatted(&text) {
                Ok(once) => {
                    prop_assert_eq!(values(&text), values(&once));
                    prop_assert_eq!(comments(&text), comments(&once));
                    prop_assert_eq!(formatted(&once).unwrap(), once);
                }
                Err(error) => prop_assert!(!is_toml, "{}\n{}", error, text),
            }
        }
    }
}
