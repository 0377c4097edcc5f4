//! The script for Pktgen, `perf/pktgen/throughput.lua`, against a stub of Pktgen.
//!
//! It shows that the script calls only what Pktgen has, as far as the stub knows it, and that its search ends
//! at what the router behind the stub can do: never above, and below by no more than the search's resolution.
//! It shows nothing about Pktgen itself, or about RVS: that takes two machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const RESOLUTION_PERCENT: f64 = 0.5;
const LINK_MBPS: f64 = 10_000.0;

/// `None` where there is no Lua.
fn run(script: &Path, environment: &[(&str, &str)]) -> Option<Output> {
    let mut command = Command::new("lua5.4");
    command.arg(directory().join("stub.lua")).arg(script);
    // The settings have plain names, such as LABEL: ours only.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = command.envs(environment.iter().copied()).output();
    if output.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        eprintln!("SKIPPED: no lua5.4; apt install lua5.4");
        return None;
    }
    Some(output.expect("lua5.4 starts"))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pktgen")
}

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it must fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Measures a router of that many packets a second; `None` where there is no Lua.
fn measure(mpps: &str, name: &str, environment: &[(&str, &str)]) -> Option<Value> {
    let path = scratch(name);
    let result = path.to_str().expect("a path in UTF-8");
    let mut all = vec![("STUB_MPPS", mpps), ("RESULT", result), ("WAN_MAC", "02:00:00:00:00:01")];
    all.extend(environment);
    let output = run(&directory().join("throughput.lua"), &all)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&path).expect("the result is there");
    Some(serde_json::from_str(&text).expect("the result is JSON"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value} is no number"))
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} of {value} is no array"))
}

/// What was found for each size is the router's rate, or the link's where that is less.
fn assert_converged(result: &Value, mpps: f64) {
    assert_eq!(number(result, "resolution_percent"), RESOLUTION_PERCENT);
    for size in array(result, "sizes") {
        let line = LINK_MBPS / ((number(size, "size") + 20.0) * 8.0);
        assert!((number(size, "line_mpps") - line).abs() < 1e-6, "{size}");
        assert_eq!(number(size, "loss_percent_at_rest"), 0.0);

        for found in array(size, "throughput") {
            let (rate, tolerance) = (number(found, "received_mpps"), number(found, "tolerance_percent"));
            // The stub sends whole packets in a second.
            let possible = mpps.min(line);
            let missed = line * RESOLUTION_PERCENT / 100.0 + 2e-6;
            assert!(rate <= possible + 1e-6, "{rate} Mpps of {possible}: {found}");
            assert!(rate >= possible - missed, "{rate} Mpps of {possible}: {found}");
            assert!(number(found, "loss_percent") <= tolerance, "{found}");
            let offered = number(found, "sent") / number(result, "trial_seconds") / 1e6;
            assert!((number(found, "offered_mpps") - offered).abs() < 1e-6, "{found}");
            assert_eq!(found["limited_by"], if mpps < line { "router" } else { "link" }, "{found}");
        }
    }
}

fn assert_latencies(result: &Value) {
    for size in array(result, "sizes") {
        let loads: Vec<f64> =
            array(size, "latency").iter().map(|latency| number(latency, "load_percent")).collect();
        assert_eq!(loads, [10.0, 50.0, 90.0]);
        for latency in array(size, "latency") {
            let [min, avg, max] = ["min_us", "avg_us", "max_us"].map(|key| number(latency, key));
            assert!(0.0 < min && min <= avg && avg <= max, "{latency}");
            assert!(number(latency, "probes") > 0.0, "{latency}");
            assert_eq!(number(latency, "loss_percent"), 0.0);
        }
    }
}

#[test]
fn the_search_finds_what_the_router_can_do() {
    for mpps in ["0.9", "7.3", "14.88"] {
        let Some(result) = measure(mpps, &format!("pktgen-{mpps}.json"), &[("LABEL", "a \"stub\"")]) else {
            return;
        };
        assert_converged(&result, mpps.parse().expect("a number"));
        assert_latencies(&result);
        let sizes: Vec<f64> = array(&result, "sizes").iter().map(|size| number(size, "size")).collect();
        assert_eq!(sizes, [64.0, 128.0, 256.0, 512.0, 1024.0, 1280.0, 1518.0]);
        assert_eq!(number(&result, "flows_configured"), 65521.0 * 16.0);
        assert_eq!(number(&result, "link_mbps"), LINK_MBPS);
        assert_eq!(result["label"], "a \"stub\"");
        assert_eq!(result["tool"]["pktgen"], "stub");
    }
}

/// With loss at any rate nothing passes at no tolerance, which is a result too; and it is told.
#[test]
fn a_router_that_always_loses_has_no_throughput() {
    let environment = [("STUB_LOSS", "0.0005"), ("SIZES", "64")];
    let Some(result) = measure("7.3", "pktgen-loss.json", &environment) else { return };
    let size = &array(&result, "sizes")[0];
    assert!(number(size, "loss_percent_at_rest") > 0.0);
    let rates: Vec<f64> =
        array(size, "throughput").iter().map(|found| number(found, "rate_percent")).collect();
    assert_eq!(rates[0], 0.0);
    assert!(rates[1] > 48.0, "{rates:?}");
}

/// Replies are measured over connections that the script opens itself.
#[test]
fn replies_are_measured() {
    let environment = [("DIRECTION", "out"), ("LAN_MAC", "02:00:00:00:00:02"), ("SOURCES", "1021")];
    let Some(result) = measure("7.3", "pktgen-out.json", &environment) else { return };
    assert_eq!(result["direction"], "out");
    assert_converged(&result, 7.3);
    assert_latencies(&result);
}

#[test]
fn direct_routing_over_one_cable_is_measured() {
    let environment = [("STUB_ONE_ARMED", "1"), ("TESTER_LAN", "0"), ("SIZES", "64,512")];
    let Some(result) = measure("7.3", "pktgen-dr.json", &environment) else { return };
    assert_converged(&result, 7.3);
    assert_latencies(&result);
}

/// What would make a wrong number ends the script instead.
#[test]
fn the_script_refuses_to_measure_nonsense() {
    let script = directory().join("throughput.lua");
    let wan = ("WAN_MAC", "02:00:00:00:00:01");
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "WAN_MAC must be set"),
        (&[wan, ("DIRECTION", "out")], "LAN_MAC must be set"),
        (&[wan, ("SOURCES", "many")], "SOURCES must be a number"),
        (&[wan, ("STUB_LOSS", "100")], "nothing arrives"),
        (&[wan, ("STUB_ONE_SIZE", "1")], "frames of 1518 bytes, not of 64"),
    ];
    let result = scratch("pktgen-nonsense.json");
    drop(fs::remove_file(&result));
    for (environment, expected) in cases {
        let mut all = vec![("RESULT", result.to_str().expect("a path in UTF-8"))];
        all.extend(environment);
        let Some(output) = run(&script, &all) else { return };
        let complaint = complaint(&output);
        assert!(complaint.contains(expected), "{environment:?}: {complaint}");
    }
    assert!(!result.exists());
}

/// The stub is worth something only if it fails.
#[test]
fn the_stub_takes_nothing_that_pktgen_does_not_have() {
    for (index, (line, expected)) in [
        (r#"pktgen.start_all("0")"#, "pktgen has no start_all"),
        (r#"pktgen.range.source("0", "start", "198.18.0.1")"#, "pktgen.range has no source"),
        (r#"pktgen.start(0)"#, "pktgen.start does not take (0)"),
        (r#"pktgen.set("0", "rate")"#, "pktgen.set does not take"),
        (r#"pktgen.set("0", "rate", 101)"#, "rate cannot be 101"),
        (r#"pktgen.range.src_ip("0", "first", "198.18.0.1")"#, "pktgen.range.src_ip does not take"),
        (r#"pktgen.range.src_ip("0", "start", "198.18.0.256")"#, "pktgen.range.src_ip does not take"),
        (r#"pktgen.set_ipaddr("0", "src", "198.18.0.1")"#, "pktgen.set_ipaddr does not take"),
        (r#"return pktgen.portStats("0", "port")[0].received"#, "portStats has no received"),
        (r#"pktgen.start("0")"#, "set_range is not on"),
        (r#"return ("#, "unexpected symbol"),
    ]
    .into_iter()
    .enumerate()
    {
        let script = scratch(&format!("pktgen-wrong-{index}.lua"));
        fs::write(&script, line).expect("the script is written");
        let Some(output) = run(&script, &[]) else { return };
        let complaint = complaint(&output);
        assert!(complaint.contains(expected), "{line}: {complaint}");
    }
}
