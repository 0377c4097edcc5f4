//! What the smoke tests share: the built program, and what it takes to run it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The built program, if this machine can run it beside routers; else the test is skipped, and says so.
pub fn rvs_perf() -> Option<Command> {
    let program = Path::new(env!("CARGO_BIN_EXE_rvs-perf"));
    let missing = if !harness::privileged().expect("CI=true needs root") {
        return None;
    } else if harness::cores().len() < 2 {
        "two cores"
    } else if !program.with_file_name("rvs").is_file() {
        "rvs beside rvs-perf: cargo build -p rvs"
    } else if Command::new("dpdk-testpmd").arg("--version").output().is_err() {
        "dpdk-testpmd: apt install dpdk-dev"
    } else {
        return Some(Command::new(program));
    };
    eprintln!("\n*** SKIPPED: needs {missing} ***\n");
    None
}

/// The figures that it prints as JSON; it must succeed.
pub fn figures(mut command: Command, arguments: &str) -> Vec<Value> {
    let output =
        command.args(arguments.split_whitespace()).args(["--json", "-"]).output().expect("it starts");
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    report["figures"].as_array().expect("there are figures").clone()
}

/// A label's value, or nothing.
pub fn label<'a>(figure: &'a Value, name: &str) -> &'a str {
    let labels = figure["labels"].as_array().into_iter().flatten();
    labels.filter(|label| label[0] == name).find_map(|label| label[1].as_str()).unwrap_or_default()
}

/// Asserts that a round was measured, and came to something.
pub fn assert_measured(figure: &Value) {
    let samples = figure["samples"].as_array().expect("there are samples");
    assert!(samples.len() == 1 && samples[0].as_f64().is_some_and(|sample| sample > 0.0), "{figure}");
}

/// The one line by which it refuses these arguments.
pub fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rvs-perf")).args(arguments).output().expect("it starts");
    let complaint = stderr(&output);
    assert!(!output.status.success() && complaint.trim_end().lines().count() == 1, "{complaint}");
    complaint
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
