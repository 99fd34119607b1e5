//! The example quickstart, as a user runs it.

use std::process::{Command, Output};

use diesel_rds_iam::local::LocalRds;

use crate::support::{example, output, start};

/// Repeats the output of the command, so that the test in secrets.rs can search it.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = output(command);
    eprint!("{}{}", printed(&output), logged(&output));
    output
}

pub(crate) fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn logged(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn quickstart_on_a_local_rds() {
    let output = run(&mut example("quickstart"));
    assert!(output.status.success(), "{}", logged(&output));
    assert!(printed(&output).ends_with("All as expected.\n"), "{}", printed(&output));
    let shown = masked(&printed(&output));
    assert!(
        masked(README).contains(&shown),
        "update the output in README.md: {}",
        printed(&output)
    );
}

const README: &str = include_str!("../../README.md");

/// Replaces ports and hashes, which differ in each run.
fn masked(output: &str) -> String {
    let differs = |word: &str| word.len() > 4 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = output.split_whitespace();
    let words = words.map(|word| if differs(word.trim_end_matches('.')) { "*" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn quickstart_on_your_database() {
    let rds = start(LocalRds::builder());
    let output = run(example("quickstart").envs(rds.environment()));
    assert!(output.status.success(), "{}", logged(&output));
    assert!(printed(&output).starts_with("4 threads wrote notes through "), "{}", printed(&output));
    assert_eq!(rds.attempts().len(), 4);
}

#[test]
fn quickstart_fails_if_its_token_is_refused() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    let output = run(example("quickstart").envs(rds.environment()));
    assert!(!output.status.success());
    assert!(logged(&output).contains("rds-db:connect"), "{}", logged(&output));
}
