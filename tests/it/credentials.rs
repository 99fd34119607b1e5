//! The cache of AWS key pairs: when it calls its source, who waits for it, which pair stays in use.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result as ProviderResult, future};
use aws_smithy_async::time::TimeSource;
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Credentials, Error, RdsConnectionManager};
use tokio::sync::Semaphore;

use crate::support::{
    in_a_child, in_a_child_with_descriptors, last_verdict, log, minutes, refused, soon, start,
};

const URL: &str = "postgres://app@db.abc.eu-west-1.rds.amazonaws.com/app";

/// A source of credentials that counts its calls and returns what a closure returns.
#[derive(Clone)]
pub(crate) struct FakeSource {
    calls: Arc<AtomicUsize>,
    does: Arc<dyn Fn(usize) -> ProviderResult + Send + Sync>,
    takes: Duration,
    /// All calls but the first wait for a permit.
    gate: Arc<Semaphore>,
}

impl FakeSource {
    /// The argument is the number of calls before this one.
    pub(crate) fn new(
        does: impl Fn(usize) -> ProviderResult + Send + Sync + 'static,
    ) -> FakeSource {
        FakeSource {
            calls: Arc::default(),
            does: Arc::new(does),
            takes: Duration::ZERO,
            gate: Arc::new(Semaphore::new(1)),
        }
    }

    fn failing_after_the_first_call(end: SystemTime) -> FakeSource {
        FakeSource::new(move |number| match number {
            0 => Ok(numbered(0, Some(end))),
            _ => Err(CredentialsError::provider_error("the source is down")),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for FakeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeSource")
    }
}

impl ProvideCredentials for FakeSource {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let before = self.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(self.takes).await;
            let _open = if before > 0 { Some(self.gate.acquire().await.unwrap()) } else { None };
            (self.does)(before)
        })
    }
}

/// A clock that only the test moves, forward and back.
#[derive(Clone, Debug)]
pub(crate) struct WallClock(Arc<Mutex<SystemTime>>);

impl WallClock {
    pub(crate) fn new() -> WallClock {
        WallClock(Arc::new(Mutex::new(SystemTime::now())))
    }

    pub(crate) fn forward(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }

    fn back(&self, by: Duration) {
        *self.0.lock().unwrap() -= by;
    }
}

impl TimeSource for WallClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Credentials whose key id contains the number of the call that returned them.
pub(crate) fn numbered(number: usize, end: Option<SystemTime>) -> Credentials {
    Credentials::new(format!("AKIA{number}"), "local-rds-secret-told", None, end, "test")
}

fn manager(source: &FakeSource, clock: &WallClock) -> RdsConnectionManager {
    log();
    let builder = RdsConnectionManager::builder().credentials_provider(source.clone());
    builder
        .credentials_timeout(Duration::from_secs(5))
        .time_source(clock.clone())
        .build(URL)
        .unwrap()
}

/// Returns the number of the call whose credentials sign tokens now.
fn signs_with(manager: &RdsConnectionManager) -> usize {
    let token = manager.token().unwrap();
    let after = token.as_str().split_once("X-Amz-Credential=AKIA").unwrap().1;
    after.split_once("%2F").unwrap().0.parse().unwrap()
}

#[test]
fn while_they_are_valid_the_source_is_not_called_again() {
    let clock = WallClock::new();
    let end = clock.now() + minutes(60);
    let source = FakeSource::new(move |number| Ok(numbered(number, Some(end))));
    let manager = manager(&source, &clock);
    for _ in 0..100 {
        assert_eq!(signs_with(&manager), 0);
    }
    clock.forward(minutes(54));
    assert_eq!(signs_with(&manager), 0);
    assert_eq!(source.calls(), 1);
}

#[test]
fn two_hundred_threads_on_an_empty_cache_call_the_source_once() {
    let clock = WallClock::new();
    let mut source = FakeSource::new(|number| Ok(numbered(number, None)));
    source.takes = Duration::from_millis(300);
    let manager = manager(&source, &clock);
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| assert_eq!(signs_with(&manager), 0));
        }
    });
    assert_eq!(source.calls(), 1);
}

#[test]
fn near_their_expiry_they_are_refreshed_in_the_background() {
    let clock = WallClock::new();
    let now = clock.now();
    let mut source = FakeSource::new(move |number| {
        Ok(numbered(number, Some(now + minutes(60 * (number as u64 + 1)))))
    });
    source.gate = Arc::new(Semaphore::new(0));
    let manager = manager(&source, &clock);
    assert_eq!(signs_with(&manager), 0);
    clock.forward(minutes(58));
    // The source does not answer, and callers do not wait for it.
    for _ in 0..10 {
        assert_eq!(signs_with(&manager), 0);
    }
    source.gate.add_permits(1);
    soon("tokens are signed with key pair 1", || signs_with(&manager) == 1);
    assert_eq!(source.calls(), 2);
}

#[test]
fn a_failed_refresh_keeps_the_old_pair_and_backs_off() {
    let clock = WallClock::new();
    let end = clock.now() + minutes(60);
    let source = FakeSource::failing_after_the_first_call(end);
    let manager = manager(&source, &clock);
    assert_eq!(signs_with(&manager), 0);
    clock.forward(minutes(58));
    assert_eq!(signs_with(&manager), 0);
    soon("the source is called again", || source.calls() == 2);
    // The call fails soon. After that the source is not called for a second.
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        assert_eq!(signs_with(&manager), 0);
    }
    assert_eq!(source.calls(), 2);
    // The next failure belongs to the same streak. The pause after it is two seconds.
    soon("the 3rd call", || signs_with(&manager) == 0 && source.calls() == 3);
    let third = Instant::now();
    soon("the 4th call", || signs_with(&manager) == 0 && source.calls() == 4);
    assert!(third.elapsed() > Duration::from_secs(1), "{:?}", third.elapsed());
}

#[test]
fn a_streak_of_failures_logs_one_warning() {
    let shown = in_a_child(
        "credentials::a_failed_refresh_keeps_the_old_pair_and_backs_off",
        &[("RUST_LOG", "debug")],
    );
    let count = |text: &str| shown.lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        count(
            "could not refresh AWS credentials, still using the previous ones: the source is down"
        ),
        1,
        "{shown}"
    );
    assert!(count("could not get AWS credentials: the source is down (took") >= 1, "{shown}");
}

#[test]
fn an_expired_pair_never_signs_and_the_error_says_why_there_is_no_other() {
    let clock = WallClock::new();
    let end = clock.now() + minutes(60);
    let source = FakeSource::failing_after_the_first_call(end);
    let manager = manager(&source, &clock);
    assert_eq!(signs_with(&manager), 0);
    clock.forward(minutes(60));
    let text = manager.token().unwrap_err().to_string();
    assert!(
        text.starts_with("no AWS credentials: the source is down (the last ones expired at 20"),
        "{text}"
    );
}

#[test]
fn a_machine_that_slept_wakes_up_with_new_credentials() {
    let clock = WallClock::new();
    let now = clock.now();
    let source = FakeSource::new(move |number| {
        Ok(numbered(number, Some(now + minutes(60 * (10 * number as u64 + 1)))))
    });
    let manager = manager(&source, &clock);
    assert_eq!(signs_with(&manager), 0);
    clock.forward(minutes(8 * 60));
    assert_eq!(signs_with(&manager), 1);
}

#[test]
fn a_clock_that_was_set_back_does_not_prolong_credentials() {
    let clock = WallClock::new();
    let now = clock.now();
    let source = FakeSource::new(move |number| Ok(numbered(number, Some(now + minutes(60)))));
    let manager = manager(&source, &clock);
    assert_eq!(signs_with(&manager), 0);
    clock.back(minutes(120));
    soon("tokens are signed with key pair 1", || signs_with(&manager) == 1);
}

#[test]
fn each_thread_that_waits_for_a_hanging_source_gets_an_error_in_time() {
    let mut source = FakeSource::new(|number| Ok(numbered(number, None)));
    source.takes = Duration::from_secs(3600);
    let builder = RdsConnectionManager::builder().credentials_provider(source);
    let manager = builder.credentials_timeout(Duration::from_millis(300)).build(URL).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let error = manager.token().unwrap_err();
                assert!(matches!(error, Error::Credentials { .. }), "{error}");
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_source_that_panics_is_an_error_and_is_called_again() {
    let source = FakeSource::new(|number| {
        if number == 0 { panic!("a bug in the provider") } else { Ok(numbered(number, None)) }
    });
    let manager = manager(&source, &WallClock::new());
    let text = manager.token().unwrap_err().to_string();
    assert!(text.contains("panicked"), "{text}");
    assert_eq!(signs_with(&manager), 1);
}

#[test]
fn a_source_that_failed_is_called_again_at_once() {
    let source = FakeSource::new(|number| match number {
        0 => Err(CredentialsError::provider_error("not yet")),
        _ => Ok(numbered(number, None)),
    });
    let manager = manager(&source, &WallClock::new());
    assert!(manager.token().unwrap_err().to_string().contains("not yet"));
    assert_eq!(signs_with(&manager), 1);
}

#[test]
fn contradicting_settings_of_credentials_are_refused() {
    let source = FakeSource::new(|number| Ok(numbered(number, None)));
    let with_both =
        RdsConnectionManager::builder().credentials_provider(source).assume_role("arn").build(URL);
    assert!(
        with_both.unwrap_err().to_string().contains("assume_role exclude credentials_provider")
    );
    let without_role = RdsConnectionManager::builder().external_id("x").build(URL);
    assert!(without_role.unwrap_err().to_string().contains("the role's ARN is empty"));
}

#[test]
fn a_refused_pair_is_refreshed_once_and_the_new_one_is_used_once() {
    let rds = start(LocalRds::builder());
    rds.add_key_pair(numbered(1, None));
    let source = FakeSource::new(|number| Ok(numbered(number.min(1), None)));
    let manager = rds
        .manager_builder()
        .credentials_provider(source.clone())
        .build(rds.database_url())
        .unwrap();
    manager.connect().unwrap();
    assert_eq!(source.calls(), 2);
    let verdicts: Vec<_> = rds.attempts().into_iter().map(|attempt| attempt.verdict).collect();
    assert_eq!(verdicts, [Err(Refusal::UnknownKeyPair), Ok(())]);
}

#[test]
fn a_pair_that_stays_refused_costs_neither_logins_nor_calls() {
    let rds = start(LocalRds::builder());
    let source = FakeSource::new(|_| Ok(numbered(0, None)));
    let manager = rds
        .manager_builder()
        .credentials_provider(source.clone())
        .build(rds.database_url())
        .unwrap();
    for logins in 1..=5 {
        refused(&manager);
        assert_eq!(rds.attempts().len(), logins);
    }
    assert_eq!(source.calls(), 2);
}

#[test]
fn all_threads_that_were_refused_at_once_get_the_new_pair() {
    let rds = start(LocalRds::builder());
    rds.add_key_pair(numbered(1, None));
    let mut source = FakeSource::new(|number| Ok(numbered(number.min(1), None)));
    // All threads are refused before the source answers.
    source.takes = Duration::from_millis(500);
    let manager = rds
        .manager_builder()
        .credentials_provider(source.clone())
        .build(rds.database_url())
        .unwrap();
    manager.token().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(manager.connect().unwrap()));
        }
    });
    assert_eq!(source.calls(), 2);
}

#[test]
fn a_second_rotation_soon_after_the_first_is_also_used() {
    let rds = start(LocalRds::builder());
    let newest = Arc::new(AtomicUsize::new(0));
    let current = newest.clone();
    let source = FakeSource::new(move |_| Ok(numbered(current.load(Ordering::SeqCst), None)));
    let manager =
        rds.manager_builder().credentials_provider(source).build(rds.database_url()).unwrap();
    for number in 0..4 {
        newest.store(number, Ordering::SeqCst);
        rds.add_key_pair(numbered(number, None));
        manager.connect().unwrap();
        rds.revoke_key_pair(numbered(number, None).access_key_id());
    }
}

#[test]
fn a_source_that_fails_at_once_is_called_a_few_times_only() {
    let source = FakeSource::new(|_| Err(CredentialsError::provider_error("down")));
    let manager = manager(&source, &WallClock::new());
    let started = Instant::now();
    let mut errors = 0;
    while started.elapsed() < Duration::from_millis(500) {
        manager.token().unwrap_err();
        errors += 1;
    }
    assert!(errors > 100, "{errors} errors");
    assert!((2..=8).contains(&source.calls()), "{} calls", source.calls());
}

/// Once, the worker thread could not start without file descriptors, and all later callers hung.
#[test]
fn without_file_descriptors_a_token_is_an_error_until_there_are_some() {
    in_a_child_with_descriptors("credentials::out_of_descriptors", 64, &[]);
}

#[test]
#[ignore = "runs in a separate process, with few file descriptors"]
fn out_of_descriptors() {
    let source = FakeSource::new(|number| Ok(numbered(number, None)));
    let manager = manager(&source, &WallClock::new());
    let open = || std::fs::File::open("/dev/null");
    let files: Vec<_> = std::iter::from_fn(|| open().ok()).collect();
    for _ in 0..3 {
        let text = manager.token().unwrap_err().to_string();
        assert!(text.contains("could not start the credentials thread: "), "{text}");
    }
    drop(files);
    soon("a token can be signed", || manager.token().is_ok());
}

/// A logger can use the manager that it logs about without a deadlock.
#[test]
fn a_logger_may_use_the_manager() {
    in_a_child("credentials::logs_through_itself", &[]);
}

static LOGS_INTO: std::sync::OnceLock<RdsConnectionManager> = std::sync::OnceLock::new();

struct LogsIntoADatabase;

impl log::Log for LogsIntoADatabase {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("diesel_rds_iam::credentials") {
            let _ = LOGS_INTO.get().unwrap().token();
        }
    }

    fn flush(&self) {}
}

#[test]
#[ignore = "runs in a separate process, because a process has one logger"]
fn logs_through_itself() {
    log::set_logger(&LogsIntoADatabase).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let source = FakeSource::new(|number| Ok(numbered(number, None)));
    let builder = RdsConnectionManager::builder().credentials_provider(source);
    LOGS_INTO.set(builder.credentials_timeout(Duration::from_secs(2)).build(URL).unwrap()).unwrap();
    assert_eq!(signs_with(LOGS_INTO.get().unwrap()), 0);
}

#[test]
fn a_server_that_cannot_be_reached_causes_no_refresh() {
    let rds = start(LocalRds::builder());
    let source = FakeSource::new(|number| Ok(numbered(number, None)));
    let manager = rds
        .manager_builder()
        .credentials_provider(source.clone())
        .build(rds.database_url())
        .unwrap();
    drop(rds);
    refused(&manager);
    assert_eq!(source.calls(), 1);
}

#[test]
fn a_changed_credentials_file_is_used_without_a_restart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    in_a_child("credentials::after_the_file_has_changed", &[("AWS_SHARED_CREDENTIALS_FILE", path)]);
}

#[test]
#[ignore = "runs in a separate process, with a separate home folder"]
fn after_the_file_has_changed() {
    let rds = start(LocalRds::builder());
    let write = |key: &Credentials| {
        let keys = format!(
            "[default]\naws_access_key_id={}\naws_secret_access_key={}\n",
            key.access_key_id(),
            key.secret_access_key()
        );
        std::fs::write(std::env::var("AWS_SHARED_CREDENTIALS_FILE").unwrap(), keys).unwrap();
    };
    write(rds.credentials());
    let manager = RdsConnectionManager::new(rds.database_url()).unwrap();
    manager.connect().unwrap();
    rds.revoke_key_pair(rds.credentials().access_key_id());
    rds.add_key_pair(numbered(1, None));
    write(&numbered(1, None));
    manager.connect().unwrap();
    assert_eq!(last_verdict(&rds), Ok(()));
}

/// Returns how many threads of this process are ours.
#[cfg(target_os = "linux")]
fn workers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("comm"))
    };
    tasks.filter_map(|task| name(task).ok()).filter(|name| name.starts_with("rds-iam")).count()
}

#[test]
#[cfg(target_os = "linux")]
fn a_hundred_managers_have_one_thread_that_ends_with_them() {
    in_a_child(
        "credentials::one_thread",
        &[("AWS_ACCESS_KEY_ID", "AKIA7"), ("AWS_SECRET_ACCESS_KEY", "local-rds-secret-told")],
    );
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "runs in a separate process, because it counts threads"]
fn one_thread() {
    let managers: Vec<_> = (0..100).map(|_| RdsConnectionManager::new(URL).unwrap()).collect();
    assert_eq!(workers(), 0, "a thread before the first token");
    assert!(managers.iter().all(|manager| signs_with(manager) == 7));
    // One manager per tenant, each with another source.
    let source = || FakeSource::new(|number| Ok(numbered(number, None)));
    let tenants: Vec<_> = (0..20)
        .map(|_| RdsConnectionManager::builder().credentials_provider(source()).build(URL).unwrap())
        .collect();
    assert!(tenants.iter().all(|manager| signs_with(manager) == 0));
    assert_eq!(workers(), 1);
    drop(managers);
    drop(tenants);
    soon("the worker threads end", || workers() == 0);
    // A new thread starts when it is needed.
    let manager = RdsConnectionManager::new(URL).unwrap();
    assert_eq!(signs_with(&manager), 7);
    assert_eq!(workers(), 1);
}

/// What a program does with a manager, on any thread.
fn build_connect_and_drop(rds: &LocalRds) {
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    manager.token().unwrap();
    manager.connect().unwrap();
    drop(manager);
    // This reads the region from the AWS configuration, which needs a runtime.
    let _ = RdsConnectionManager::new("postgres://app@db.example.com/app");
}

#[test]
fn a_manager_works_on_a_plain_thread() {
    let rds = start(LocalRds::builder());
    thread::scope(|scope| scope.spawn(|| build_connect_and_drop(&rds)).join().unwrap());
}

#[test]
fn a_manager_works_in_spawn_blocking() {
    let rds = start(LocalRds::builder());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::task::spawn_blocking(move || build_connect_and_drop(&rds)).await.unwrap()
    });
}

#[test]
fn a_manager_works_in_a_current_thread_runtime() {
    let rds = start(LocalRds::builder());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { build_connect_and_drop(&rds) });
}

#[test]
fn a_manager_works_in_a_multi_thread_runtime() {
    let rds = start(LocalRds::builder());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::spawn(async move { build_connect_and_drop(&rds) }).await.unwrap()
    });
}
