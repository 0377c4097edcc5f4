//! `rvs-perf link` from beginning to end, with settings so small that its figures mean nothing.

mod common;

use common::{assert_measured, figures, label, refusal, rvs_perf};

#[test]
fn both_links_give_rates_and_latencies_of_both_routers() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(
        command,
        "link --rounds 1 --modes nat --flows 100 --trial 0.02 --repeat 0 --resolution 25 --tolerances 50 --loads 50",
    );
    for link in ["vhost", "memif"] {
        for router in ["rvs nat", "testpmd 5tswap"] {
            let own = figures.iter().filter(|f| label(f, "link") == link && label(f, "router") == router);
            let units: Vec<&str> = own.clone().filter_map(|figure| figure["unit"].as_str()).collect();
            assert_eq!(units, ["Mpps", "Mpps", "us", "us", "us", "us"], "{router} over {link}");
            own.for_each(assert_measured);
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [("--tolerances=101", "percent"), ("--trial=0", "seconds"), ("--resolution=0", "percent")];
    for (argument, expected) in cases {
        let complaint = refusal(&["link", argument]);
        assert!(complaint.contains(expected), "{complaint}");
    }
}
