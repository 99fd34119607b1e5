//! [`Examination`]: the steps of a login, in their order and with their timeout.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;

use super::checks::{self, Attempt};
use super::diagnosis::{Diagnosis, Finding, Report, Step};
use super::evidence::{Evidence, Symptom};
use super::tls::Rules;
use super::{LIBPQ, diagnose, network};
use crate::conninfo::{ConnectionString, IamConninfo};
use crate::error::Error;
use crate::login::{Iam, Login, Target};

/// For one step.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Settings by which libpq refuses servers that native-tls and tokio-postgres accept.
const ONLY_BY_LIBPQ: &[&str] = &[
    "channel_binding",
    "require_auth",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
];

/// Files that libpq uses if they exist.
const FILES_OF_LIBPQ: &[&str] = &["root.crl", "postgresql.crt"];

/// The steps so far, and the function that gets each of them.
pub(super) struct Examination<'a> {
    report: Report,
    on_step: &'a mut dyn FnMut(&Step),
}

impl Examination<'_> {
    pub(super) fn run(login: &Arc<Login>, on_step: &mut dyn FnMut(&Step)) -> Report {
        let report = Report { user: None, steps: Vec::new() };
        let mut examination = Examination { report, on_step };
        match &**login {
            Login::Iam(iam) => examination.by_token(login, iam),
            Login::Password(password) => examination.by_password(login, &password.string),
        }
        examination.report
    }

    fn by_token(&mut self, login: &Arc<Login>, iam: &Iam) {
        self.report.user = Some(iam.conninfo.user().to_owned());
        self.step("connection string", None, || {
            Finding::new(Ok(())).with("settings", iam.conninfo.to_string())
        });
        for target in &iam.targets {
            self.step("region", Some(target), || checks::region(target));
        }
        let Some(credentials) = self.step("credentials", None, || checks::credentials(login))
        else {
            return;
        };
        let account = checks::account_of(&credentials);
        let evidence = |target| Evidence { account: account.clone(), ..Evidence::new(target) };
        let mut can_log_in = false;
        for target in &iam.targets {
            can_log_in |= self.host(iam, target, &credentials, evidence(target)).is_some();
        }
        if can_log_in {
            self.by_libpq(login, |error| by_token(error, &evidence(&iam.targets[0])));
        }
    }

    /// With `rds_iam_auth=false` there is no region and no token, and libpq does the rest.
    fn by_password(&mut self, login: &Arc<Login>, string: &ConnectionString) {
        let settings = string.chosen_settings().unwrap_or_default();
        let user = settings.get("user").cloned().unwrap_or_default();
        self.report.user = Some(user.clone());
        self.step("connection string", None, || {
            Finding::new(Ok(())).with("IAM", "off (rds_iam_auth=false)")
        });
        self.by_libpq(login, |error| match error {
            Error::Connect { cause, .. } => {
                diagnose::by_password(&Symptom::refused(cause.to_string()), &user)
            }
            other => Diagnosis::of(other),
        });
    }

    /// Takes all steps of one host. Returns `None` if one fails.
    fn host(
        &mut self,
        iam: &Iam,
        target: &Target,
        credentials: &Credentials,
        mut evidence: Evidence,
    ) -> Option<()> {
        let addresses =
            self.step("DNS", Some(target), || network::addresses(&target.host, &mut evidence))?;
        let address = self.step("TCP", Some(target), || network::tcp(&addresses, &evidence))?;
        let rules = Rules::new(&iam.conninfo);
        let only_by_libpq = only_by_libpq(&iam.conninfo);
        self.step("TLS", Some(target), || {
            let finding = checks::tls(address, &rules, &mut evidence);
            finding.with_list("checked by libpq only", &Vec::from_iter(&only_by_libpq), "")
        })?;
        let token = self.step("token", Some(target), || {
            checks::token(iam, target, credentials, &mut evidence)
        })?;
        if only_by_libpq.is_some() {
            return Some(());
        }
        let host = target.endpoint.host().to_owned();
        let database = iam.conninfo.dbname().to_owned();
        let attempt = Attempt { address, host, user: target.user.clone(), database, token };
        self.step("login", Some(target), || checks::login(attempt, &rules, &evidence))
    }

    /// As [`connect`](r2d2::ManageConnection::connect), once.
    fn by_libpq(&mut self, login: &Arc<Login>, diagnose: impl FnOnce(&Error) -> Diagnosis) {
        if let Some(connection) = self.step(LIBPQ, None, || checks::libpq(login, diagnose)) {
            self.step("session", None, || checks::session(connection));
        }
    }

    fn step<T>(
        &mut self,
        name: &'static str,
        target: Option<&Target>,
        check: impl FnOnce() -> Finding<T>,
    ) -> Option<T> {
        let started = Instant::now();
        let Finding { facts, outcome } = check();
        let host = target.map(|target| target.host.to_string());
        let (result, outcome) = match outcome {
            Ok(result) => (Some(result), Ok(())),
            Err(diagnosis) => (None, Err(diagnosis)),
        };
        let step = Step { name, host, facts, outcome, took: started.elapsed() };
        (self.on_step)(&step);
        self.report.steps.push(step);
        result
    }
}

/// Returns a setting or a file that only libpq applies. Then only libpq may send a token, because
/// it can refuse a server that passes all checks here.
fn only_by_libpq(conninfo: &IamConninfo) -> Option<String> {
    let settings = conninfo.for_others();
    let is_set = |keyword: &&&str| match settings.get(**keyword).map(String::as_str) {
        None | Some("") => false,
        // Our default. tokio-postgres answers SCRAM and MD5 too, but then no token is sent.
        Some(value) if **keyword == "require_auth" => value != "password",
        Some(_) => true,
    };
    let setting = ONLY_BY_LIBPQ.iter().find(is_set).map(|keyword| (*keyword).to_owned());
    let folder = std::env::home_dir().unwrap_or_default().join(".postgresql");
    let files = FILES_OF_LIBPQ.iter().map(|name| folder.join(name));
    setting.or_else(|| Some(files.into_iter().find(|it| it.exists())?.display().to_string()))
}

fn by_token(error: &Error, evidence: &Evidence) -> Diagnosis {
    match error {
        Error::Connect { cause, .. } => {
            diagnose::by_token(&Symptom::refused(cause.to_string()), evidence)
        }
        other => Diagnosis::of(other),
    }
}

/// Runs `work` on a new thread. Returns `None` if it does not end before the timeout. The thread
/// continues then, because the C library's resolver and libpq cannot be interrupted.
///
/// The caller can be inside of async code, where a thread must not block on a runtime.
pub(super) fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = mpsc::channel();
    // The receiver is gone after the timeout.
    let worker =
        thread::Builder::new().name("rds-iam-doctor".into()).spawn(move || drop(done.send(work())));
    worker.ok()?;
    result.recv_timeout(timeout).ok()
}

/// Runs async work on a new thread. The work ends with the timeout.
pub(super) fn within_async<T: Send + 'static, F>(
    timeout: Duration,
    work: impl FnOnce() -> F + Send + 'static,
) -> Option<T>
where
    F: Future<Output = T>,
{
    within(timeout, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async { tokio::time::timeout(timeout, work()).await.ok() })
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_end_is_abandoned() {
        let (end, never) = mpsc::channel::<()>();
        assert!(within(Duration::from_millis(1), move || never.recv()).is_none());
        drop(end);
        assert!(within_async(Duration::from_millis(1), std::future::pending::<()>).is_none());
        assert_eq!(within(TIMEOUT, || 1), Some(1));
    }
}
