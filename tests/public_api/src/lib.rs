#![cfg(test)]
//! A change of what is public is to be seen, and meant. CONTRIBUTING.md tells how to write the list
//! anew.

use std::path::Path;
use std::process::Command;

/// The crate's folder.
const CRATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn what_is_public_is_what_is_listed() {
    let json = Path::new(CRATE).join("target/doc/diesel_rds_iam.json");
    document();
    let public = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true).build();
    let public = public
        .unwrap_or_else(|error| panic!("not the JSON of the Rust that Cargo.toml states: {error}"));
    public.assert_eq_or_update(Path::new(CRATE).join("tests/public_api/api.txt"));
}

/// Has rustdoc write JSON.
fn document() {
    let rustdoc =
        ["rustdoc", "--quiet", "--lib", "--all-features", "--locked", "--target-dir", "target"];
    let json = ["--", "-Z", "unstable-options", "--output-format", "json"];
    let mut cargo = Command::new(env!("CARGO"));
    // Not RUSTC_BOOTSTRAP for all, with which all dependencies would be built anew.
    cargo
        .current_dir(CRATE)
        .args(rustdoc)
        .args(json)
        .env("RUSTDOC", concat!(env!("CARGO_MANIFEST_DIR"), "/rustdoc"));
    assert!(cargo.status().unwrap().success());
}
