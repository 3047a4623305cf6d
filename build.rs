//! Puts the commit into the version string, and the program at a fixed address.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success());
        output
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .map(|text| text.trim().to_owned())
    };
    // A source archive has no repository; whoever builds from one may name the commit.
    println!("cargo::rerun-if-env-changed=WALHALLA_COMMIT");
    let given = std::env::var("WALHALLA_COMMIT").ok();
    let commit = given
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=WALHALLA_COMMIT={commit}");
    // PostgreSQL starts the program once a segment: docs/decisions/0062-the-program-is-at-a-fixed-address.md
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
}
