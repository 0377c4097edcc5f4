//! Every measurement inside of `rvs-perf` from beginning to end, with settings so small that its figures mean nothing.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{assert_measured, figures, label, refusal, rvs_perf};

#[test]
fn path_measures_every_combination_and_the_ceiling() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(
        command,
        "path --rounds 1 --time 20 --flows 100 --protocols tcp,udp --orders sequential,random,zipf --sizes 64,1518",
    );
    figures.iter().for_each(assert_measured);
    let count = |path: &str| figures.iter().filter(|figure| label(figure, "path") == path).count();
    assert_eq!((count("io"), count("5tswap")), (1, 1));
    assert_eq!((count("nat in"), count("nat out"), count("dr in"), count("dr out")), (12, 12, 12, 0));
}

#[test]
fn path_shows_stages_and_draws_a_picture() {
    let Some(mut command) = rvs_perf() else { return };
    let picture = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("path.svg");
    let line = "path --rounds 2 --time 20 --flows 100 --stages --plot";
    let output = command.args(line.split_whitespace()).arg(&picture).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("commit") && text.contains("look up"), "{text}");
    let svg = fs::read_to_string(picture).expect("the picture is there");
    assert!(svg.starts_with("<svg") && svg.contains("nat in 100"), "{svg}");
}

#[test]
fn connect_fills_the_table() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "connect --rounds 1 --room 10000 --schedulers rr,wlc,mh");
    figures.iter().for_each(assert_measured);
    assert_eq!(figures.len(), 2 * 2 * 3 * 5, "modes, protocols, schedulers, phases");
}

#[test]
fn scale_steers_well_and_badly() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "scale --rounds 1 --time 20 --flows 100 --workers 2");
    figures.iter().for_each(assert_measured);
    let steering: Vec<&str> = figures.iter().map(|figure| label(figure, "steering")).collect();
    assert_eq!(steering, ["steered", "mis-steered"]);
}

#[test]
fn reload_is_noticed() {
    let Some(command) = rvs_perf() else { return };
    let line = "reload --rounds 1 --time 20 --services 10 --flows 100 --reloads 1";
    let figures = figures(command, line);
    figures.iter().for_each(assert_measured);
    assert_eq!(figures.len(), 5);
}

#[test]
fn a_peer_knows_all_connections() {
    let Some(command) = rvs_perf() else { return };
    let line =
        "sync --rounds 1 --time 20 --flows 100 --storms 20000 --connections 6000 --trickles 200 --bulks 5000";
    let figures = figures(command, line);
    assert_eq!(figures.len(), 1 + 3 + 2 * 3 + 11 + 5 + 1, "idle, trickle, paths, storm, bulk, forged calls");
    let known = figures.iter().filter(|figure| label(figure, "figure") == "known to the peer");
    let known: Vec<_> = known.map(|figure| figure["samples"][0].as_f64().expect("a share")).collect();
    assert_eq!(known, [100.0; 3]);
}

#[test]
fn a_table_is_taken_over() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "adopt --rounds 1 --connections 10000 --servers 3");
    figures.iter().for_each(assert_measured);
    assert_eq!(figures.len(), 2, "sizes");
}

#[test]
fn program_is_weighed_and_reloaded() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "program --rounds 1 --connections 1000000 --services 10");
    figures.iter().for_each(assert_measured);
    assert_eq!(figures.len(), 4);
}

#[test]
fn control_answers_while_servers_go_down_and_come_back() {
    let Some(command) = rvs_perf() else { return };
    let line = "control --rounds 1 --services 5 --servers 4 --interval 0.2 --time 0.2";
    let figures = figures(command, line);
    figures.iter().for_each(assert_measured);
    assert_eq!(figures.len(), 5 + 4 * 7, "situations, figures");
}

#[test]
fn instructions_are_counted_and_held_against_the_record() {
    let Some(command) = rvs_perf() else { return };
    let figures = figures(command, "instructions --packets 6400");
    figures.iter().for_each(assert_measured);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("instructions.toml");
    let paths = ["nat-in", "nat-out", "dr-in", "nat-new", "dr-new", "tunnel-in", "tunnel-new"];
    let record: String = paths.iter().map(|path| format!("{path} = 1.0\n")).collect();
    fs::write(&path, format!("bound = 5.0\n[instructions]\n{record}")).expect("a file");
    let path = path.to_str().expect("a path in UTF-8");
    // The table and then one line.
    let complaint = refusal(&["instructions", "--packets", "6400", "--check", path]);
    assert!(complaint.contains("more instructions than recorded"), "{complaint}");
}

#[test]
fn a_build_is_compared_with_itself() {
    let Some(command) = rvs_perf() else { return };
    let line = concat!("compare --rounds 1 --base ", env!("CARGO_BIN_EXE_rvs-perf"));
    let mut command = command;
    let output = command
        .args(line.split_whitespace())
        .args(["--json", "-", "--", "path", "--flows", "100", "--time", "20", "--modes", "dr"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("\"ratio\"") && text.contains("dr in 100"), "{text}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let complaint = refusal(&["compare", "--base", "no-such-commit", "--", "path"]);
    assert!(complaint.contains("neither a program nor a commit"), "{complaint}");
}
