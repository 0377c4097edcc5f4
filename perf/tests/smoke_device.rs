//! `rvs-perf device` from beginning to end, with settings so small that its figures mean nothing.

mod common;

use common::{assert_measured, figures, label, refusal, rvs_perf};

#[test]
fn every_device_gives_figures_of_both_programs() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "device --rounds 1 --time 20 --flows 100");
    let name = |figure| ["device", "flows", "what"].map(|name| label(figure, name)).join(" ");
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
    figures.iter().for_each(assert_measured);
}

#[test]
fn a_missing_rvs_is_told_with_the_command_that_builds_it() {
    let complaint = refusal(&["device", "--rvs", "/nonexistent/rvs"]);
    assert!(complaint.contains("cargo build --release -p rvs --features static"), "{complaint}");
}
