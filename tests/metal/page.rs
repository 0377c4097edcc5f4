//! `docs/bare-metal.md` as something that can be walked: sections with blocks, each of which belongs somewhere.
//!
//! What a block is for, its fence says: `sh router`, `sh real-server` and `sh client` are commands for that machine,
//! `LANGUAGE /path` is a file of the router, `text` is nothing to type. A fence that says anything else is an error, and
//! so is, at the end of the walk, a block that nobody has run.

use anyhow::{Context, Result, bail, ensure};

/// What is to be done with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commands for the router.
    Router(String),
    /// Commands for each real server.
    RealServer(String),
    /// Commands for a client.
    Client(String),
    /// A file of the router: path and content.
    File(String, String),
}

/// A section of the page, by its heading, and what is still to be done in it.
#[derive(Debug)]
struct Section {
    heading: String,
    steps: Vec<Step>,
}

/// The page, and how far the walk has come.
#[derive(Debug)]
pub struct Page(Vec<Section>);

impl Page {
    /// Takes a page apart.
    ///
    /// # Errors
    /// A fence that does not say what to do with its block, or one that does not end.
    pub fn parse(text: &str) -> Result<Page> {
        let mut sections = Vec::new();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            if let Some(heading) = line.strip_prefix("## ") {
                sections.push(Section { heading: heading.to_owned(), steps: Vec::new() });
            }
            let Some(fence) = line.strip_prefix("```") else { continue };
            let inside: Vec<&str> =
                lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            let step = step(fence, inside.join("\n") + "\n")
                .with_context(|| format!("line {}: the fence ```{fence}", number + 1))?;
            if let Some(step) = step {
                let section = sections.last_mut().context("a block before the first heading")?;
                section.steps.push(step);
            }
        }
        ensure!(text.lines().filter(|line| line.starts_with("```")).count() % 2 == 0, "a fence has no end");
        Ok(Page(sections))
    }

    /// The steps of a section, which are done from here on.
    ///
    /// # Errors
    /// The page has no such section with steps.
    pub fn take(&mut self, heading: &str) -> Result<Vec<Step>> {
        let section = self.0.iter_mut().find(|section| section.heading == heading);
        let steps = section.map(|section| std::mem::take(&mut section.steps)).unwrap_or_default();
        ensure!(!steps.is_empty(), "the page has no section \"{heading}\" with something to do");
        Ok(steps)
    }

    /// Fails if there is anything on the page that was not done.
    pub fn finish(self) -> Result<()> {
        let left: Vec<String> = self
            .0
            .iter()
            .filter(|section| !section.steps.is_empty())
            .map(|section| format!("{} of \"{}\"", section.steps.len(), section.heading))
            .collect();
        ensure!(left.is_empty(), "blocks of the page that nothing runs: {}", left.join(", "));
        Ok(())
    }
}

fn step(fence: &str, inside: String) -> Result<Option<Step>> {
    Ok(Some(match fence.split_once(' ') {
        Some(("sh", "router")) => Step::Router(inside),
        Some(("sh", "real-server")) => Step::RealServer(inside),
        Some(("sh", "client")) => Step::Client(inside),
        Some((_, path)) if path.starts_with('/') => Step::File(path.to_owned(), inside),
        None if fence == "text" => return Ok(None),
        _ => bail!("expected `sh router`, `sh real-server`, `sh client`, `LANGUAGE /path` or `text`"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n```text\nno step\n```\n## One\n```sh router\na\nb\n```\nwords\n\
        ```toml /etc/x\nc = 1\n```\n## Two\n```sh client\nd\n```\n";

    #[test]
    fn steps_are_taken_by_section_and_in_order() {
        let mut page = Page::parse(PAGE).unwrap();
        assert_eq!(
            page.take("One").unwrap(),
            [Step::Router("a\nb\n".into()), Step::File("/etc/x".into(), "c = 1\n".into())]
        );
        assert!(page.take("One").is_err() && page.take("Three").is_err());
        assert_eq!(page.take("Two").unwrap(), [Step::Client("d\n".into())]);
        page.finish().unwrap();
    }

    #[test]
    fn a_block_that_nothing_runs_fails_the_walk() {
        let mut page = Page::parse(PAGE).unwrap();
        page.take("One").unwrap();
        let error = page.finish().unwrap_err().to_string();
        assert_eq!(error, "blocks of the page that nothing runs: 1 of \"Two\"");
    }

    #[test]
    fn a_fence_has_to_say_where_its_block_is_run() {
        for fence in ["sh", "sh somewhere", "toml", ""] {
            let page = format!("## One\n```{fence}\na\n```\n");
            assert!(Page::parse(&page).is_err(), "{fence}");
        }
        assert!(Page::parse("## One\n```text\na\n").is_err());
    }

    #[test]
    fn the_page_can_be_walked() {
        Page::parse(crate::PAGE).unwrap();
    }
}
