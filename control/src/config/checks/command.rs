//! `kind = "command"`: a program of the operator's says whether a server is well.

use std::sync::Arc;

use super::{CheckKind, Section};
use crate::config::error::quoted;
use crate::config::user::{self, User};

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// The absolute path of the program.
    pub program: String,
    /// Its arguments, in which `{address}` and `{port}` stand for the server's.
    pub arguments: Vec<String>,
    /// Whether an exit status from 2 to 255 is a success that asks for a weight of 2 less.
    pub dynamic_weight: bool,
    /// Who runs it; `None`: whoever runs RVS.
    pub user: Option<User>,
}

pub(super) const KEYS: &[&str] = &["command", "dynamic_weight", "user"];

const COMMAND: &str = "an absolute path and arguments, e.g. [\"/usr/lib/rvs/check\", \"{address}\"]";
const PROGRAM: &str = "an absolute path, e.g. \"/usr/lib/rvs/check\"";
const ARGUMENT: &str = "a string without NUL";

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let words = section.require("command", COMMAND).and_then(|field| {
        let elements = field.elements()?;
        let Some((program, arguments)) = elements.split_first() else {
            return field.error(format_args!("is empty; expected {COMMAND}"));
        };
        let program = program.parse(PROGRAM, |typed| match typed.starts_with('/') {
            true => without_nul(typed),
            false => Err(format!("{} is not an absolute path", quoted(typed))),
        });
        let arguments: Vec<_> = arguments.iter().map(|field| field.parse(ARGUMENT, without_nul)).collect();
        Some((program?, arguments.into_iter().collect::<Option<Vec<_>>>()?))
    });
    let dynamic_weight = section.or("dynamic_weight", false, |field| field.boolean());
    let user = user::read(section);
    let (program, arguments) = words?;
    let command = Command { program, arguments, dynamic_weight: dynamic_weight?, user: user? };
    Some(CheckKind::Command(Arc::new(command)))
}

/// No system call would take it.
fn without_nul(typed: &str) -> Result<String, String> {
    match typed.contains('\0') {
        true => Err(format!("{} contains a NUL", quoted(typed))),
        false => Ok(typed.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn what_the_keys_mean() {
        let expected = Command {
            program: "/bin/check".to_owned(),
            arguments: vec!["{address}".to_owned(), "-v".to_owned()],
            dynamic_weight: true,
            user: Some(User { name: "root".to_owned(), uid: 0, gid: 0 }),
        };
        let typed = r#"
kind = "command"
command = ["/bin/check", "{address}", "-v"]
dynamic_weight = true
user = "root""#;
        assert_eq!(kind(typed), CheckKind::Command(Arc::new(expected)));
    }

    #[test]
    fn wrong_values() {
        assert_messages(&[
            (
                "kind = \"command\"",
                r#"
f:10:1: service[0].check.command: missing; expected an absolute path and arguments, e.g. ["/usr/lib/rvs/check", "{address}"]
   10 | [service.check]
      | ^^^^^^^^^^^^^^^"#,
            ),
            (
                "kind = \"command\"\ncommand = \"/bin/check\"",
                r#"
f:12:11: service[0].check.command: is a string; expected an array
   12 | command = "/bin/check"
      |           ^^^^^^^^^^^^"#,
            ),
            (
                "kind = \"command\"\ncommand = []",
                r#"
f:12:11: service[0].check.command: is empty; expected an absolute path and arguments, e.g. ["/usr/lib/rvs/check", "{address}"]
   12 | command = []
      |           ^^"#,
            ),
            (
                "kind = \"command\"\ncommand = [\"check\", 3, \"a\\u0000\"]",
                r#"
f:12:12: service[0].check.command[0]: "check" is not an absolute path; expected an absolute path, e.g. "/usr/lib/rvs/check"
   12 | command = ["check", 3, "a\u0000"]
      |            ^^^^^^^
f:12:21: service[0].check.command[1]: is an integer; expected a string without NUL
   12 | command = ["check", 3, "a\u0000"]
      |                     ^
f:12:24: service[0].check.command[2]: "a\0" contains a NUL; expected a string without NUL
   12 | command = ["check", 3, "a\u0000"]
      |                        ^^^^^^^^^"#,
            ),
            (
                "kind = \"command\"\ncommand = [\"/bin/true\"]\ndynamic_weight = 1",
                r#"
f:13:18: service[0].check.dynamic_weight: is an integer; expected true or false
   13 | dynamic_weight = 1
      |                  ^"#,
            ),
            (
                "kind = \"command\"\ncommand = [\"/bin/true\"]\nuser = \"no-such-user\"",
                r#"
f:13:8: service[0].check.user: this machine has no user "no-such-user"; expected a user that `getent passwd` lists
   13 | user = "no-such-user"
      |        ^^^^^^^^^^^^^^"#,
            ),
        ]);
    }
}
