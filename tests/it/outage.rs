//! Servers that stop, start or refuse logins, and the errors of waiting threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Error, Pool, RdsConnectionManager};

use crate::support::{current_user, last_verdict, log_in, manager, start, token_of};

#[test]
fn a_restarted_server_keeps_its_port_and_its_data() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    manager.connect().unwrap().batch_execute("CREATE TABLE kept ()").unwrap();
    rds.stop();
    assert!(std::net::TcpStream::connect(("127.0.0.1", rds.port())).is_err());
    rds.restart().unwrap();
    rds.restart().unwrap();
    manager.connect().unwrap().batch_execute("TABLE kept").unwrap();
}

#[test]
fn connect_waits_for_a_restarting_server() {
    let rds = start(LocalRds::builder());
    for manager in [manager(&rds), rds.manager_builder().build(rds.password_url()).unwrap()] {
        rds.stop();
        let (sender, receiver) = channel();
        let connecting = thread::spawn(move || {
            sender.send(()).unwrap();
            manager.connect().map(drop)
        });
        receiver.recv_timeout(Duration::from_secs(10)).expect("the thread starts");
        rds.restart().unwrap();
        connecting.join().unwrap().unwrap();
    }
}

#[test]
fn connect_fails_after_connect_timeout_if_the_server_stays_stopped() {
    let rds = start(LocalRds::builder());
    rds.stop();
    for url in [rds.database_url(), rds.password_url()] {
        let manager = rds.manager_builder().build(format!("{url}&connect_timeout=2")).unwrap();
        let started = Instant::now();
        let error = manager.connect().map(drop).unwrap_err().to_string();
        let elapsed = started.elapsed();
        assert!(
            error.contains("Connection refused") && error.contains("check host and port"),
            "{error}"
        );
        assert!(
            (Duration::from_millis(1800)..Duration::from_secs(8)).contains(&elapsed),
            "{elapsed:?}"
        );
    }
}

#[test]
fn a_waiting_thread_gets_the_cause_while_connect_still_retries() {
    // Regression: the error said that all connections were in use.
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    rds.stop();
    let error = pool.get_timeout(Duration::from_secs(2)).map(drop).unwrap_err().to_string();
    assert!(
        error.contains("Connection refused") && error.contains("check host and port"),
        "{error}"
    );
}

#[test]
fn a_refused_token_is_not_retried() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    manager(&rds).connect().map(drop).unwrap_err();
    assert_eq!(rds.attempts().len(), 1);
}

/// Runs queries on connections of the pool until `done`. Counts failures and successes.
fn work(pool: &Pool, done: &AtomicBool, failures: &AtomicUsize, successes: &AtomicUsize) {
    while !done.load(SeqCst) {
        let worked = pool
            .get()
            .is_ok_and(|mut connection| connection.batch_execute("SELECT pg_sleep(0.001)").is_ok());
        if worked { successes } else { failures }.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_restart_under_load_fails_only_operations_in_flight() {
    const THREADS: usize = 8;
    const RESTARTS: usize = 3;
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(8)).unwrap();
    let (done, failures, successes) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| work(&pool, &done, &failures, &successes));
        }
        for _ in 0..RESTARTS {
            rds.restart().unwrap();
            let before = successes.load(SeqCst);
            let deadline = Instant::now() + Duration::from_secs(10);
            while successes.load(SeqCst) < before + 10 * THREADS && Instant::now() < deadline {
                thread::yield_now();
            }
        }
        done.store(true, SeqCst);
    });
    let (failures, successes) = (failures.into_inner(), successes.into_inner());
    assert!(failures <= THREADS * RESTARTS, "{failures} operations failed, {successes} succeeded");
    assert!(successes >= 10 * THREADS * RESTARTS);
}

#[test]
fn a_pool_recovers_right_after_an_outage() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    rds.stop();
    let waiting = thread::spawn(move || pool.get().map(drop).map(|()| Instant::now()));
    // Without our retries, r2d2 would retry after 0.2, 0.6, 1.4, 3, 6.2 and 13 seconds.
    thread::sleep(Duration::from_millis(6500));
    rds.restart().unwrap();
    let restarted = Instant::now();
    let served = waiting.join().unwrap().unwrap();
    let recovery = served.saturating_duration_since(restarted);
    assert!(recovery < Duration::from_secs(3), "{recovery:?} after the restart");
}

/// Returns managers that cannot log in: the wrong setting, the manager, a part of the error text.
fn refused(
    rds: &LocalRds,
    other: &LocalRds,
) -> Vec<(&'static str, RdsConnectionManager, &'static str)> {
    let build = |builder: diesel_rds_iam::Builder, url: &str| builder.build(url).unwrap();
    let plain = || rds.manager_builder();
    let ungranted = rds.database_url_for(LocalRds::USER_WITHOUT_GRANT);
    let (root, other_root) = (rds.ca_file().to_str().unwrap(), other.ca_file().to_str().unwrap());
    let url = rds.database_url();
    let unknown = url.replace("/app?", "/none?");
    let without_any = RdsConnectionManager::builder().profile("no-such-profile");
    vec![
        ("user", build(plain(), &ungranted), "GRANT rds_iam"),
        ("CA", build(plain(), &url.replace(root, other_root)), "sslrootcert="),
        ("database", build(plain(), &unknown), "check the names of database and user"),
        ("region", build(plain().region_name("eu-west-1"), &url), "rds-db:connect"),
        ("credentials", build(without_any, &url), "no AWS credentials"),
    ]
}

#[test]
fn build_pool_fails_at_once_with_the_cause() {
    let (rds, other) = (start(LocalRds::builder()), start(LocalRds::builder()));
    for (wrong, manager, instruction) in refused(&rds, &other) {
        let started = Instant::now();
        let builder = manager.pool_builder().connection_timeout(Duration::from_secs(60));
        let error = manager.build_pool(builder).expect_err(wrong).to_string();
        assert!(error.contains(instruction), "{wrong}: {error}");
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(10), "{wrong}: {elapsed:?}");
    }
}

#[test]
fn build_pool_keeps_its_first_connection_in_the_pool() {
    let rds = start(LocalRds::builder());
    for (min_idle, logins) in [(None, 3), (Some(0), 1)] {
        let before = rds.attempts().len();
        let manager = manager(&rds);
        let pool =
            manager.build_pool(manager.pool_builder().max_size(3).min_idle(min_idle)).unwrap();
        assert_eq!(pool.state().connections, if min_idle.is_none() { 3 } else { 1 });
        assert_eq!(current_user(&mut pool.get().unwrap()), LocalRds::USER);
        assert_eq!(rds.attempts().len() - before, logins);
    }
}

#[test]
fn with_a_wrong_password_each_of_30_waiting_threads_gets_the_cause() {
    let rds = start(LocalRds::builder());
    let manager = rds.manager_builder().build(rds.password_url()).unwrap();
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let user = LocalRds::USER_WITH_PASSWORD;
    let end = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{user}'"
    );
    let change = format!("ALTER ROLE {user} PASSWORD 'another'; {end}");
    rds.superuser().unwrap().batch_execute(&change).unwrap();
    let errors: Vec<Error> = thread::scope(|scope| {
        let wait =
            || pool.get_timeout(Duration::from_secs(3)).map(drop).expect_err("the login succeeded");
        let waiters: Vec<_> = (0..30).map(|_| scope.spawn(wait)).collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    });
    assert_eq!(errors.len(), 30);
    for error in errors {
        let text = error.to_string();
        assert!(matches!(error, Error::Timeout { .. }), "{text}");
        assert!(
            text.contains("password authentication failed") && text.contains("rds_iam_auth=false"),
            "{text}"
        );
    }
}

#[test]
fn a_pool_with_all_connections_in_use_says_so() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let _in_use = pool.get().unwrap();
    // The failed login of another user of the manager.
    rds.refuse_next(1);
    manager.connect().map(drop).unwrap_err();
    let error = pool
        .get_timeout(Duration::from_millis(50))
        .map(drop)
        .expect_err("a second connection")
        .to_string();
    assert!(
        error.contains("all 1 connections are in use") && error.contains("raise max_size"),
        "{error}"
    );
}

#[test]
fn after_a_refusal_that_waiting_does_not_fix_logins_are_paused() {
    let rds = start(LocalRds::builder());
    let manager =
        rds.manager_builder().build(rds.database_url_for(LocalRds::USER_WITHOUT_GRANT)).unwrap();
    assert_eq!(manager.last_error(), None);
    let refused = manager.connect().map(drop).unwrap_err().to_string();
    assert_eq!(manager.last_error().as_deref(), Some(refused.as_str()));
    let paused = manager.connect().map(drop).unwrap_err();
    assert!(matches!(paused, Error::Paused { .. }), "{paused}");
    assert!(paused.to_string().contains(&refused), "{paused}");
    let grant = format!("GRANT rds_iam TO {}", LocalRds::USER_WITHOUT_GRANT);
    rds.superuser().unwrap().batch_execute(&grant).unwrap();
    let Error::Paused { wait, .. } = paused else { unreachable!() };
    thread::sleep(wait);
    manager.connect().unwrap();
    assert_eq!(manager.last_error(), None);
    manager.connect().unwrap();
}

#[test]
fn connect_can_be_retried_right_after_a_refused_token() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    rds.refuse_next(1);
    manager.connect().map(drop).unwrap_err();
    manager.connect().unwrap();
}

/// Writes a bundle with the server's root and `others`. Returns the connection string with it.
fn url_with_roots(rds: &LocalRds, others: &[u8], bundle: &tempfile::NamedTempFile) -> String {
    let own = std::fs::read(rds.ca_file()).unwrap();
    std::fs::write(bundle.path(), [others, &own].concat()).unwrap();
    rds.database_url().replace(rds.ca_file().to_str().unwrap(), bundle.path().to_str().unwrap())
}

const OTHERS: &[u8] = include_bytes!("../data/roots.pem");

#[test]
fn a_wrong_region_is_reported_although_the_roots_are_trimmed() {
    // Regression: the required root was trimmed, so the error named the bundle as the cause.
    let builder = LocalRds::builder().authority("Amazon RDS us-east-1 Root CA RSA2048 G1");
    let (rds, bundle) = (start(builder), tempfile::NamedTempFile::new().unwrap());
    let manager = rds
        .manager_builder()
        .region_name("eu-west-1")
        .build(url_with_roots(&rds, OTHERS, &bundle))
        .unwrap();
    let error = manager.connect().map(drop).unwrap_err().to_string();
    assert!(error.contains("region_name="), "{error}");
    assert_eq!(last_verdict(&rds), Err(Refusal::Region));
}

#[test]
fn a_trimmed_bundle_works_and_a_changed_bundle_is_read_again() {
    let (rds, bundle) = (start(LocalRds::builder()), tempfile::NamedTempFile::new().unwrap());
    let manager = rds.manager_builder().build(url_with_roots(&rds, OTHERS, &bundle)).unwrap();
    manager.connect().unwrap();
    std::fs::write(bundle.path(), OTHERS).unwrap();
    let error = manager.connect().map(drop).unwrap_err().to_string();
    assert!(error.contains("certificate verify failed"), "{error}");
    // The server itself has not changed.
    log_in(&rds, LocalRds::USER, &token_of(&rds, std::time::SystemTime::now())).unwrap();
}
