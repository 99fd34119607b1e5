//! What an adversarial review made happen.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use diesel_rds_iam::aws::{ProvideCredentials, future};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, LoginFailure, Pool, RdsConnectionManager};

use crate::support::fake::{FakePostgres, error_response};
use crate::support::{in_a_child, manager, start};

#[test]
fn a_logger_that_uses_the_pool_does_not_hang_it() {
    in_a_child("review::logs_into_its_own_pool", &[]);
}

static POOL: OnceLock<Pool> = OnceLock::new();

struct UsesThePool;

thread_local!(static IS_LOGGING: Cell<bool> = const { Cell::new(false) });

impl log::Log for UsesThePool {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        if let Some(pool) = POOL.get()
            && !IS_LOGGING.replace(true)
        {
            pool.state();
            drop(pool.try_get());
            pool.manager().stats();
            pool.manager().last_error();
            let _ = pool.manager().token();
            IS_LOGGING.set(false);
        }
    }

    fn flush(&self) {}
}

#[test]
#[ignore = "runs in its own process, because it sets the logger"]
fn logs_into_its_own_pool() {
    log::set_logger(&UsesThePool).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(1)).unwrap();
    assert!(POOL.set(pool.clone()).is_ok());
    let held = pool.get().unwrap();
    pool.get_timeout(Duration::from_millis(50)).map(drop).unwrap_err();
    drop(held);
    rds.refuse_next(3);
    rds.restart().unwrap();
    drop(pool.get().unwrap());
    manager.retire_all();
    drop(pool.get().unwrap());
}

#[test]
fn the_longest_timeout_is_no_panic() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let builder = manager.pool_builder().max_size(1).connection_timeout(Duration::MAX);
    let pool = manager.build_pool(builder).unwrap();
    drop(pool.get().unwrap());
    drop(pool.get_timeout(Duration::MAX).unwrap());
}

#[test]
fn a_revoked_key_pair_is_one_line_at_error_level_and_its_end_is_told() {
    let shown = in_a_child("review::a_pool_without_a_key_pair", &[("RUST_LOG", "diesel_rds_iam")]);
    let (failing, _) = shown.split_once("logins succeed again (").expect("the end is told");
    let errors = failing.lines().filter(|line| line.starts_with("[ERROR"));
    assert_eq!(errors.count(), 1, "{shown}");
}

#[test]
#[ignore = "its log is what the test above checks"]
fn a_pool_without_a_key_pair() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(10)).unwrap();
    rds.revoke_key_pair(rds.credentials().access_key_id());
    manager.retire_all();
    let error = pool.get_timeout(Duration::from_secs(2)).map(drop).unwrap_err();
    assert_eq!(error.login_failure(), Some(LoginFailure::RefusedToken), "{error}");
    assert!(!error.is_transient());
    rds.add_key_pair(rds.credentials().clone());
    drop(pool.get().unwrap());
}

/// Has another key pair at each call.
#[derive(Debug)]
struct Rotating(Arc<AtomicUsize>);

impl ProvideCredentials for Rotating {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let id = format!("AKIA{}", self.0.fetch_add(1, Ordering::SeqCst));
        future::ProvideCredentials::ready(Ok(Credentials::new(id, "secret", None, None, "test")))
    }
}

#[test]
fn a_rotated_key_pair_is_tried_behind_a_proxy_too() {
    let refusal = error_response("28000", "IAM authentication failed for the role app");
    let proxy = FakePostgres::start(-1..1, refusal);
    let url = format!(
        "host=localhost port={} user=app dbname=app region_name=us-east-1 sslrootcert='{}'",
        proxy.port,
        proxy.roots.path().display()
    );
    let calls = Arc::new(AtomicUsize::new(0));
    let provider = Rotating(calls.clone());
    let manager = RdsConnectionManager::builder().credentials_provider(provider).build(url);
    let error = manager.unwrap().connect().map(drop).unwrap_err();
    assert_eq!(error.login_failure(), Some(LoginFailure::RefusedToken), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 2, "the cached pair, and the rotated one");
}
