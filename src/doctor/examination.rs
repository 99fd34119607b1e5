//! [`Examination`]: the way of a login, step by step.

use std::sync::Arc;
use std::time::Instant;

use aws_credential_types::Credentials;

use super::evidence::Evidence;
use super::login::Attempt;
use super::step::Finding;
use super::symptom::Symptom;
use super::tls::Rules;
use super::{Diagnosis, LIBPQ, Report, Step};
use super::{checks, diagnose};
use crate::conninfo::ConnectionString;
use crate::error::{Error, one_line};
use crate::login::{Iam, Login, Target};

/// The steps so far, and who hears of each.
pub(super) struct Examination<'a> {
    pub(super) report: Report,
    pub(super) tell: &'a mut dyn FnMut(&Step),
}

impl Examination<'_> {
    pub(super) fn through(&mut self, login: &Arc<Login>) {
        match &**login {
            Login::Iam(iam) => self.by_token(login, iam),
            Login::Password(password) => self.by_password(login, &password.conninfo),
        }
    }

    fn by_token(&mut self, login: &Arc<Login>, iam: &Iam) {
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
        let known = |target| Evidence {
            account: checks::account_of(&credentials),
            ..Evidence::new(target)
        };
        let mut is_let_in = false;
        for target in &iam.targets {
            is_let_in |= self.host(iam, target, &credentials, known(target)).is_some();
        }
        if is_let_in {
            self.by_libpq(login, |error| diagnose(error, &known(&iam.targets[0])));
        }
    }

    /// With `rds_iam_auth=false` there is neither a region nor a token, and libpq does all the
    /// rest.
    fn by_password(&mut self, login: &Arc<Login>, conninfo: &str) {
        self.step("connection string", None, || {
            Finding::new(Ok(())).with("IAM", "off (rds_iam_auth=false)")
        });
        let settings = ConnectionString::parse(conninfo)
            .and_then(|given| given.chosen_settings())
            .unwrap_or_default();
        let user = settings.get("user").cloned().unwrap_or_default();
        self.by_libpq(login, |error| match error {
            Error::Connect { cause, .. } => diagnose::judge_password(&one_line(cause), &user),
            other => Diagnosis::of(other),
        });
    }

    /// All steps of one host; none where it does not let us in.
    fn host(
        &mut self,
        iam: &Iam,
        target: &Target,
        credentials: &Credentials,
        mut known: Evidence,
    ) -> Option<()> {
        let addresses =
            self.step("DNS", Some(target), || checks::addresses(&target.host, &mut known))?;
        let address = self.step("TCP", Some(target), || checks::reach(&addresses, &known))?;
        let rules = Rules::new(&iam.conninfo);
        self.step("TLS", Some(target), || checks::certificate(address, &rules, &mut known))?;
        let token = self
            .step("token", Some(target), || checks::token(iam, target, credentials, &mut known))?;
        let (host, user) = (target.endpoint.host().to_owned(), target.user.clone());
        let attempt =
            Attempt { address, host, user, database: iam.conninfo.dbname().to_owned(), token };
        self.step("login", Some(target), || checks::login(attempt, &rules, &known))
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
        work: impl FnOnce() -> Finding<T>,
    ) -> Option<T> {
        let started = Instant::now();
        let Finding { facts, outcome } = work();
        let host = target.map(|target| target.host.to_string());
        let (result, outcome) = match outcome {
            Ok(result) => (Some(result), Ok(())),
            Err(diagnosis) => (None, Err(diagnosis)),
        };
        let step = Step { name, host, facts, outcome, took: started.elapsed() };
        (self.tell)(&step);
        self.report.steps.push(step);
        result
    }
}

fn diagnose(error: &Error, known: &Evidence) -> Diagnosis {
    match error {
        Error::Connect { cause, .. } => diagnose::judge(&Symptom::said(one_line(cause)), known),
        other => Diagnosis::of(other),
    }
}
