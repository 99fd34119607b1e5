//! The examples, as a user runs them. `cargo test` builds them beside this binary.

use std::path::PathBuf;
use std::process::{Command, Output};

use diesel_rds_iam::local::LocalRds;

use crate::support::start;

fn example(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let folder: PathBuf = this.ancestors().nth(2).unwrap().join("examples");
    let mut command = Command::new(folder.join(name));
    command.env_remove("DATABASE_URL");
    command
}

fn shown(output: &Output) -> String {
    (String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr)).into_owned()
}

#[test]
fn quickstart_on_a_local_rds() {
    let output = example("quickstart").output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    assert!(shown(&output).ends_with("All as it should be.\n"), "{}", shown(&output));
}

#[test]
fn quickstart_on_your_database() {
    let rds = start(LocalRds::builder());
    let output = example("quickstart").envs(rds.environment()).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    assert!(shown(&output).starts_with("4 threads wrote notes through "), "{}", shown(&output));
    assert_eq!(rds.attempts().len(), 4);
}

#[test]
fn quickstart_fails_where_it_is_not_let_in() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    let output = example("quickstart").envs(rds.environment()).output().unwrap();
    assert!(!output.status.success());
    assert!(shown(&output).contains("rds-db:connect"), "{}", shown(&output));
}
