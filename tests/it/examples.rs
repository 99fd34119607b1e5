//! The examples, as a user runs them.

use std::process::{Command, Output};

use diesel_rds_iam::local::LocalRds;

use crate::support::{example, start};

/// Shows what it showed, for the search for secrets.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
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
    assert!(printed(&output).ends_with("All as it should be.\n"), "{}", printed(&output));
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
fn quickstart_fails_where_it_is_not_let_in() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    let output = run(example("quickstart").envs(rds.environment()));
    assert!(!output.status.success());
    assert!(logged(&output).contains("rds-db:connect"), "{}", logged(&output));
}
