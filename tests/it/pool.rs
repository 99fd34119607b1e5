//! The manager in a pool of r2d2.

use std::thread;
use std::time::Duration;

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{ManageConnection, Pool};
use diesel_rds_iam::{Error, RdsConnectionManager};

use crate::support::{backend, current_user, end_sessions, manager, start};

#[test]
fn many_threads_share_few_logins() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.pool_builder().max_size(4).build(manager).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..20).for_each(|_| {
                    assert_eq!(current_user(&mut pool.get().unwrap()), LocalRds::USER)
                })
            });
        }
    });
    assert_eq!(rds.attempts().len(), 4);
}

#[test]
fn connections_that_the_server_ended_are_replaced() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.pool_builder().max_size(2).build(manager).unwrap();
    end_sessions(&rds);
    for _ in 0..4 {
        assert_eq!(current_user(&mut pool.get().unwrap()), LocalRds::USER);
    }
}

#[test]
fn a_connection_left_in_a_transaction_is_not_handed_out_again() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.pool_builder().max_size(1).build(manager).unwrap();
    let mut connection = pool.get().unwrap();
    let first = backend(&mut connection);
    drop(connection);
    let mut connection = pool.get().unwrap();
    assert_eq!(backend(&mut connection), first);
    diesel::connection::AnsiTransactionManager::begin_transaction_sql(&mut *connection, "BEGIN")
        .unwrap();
    drop(connection);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn is_valid_fails_for_a_closed_connection() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let mut connection = manager.connect().unwrap();
    manager.is_valid(&mut connection).unwrap();
    drop(rds);
    let text = manager.is_valid(&mut connection).unwrap_err().to_string();
    assert!(text.starts_with("the connection is not usable"), "{text}");
}

#[test]
fn the_defaults_of_a_pool() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool: Pool<_> = manager.pool_builder().build(manager.clone()).unwrap();
    // The manager ends connections itself.
    assert_eq!((pool.max_lifetime(), pool.idle_timeout()), (None, None));
    assert_eq!(manager.max_lifetime(), Some(Duration::from_secs(840)));
    assert_eq!(pool.connection_timeout(), Duration::from_secs(15));
    assert!(pool.test_on_check_out());
}

#[test]
fn a_waiting_thread_gets_the_cause_of_a_refused_login() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(1).connection_timeout(Duration::from_millis(500));
    let error = builder.build(manager).expect_err("the login succeeded").to_string();
    assert!(error.contains("rds-db:connect"), "{error}");
}

#[test]
fn keywords_of_the_connection_string_configure_the_pool() {
    let rds = start(LocalRds::builder());
    let url = rds.database_url()
        + "&pool_max_size=3&pool_min_idle=1&pool_connection_timeout=4&max_lifetime=60"
        + "&validate_after=0&leak_detection_threshold=30";
    let manager = rds.manager_builder().build(&url).unwrap();
    let pool = manager.build_pool(manager.pool_builder()).unwrap();
    let own: &Pool<_> = pool.as_ref();
    assert_eq!((own.max_size(), own.min_idle()), (3, Some(1)));
    assert_eq!(own.connection_timeout(), Duration::from_secs(4));
    assert_eq!(manager.max_lifetime(), Some(Duration::from_secs(60)));
    let pings = manager.stats().checkouts_pinged;
    drop(pool.get().unwrap());
    assert_eq!(manager.stats().checkouts_pinged, pings + 1, "validate_after=0");
    let in_code = rds.manager_builder().max_lifetime(None).build(&url).unwrap();
    assert_eq!(in_code.max_lifetime(), None, "a setter wins");

    let login = manager.libpq_login().unwrap();
    let others = [login.database_url(), login.database_url_with_token().unwrap()];
    let others = others.into_iter().chain(login.variables().into_iter().map(|(_, value)| value));
    for text in others {
        let own = ["pool_", "max_lifetime", "validate_after", "leak_detection"];
        assert!(own.iter().all(|own| !text.contains(own)), "another program gets {own:?}");
    }
    let url = rds.password_url() + "&rds_iam_auth=false&pool_max_size=2";
    let manager = RdsConnectionManager::new(url).unwrap();
    assert_eq!(manager.build_pool(manager.pool_builder()).unwrap().max_size(), 2);
}

#[test]
fn a_program_that_replaces_a_keyword_of_the_connection_string_gets_an_error() {
    let rds = start(LocalRds::builder());
    let url = rds.database_url() + "&pool_max_size=3&pool_min_idle=1&pool_connection_timeout=4";
    let manager = rds.manager_builder().build(url).unwrap();
    let builder = || manager.pool_builder();
    let cases = [
        ("max_size", builder().max_size(2)),
        ("min_idle", builder().min_idle(None)),
        ("connection_timeout", builder().connection_timeout(Duration::from_secs(5))),
        ("max_size", Pool::builder()),
    ];
    for (name, builder) in cases {
        let error = manager.build_pool(builder).map(drop).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert!(error.to_string().contains(&format!("pool_{name} of the connection")), "{error}");
    }
    manager.build_pool(builder().max_size(3)).unwrap();
}
