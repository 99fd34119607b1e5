//! libpq's memory under valgrind: no leak, and no use after free.

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{PerThread, RdsConnectionManager};

use crate::support::{current_user, in_a_child_under_valgrind, log, refused, start};

#[test]
fn libpqs_memory_does_not_leak_and_is_not_used_after_free() {
    let rds = start(LocalRds::builder());
    let environment = rds.environment();
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
    let options = ("VALGRIND_OPTS", "--leak-check=full --errors-for-leak-kinds=definite");
    in_a_child_under_valgrind("bad_input::table", &[options]);
    in_a_child_under_valgrind(
        "memory::good_strings_and_logins",
        &environment.chain([options]).collect::<Vec<_>>(),
    );
}

#[test]
#[ignore = "runs in a child process, under valgrind"]
fn good_strings_and_logins() {
    log();
    let manager = RdsConnectionManager::from_env().unwrap();
    let login = manager.libpq_login().unwrap();
    for conninfo in [
        login.database_url(),
        format!("{}&rds_iam_auth=false", login.database_url_with_token().unwrap()),
    ] {
        assert!(
            !RdsConnectionManager::new(conninfo)
                .unwrap()
                .libpq_login()
                .unwrap()
                .variables()
                .is_empty()
        );
    }
    let connections = PerThread::new(manager);
    let in_a_thread = || assert_eq!(current_user(&mut connections.get().unwrap()), LocalRds::USER);
    // A thread closes its connection before it can be joined.
    std::thread::scope(|scope| scope.spawn(in_a_thread).join().unwrap());
    let without_grant = std::env::var("DATABASE_URL").unwrap().replacen(
        LocalRds::USER,
        LocalRds::USER_WITHOUT_GRANT,
        1,
    );
    assert!(refused(&RdsConnectionManager::new(without_grant).unwrap()).contains("GRANT rds_iam"));
}
