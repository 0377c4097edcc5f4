//! Notes the commit and the compiler that the program was built with, for its reports.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=../.git/HEAD");
    println!("cargo::rerun-if-changed=../.git/index");
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    println!("cargo::rustc-env=RVS_RUSTC={}", output(&rustc, &["--version"]));
    let commit = output("git", &["describe", "--always", "--dirty", "--exclude=*"]);
    println!("cargo::rustc-env=RVS_COMMIT={commit}");
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or("unknown".into(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}
