//! `kind = "script"`: a dialogue over TCP, as LVS' nanny has it.

use std::sync::Arc;

use super::bytes::{BYTES, bytes};
use super::pattern::Pattern;
use super::{CheckKind, Section};

/// A dialogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Script {
    /// At least one.
    pub steps: Vec<Step>,
}

/// One turn of a dialogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// These bytes are sent.
    Send(Vec<u8>),
    /// What has come since the last such step must match.
    Expect(Pattern),
}

pub(super) const KEYS: &[&str] = &["steps"];

const STEP: &str = "{ send = ... } or { expect = ... }";

pub(super) fn read(section: &Section<'_>) -> Option<CheckKind> {
    let field = section.require("steps", "steps of { send = ... } and { expect = ... }")?;
    let steps = field.all(|element| step(&element.section()?))?;
    if steps.is_empty() {
        return field.error(format_args!("is empty; expected steps of {STEP}"));
    }
    Some(CheckKind::Script(Arc::new(Script { steps })))
}

fn step(section: &Section<'_>) -> Option<Step> {
    section.known(&["send", "expect"]);
    match (section.get("send"), section.get("expect")) {
        (Some(send), None) => send.parse(BYTES, bytes).map(Step::Send),
        (None, Some(expect)) => Pattern::read_for_bytes(&expect).map(Step::Expect),
        (Some(_), Some(_)) => {
            section.error(format_args!("has two keys; expected {STEP}"));
            None
        }
        (None, None) => {
            section.error(format_args!("says nothing to do; expected {STEP}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_messages, kind};
    use super::*;

    #[test]
    fn steps_in_their_order() {
        let typed = "kind = \"script\"\nsteps = [{ expect = '^\\+OK' }, { send = 'QUIT\\r\\n' }]";
        let CheckKind::Script(script) = kind(typed) else { panic!() };
        let [Step::Expect(expect), Step::Send(send)] = &script.steps[..] else { panic!("{script:?}") };
        assert_eq!((expect.as_str(), &send[..]), (r"^\+OK", &b"QUIT\r\n"[..]));
    }

    #[test]
    fn wrong_values() {
        assert_messages(&[
            (
                "kind = \"script\"",
                r#"
f:10:1: service[0].check.steps: missing; expected steps of { send = ... } and { expect = ... }
   10 | [service.check]
      | ^^^^^^^^^^^^^^^"#,
            ),
            (
                "kind = \"script\"\nsteps = []",
                r#"
f:12:9: service[0].check.steps: is empty; expected steps of { send = ... } or { expect = ... }
   12 | steps = []
      |         ^^"#,
            ),
            (
                "kind = \"script\"\nsteps = [{ send = \"a\", expect = \"b\" }, {}]",
                r#"
f:12:10: service[0].check.steps[0]: has two keys; expected { send = ... } or { expect = ... }
   12 | steps = [{ send = "a", expect = "b" }, {}]
      |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
f:12:40: service[0].check.steps[1]: says nothing to do; expected { send = ... } or { expect = ... }
   12 | steps = [{ send = "a", expect = "b" }, {}]
      |                                        ^^"#,
            ),
            (
                "kind = \"script\"\nsteps = [{ expect = \"[\" }]",
                r#"
f:12:21: service[0].check.steps[0].expect: "[" is wrong: unclosed character class; expected a regular expression, e.g. "status: (ok|fine)"
   12 | steps = [{ expect = "[" }]
      |                     ^^^"#,
            ),
            (
                "kind = \"script\"\nsteps = [{ send = 'ä' }]",
                r#"
f:12:19: service[0].check.steps[0].send: contains 'ä', which is not ASCII; expected ASCII with \xNN, \r, \n, \t, \0 and \\ in single quotes, e.g. 'PING\r\n', or "hex:0011ff"
   12 | steps = [{ send = 'ä' }]
      |                   ^^^"#,
            ),
        ]);
    }
}
