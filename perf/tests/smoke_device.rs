//! `rvs-perf device` from beginning to end, with settings so small that its figures mean nothing.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The built program, if this machine can run it.
fn rvs_perf() -> Option<Command> {
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

#[test]
fn every_device_gives_figures_of_both_programs() {
    let Some(mut command) = rvs_perf() else { return };
    let arguments = ["device", "--rounds", "1", "--time", "20", "--flows", "100", "--json", "-"];
    let output = command.args(arguments).output().expect("it starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let figures = report["figures"].as_array().expect("there are figures");
    let name = |figure: &Value| {
        let labels = figure["labels"].as_array().into_iter().flatten();
        let values: Vec<&str> = labels.filter_map(|label| label[1].as_str()).take(3).collect();
        values.join(" ")
    };
    let names: Vec<String> = figures.iter().map(name).collect();
    let expected = [
        "pcap 100 rvs nat",
        "pcap 100 testpmd 5tswap",
        "pcap 100 testpmd io",
        "pcap 100 rvs nat / testpmd 5tswap",
        "pcap 100 rvs nat / testpmd io",
        "pcap 100 rvs dr",
        "pcap 100 testpmd macswap",
        "pcap 100 testpmd io",
        "pcap 100 rvs dr / testpmd macswap",
        "pcap 100 rvs dr / testpmd io",
        "null  rvs, dropped as other_host",
        "null  testpmd rxonly",
        "null  rvs nat / testpmd rxonly",
        "ring 1000 rvs dr",
        "ring 1000 testpmd macswap",
        "ring 1000 testpmd io",
        "ring 1000 rvs dr / testpmd macswap",
        "ring 1000 rvs dr / testpmd io",
    ];
    assert_eq!(names, expected);
    for figure in figures {
        let samples = figure["samples"].as_array().expect("there are samples");
        assert!(samples.len() == 1 && samples[0].as_f64().is_some_and(|sample| sample > 0.0), "{figure}");
    }
}

#[test]
fn a_missing_rvs_is_told_in_one_line() {
    let program = env!("CARGO_BIN_EXE_rvs-perf");
    let output = Command::new(program).args(["device", "--rvs", "/nonexistent/rvs"]).output();
    let output = output.expect("it starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.trim_end().lines().count() == 1, "{complaint}");
    assert!(complaint.contains("cargo build --release -p rvs --features static"), "{complaint}");
}
