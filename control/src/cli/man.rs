//! `rvs man`: manual pages, from the same definition as the help.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command, CommandFactory};

use super::{Cli, Exit};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write rvs.1 and a page for each command there; without this, rvs.1 goes to stdout
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let Some(directory) = self.directory else {
            io::stdout().write_all(&page(root())?)?;
            return Ok(Exit::Ok);
        };
        let shown = directory.display();
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {shown}"))?;
        for (name, page) in pages()? {
            let path = directory.join(format!("{name}.1"));
            fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Exit::Ok)
    }
}

/// The definition with everything that clap would add when it parses.
fn root() -> Command {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    root
}

/// All pages by name, `rvs` and `rvs-run` and so on.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let root = root();
    let commands: Vec<Command> =
        root.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut pages = vec![("rvs".to_owned(), page(root)?)];
    for command in commands {
        // `build` has given it the display name `rvs-run`, and the name `rvs run` to be called by.
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        pages.push((name, page(command)?));
    }
    Ok(pages)
}

/// A page: as clap_mangen has it, and with each part of what follows the help under a heading of its own.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let after = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let source = concat!("rvs ", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command).manual("RVS").source(source);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    for line in after.unwrap_or_default().lines() {
        match line.strip_suffix(':').filter(|title| !title.starts_with(' ')) {
            Some(title) => {
                let title = title.to_uppercase().replace("EXIT CODES", "EXIT STATUS");
                writeln!(page, ".SH \"{title}\"")?;
            }
            None if line.is_empty() => {}
            // As it stands, a line a line.
            None => writeln!(page, "{}\n.br", escaped(line.trim_start()))?,
        }
    }
    Ok(page)
}

/// Text that roff prints as it is.
fn escaped(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_each_command_with_its_exit_status() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for expected in ["rvs", "rvs-run", "rvs-check", "rvs-reload", "rvs-list", "rvs-fmt", "rvs-schema"] {
            assert!(names.contains(&expected), "{expected}: {names:?}");
        }
        for (name, page) in &pages {
            let page = String::from_utf8_lossy(page);
            let (_, status) =
                page.split_once(".SH \"EXIT STATUS\"").unwrap_or_else(|| panic!("{name}: {page}"));
            assert!(["0  ", "1  ", "2  "].iter().all(|code| status.contains(code)), "{name}: {status}");
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
        let all = String::from_utf8_lossy(&pages[0].1).into_owned();
        assert!(
            all.contains(".SH \"EXAMPLES\"") && all.contains("rvs check \\-c /etc/rvs/rvs.toml"),
            "{all}"
        );
        let run = pages.iter().find(|(name, _)| name == "rvs-run").unwrap();
        let run = String::from_utf8_lossy(&run.1).into_owned();
        assert!(run.contains("\\fBrvs run\\fR") && run.contains("\\fB\\-\\-config\\fR"), "{run}");
    }

    #[test]
    fn they_are_written_where_they_are_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("man1");
        assert_eq!(Man { directory: Some(below.clone()) }.execute().unwrap(), Exit::Ok);
        assert_eq!(fs::read_dir(&below).unwrap().count(), pages().unwrap().len());
        assert!(fs::read_to_string(below.join("rvs-list.1")).unwrap().contains(".TH rvs-list 1"));
    }
}
