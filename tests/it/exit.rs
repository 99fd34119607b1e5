//! Programs that end while pool threads log in.

use std::process::Command;
use std::time::Duration;

use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;

use crate::support::{output, start, with_no_settings};

/// How many programs end, each a millisecond later than the one before.
const PROGRAMS: u64 = 120;

#[test]
fn a_program_that_ends_in_a_tls_handshake_does_not_crash() {
    let rds = start(LocalRds::builder());
    // sslmode=require reads no CA bundle, so nothing of ours uses OpenSSL before libpq does.
    let by_password = rds.password_url().replace("sslmode=verify-full", "sslmode=require");
    let by_token = rds.database_url().replace("sslmode=verify-full", "sslmode=require");
    for i in 0..PROGRAMS {
        let url = if i % 2 == 0 { &by_password } else { &by_token };
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "exit::ends_in_a_handshake", "--include-ignored"]);
        with_no_settings(&mut program);
        program.env("EXIT_URL", url).env("EXIT_AFTER_MS", (i / 2 % 40).to_string());
        program.env("AWS_ACCESS_KEY_ID", rds.credentials().access_key_id());
        program.env("AWS_SECRET_ACCESS_KEY", rds.credentials().secret_access_key());
        let output = output(&mut program);
        assert_eq!(output.status.code(), Some(0), "program {i}: {output:?}");
    }
}

#[test]
#[ignore = "runs in its own process, which it ends"]
fn ends_in_a_handshake() {
    let Ok(url) = std::env::var("EXIT_URL") else { return };
    let manager = RdsConnectionManager::new(url).unwrap();
    let pool = manager.pool_builder().max_size(30).build_unchecked(manager);
    let after = std::env::var("EXIT_AFTER_MS").unwrap().parse().unwrap();
    std::thread::sleep(Duration::from_millis(after));
    drop(pool);
    std::process::exit(0);
}
