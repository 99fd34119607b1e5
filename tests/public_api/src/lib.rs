#![cfg(test)]
//! Fails if the public API differs from the list in api.txt. CONTRIBUTING.md has the command that
//! updates the list.

use std::path::Path;
use std::process::Command;

/// The folder of the crate.
const CRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_public_api_is_as_listed() {
    let json = Path::new(CRATE).join("target/doc/diesel_rds_iam.json");
    document();
    let public = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true).build();
    let public = public.unwrap_or_else(|error| {
        panic!("cannot read the JSON; run with the Rust version of Cargo.toml: {error}")
    });
    public.assert_eq_or_update(Path::new(CRATE).join("tests/public_api/api.txt"));
}

/// Runs rustdoc, which writes JSON.
fn document() {
    let rustdoc =
        ["rustdoc", "--quiet", "--lib", "--features", "full", "--locked", "--target-dir", "target"];
    let json = ["--", "-Z", "unstable-options", "--output-format", "json"];
    let mut cargo = Command::new(env!("CARGO"));
    // A wrapper sets RUSTC_BOOTSTRAP for rustdoc only, because it would rebuild all dependencies.
    cargo
        .current_dir(CRATE)
        .args(rustdoc)
        .args(json)
        .env("RUSTDOC", concat!(env!("CARGO_MANIFEST_DIR"), "/rustdoc"));
    assert!(cargo.status().unwrap().success());
}
