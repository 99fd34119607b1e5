//! Servers that stop, start and refuse, and who is told.

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
fn a_restarted_server_has_its_port_and_its_data() {
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
fn connect_awaits_a_server_that_is_about_to_be_back() {
    let rds = start(LocalRds::builder());
    for manager in [manager(&rds), rds.manager_builder().build(rds.password_url()).unwrap()] {
        rds.stop();
        let (sender, receiver) = channel();
        let connecting = thread::spawn(move || {
            sender.send(()).unwrap();
            manager.connect().map(drop)
        });
        receiver.recv().unwrap();
        rds.restart().unwrap();
        connecting.join().unwrap().unwrap();
    }
}

#[test]
fn connect_gives_up_on_a_server_that_stays_away() {
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
fn a_waiter_learns_the_cause_while_connect_still_tries() {
    // Found by a stranger: it was told that all connections were in use.
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
fn a_refused_token_is_not_tried_again() {
    let rds = start(LocalRds::builder());
    rds.refuse_next(usize::MAX);
    manager(&rds).connect().map(drop).unwrap_err();
    assert_eq!(rds.attempts().len(), 1);
}

/// Works on connections of the pool until `done`; counts what failed.
fn work(pool: &Pool, done: &AtomicBool, failures: &AtomicUsize, successes: &AtomicUsize) {
    while !done.load(SeqCst) {
        let worked = pool
            .get()
            .is_ok_and(|mut connection| connection.batch_execute("SELECT pg_sleep(0.001)").is_ok());
        if worked { successes } else { failures }.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_restart_under_load_fails_only_what_was_in_flight() {
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
    assert!(failures <= THREADS * RESTARTS, "{failures} operations failed, {successes} did not");
    assert!(successes >= 10 * THREADS * RESTARTS);
}

#[test]
fn after_an_outage_a_pool_is_back_at_once() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    rds.stop();
    let waiting = thread::spawn(move || pool.get().map(drop).map(|()| Instant::now()));
    // r2d2 by itself tries after 0.2, 0.6, 1.4, 3, 6.2 and 13 seconds.
    thread::sleep(Duration::from_millis(6500));
    rds.restart().unwrap();
    let restarted = Instant::now();
    let served = waiting.join().unwrap().unwrap();
    let late = served.saturating_duration_since(restarted);
    assert!(late < Duration::from_secs(3), "{late:?} after the server");
}

/// What keeps a pool from being built, and a part of the text that tells so.
fn refused(
    rds: &LocalRds,
    others: &LocalRds,
) -> Vec<(&'static str, RdsConnectionManager, &'static str)> {
    let build = |builder: diesel_rds_iam::Builder, url: &str| builder.build(url).unwrap();
    let plain = || rds.manager_builder();
    let ungranted = rds.database_url_for(LocalRds::USER_WITHOUT_GRANT);
    let (own, foreign) = (rds.ca_file().to_str().unwrap(), others.ca_file().to_str().unwrap());
    let url = rds.database_url();
    let unknown = url.replace("/app?", "/none?");
    let without_any = RdsConnectionManager::builder().profile("none-of-that-name");
    vec![
        ("user", build(plain(), &ungranted), "GRANT rds_iam"),
        ("CA", build(plain(), &url.replace(own, foreign)), "sslrootcert="),
        ("database", build(plain(), &unknown), "check the names of database and user"),
        ("region", build(plain().region_name("eu-west-1"), &url), "rds-db:connect"),
        ("credentials", build(without_any, &url), "no AWS credentials"),
    ]
}

#[test]
fn a_pool_that_cannot_connect_says_why_at_once() {
    let (rds, others) = (start(LocalRds::builder()), start(LocalRds::builder()));
    for (what, manager, cure) in refused(&rds, &others) {
        let started = Instant::now();
        let builder = manager.pool_builder().connection_timeout(Duration::from_secs(60));
        let error = manager.build_pool(builder).expect_err(what).to_string();
        assert!(error.contains(cure), "{what}: {error}");
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(10), "{what}: {elapsed:?}");
    }
}

#[test]
fn a_pool_takes_the_connection_that_it_was_tried_with() {
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
fn each_of_30_waiters_on_a_wrong_password_gets_the_cause() {
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
        let wait = || pool.get_timeout(Duration::from_secs(3)).map(drop).expect_err("let in");
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
fn a_pool_that_is_all_in_use_says_so() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    let _in_use = pool.get().unwrap();
    // Somebody else's trouble.
    rds.refuse_next(1);
    manager.connect().map(drop).unwrap_err();
    let error = pool
        .get_timeout(Duration::from_millis(50))
        .map(drop)
        .expect_err("a second one")
        .to_string();
    assert!(
        error.contains("all 1 connections are in use") && error.contains("raise max_size"),
        "{error}"
    );
}

#[test]
fn after_a_refusal_that_waiting_does_not_mend_the_next_logins_are_spaced() {
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
fn a_refused_token_can_be_tried_again_at_once() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    rds.refuse_next(1);
    manager.connect().map(drop).unwrap_err();
    manager.connect().unwrap();
}

/// The connection string with the server's root in a bundle with these others.
fn url_with_roots(rds: &LocalRds, others: &[u8], bundle: &tempfile::NamedTempFile) -> String {
    let own = std::fs::read(rds.ca_file()).unwrap();
    std::fs::write(bundle.path(), [others, &own].concat()).unwrap();
    rds.database_url().replace(rds.ca_file().to_str().unwrap(), bundle.path().to_str().unwrap())
}

const OTHERS: &[u8] = include_bytes!("../data/roots.pem");

#[test]
fn a_wrong_region_is_told_in_spite_of_the_trimmed_roots() {
    // Found by a stranger: the root that was needed had been trimmed, so the error blamed the
    // bundle.
    let amazons = LocalRds::builder().authority("Amazon RDS us-east-1 Root CA RSA2048 G1");
    let (rds, bundle) = (start(amazons), tempfile::NamedTempFile::new().unwrap());
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
fn a_trimmed_bundle_of_roots_lets_us_in_and_a_changed_one_counts() {
    let (rds, bundle) = (start(LocalRds::builder()), tempfile::NamedTempFile::new().unwrap());
    let manager = rds.manager_builder().build(url_with_roots(&rds, OTHERS, &bundle)).unwrap();
    manager.connect().unwrap();
    std::fs::write(bundle.path(), OTHERS).unwrap();
    let error = manager.connect().map(drop).unwrap_err().to_string();
    assert!(error.contains("certificate verify failed"), "{error}");
    // The server is as it was.
    log_in(&rds, LocalRds::USER, &token_of(&rds, std::time::SystemTime::now())).unwrap();
}
