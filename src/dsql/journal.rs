//! [`Journal`]: the row that excludes other programs and holds the progress of a migration.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::{now, sql};
use diesel::migration::MigrationConnection;
use diesel::prelude::*;
use diesel::result::Error as QueryError;
use diesel::sql_types::{Nullable, Text, Timestamptz};

use super::error::MigrationError;
use super::script::{Script, Statement};
use crate::connection::Failure;

/// Longer than a DDL statement of Aurora DSQL, which takes seconds. Its indexes are made by jobs.
const LEASE: &str = "now() + interval '2 minutes'";
const RENEWAL: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 8;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS __diesel_dsql_migrations (
    id INTEGER PRIMARY KEY, holder TEXT, expires_at TIMESTAMPTZ NOT NULL, version TEXT,
    executed INTEGER NOT NULL, is_started BOOLEAN NOT NULL, digest TEXT NOT NULL, job TEXT)";
const INSERT: &str = "INSERT INTO __diesel_dsql_migrations VALUES
    (1, NULL, now(), NULL, 0, false, '', NULL) ON CONFLICT DO NOTHING";

diesel::table! {
    __diesel_dsql_migrations (id) {
        id -> Integer,
        holder -> Nullable<Text>,
        expires_at -> Timestamptz,
        version -> Nullable<Text>,
        executed -> Integer,
        is_started -> Bool,
        digest -> Text,
        job -> Nullable<Text>,
    }
}
use __diesel_dsql_migrations as row;

diesel::table! {
    __diesel_schema_migrations (version) {
        version -> Text,
    }
}
use __diesel_schema_migrations as applied;

pub(super) struct Journal {
    holder: String,
    progress: Progress,
    renewed: Instant,
}

/// The progress of the migration that runs, or was interrupted.
#[derive(Debug, Clone, Default, PartialEq, Queryable, Selectable, AsChangeset)]
#[diesel(table_name = __diesel_dsql_migrations, treat_none_as_null = true)]
struct Progress {
    version: Option<String>,
    executed: i32,
    /// The next statement was sent, and its outcome is not recorded.
    is_started: bool,
    /// Of the statements that were executed or started.
    digest: String,
    /// The job that continues the last statement.
    job: Option<String>,
}

impl Journal {
    /// Waits until no other program runs migrations.
    pub(super) fn open(connection: &mut PgConnection) -> QueryResult<Journal> {
        let mut create = || {
            connection.setup()?;
            connection.batch_execute(CREATE)?;
            connection.batch_execute(INSERT)
        };
        // On PostgreSQL, two programs that create a table at once can meet in the catalog.
        retried(&mut create).or_else(|_| retried(&mut create))?;
        let holder = format!("process {}, {:08x}", std::process::id(), fastrand::u32(..));
        let free = row::holder.is_null().or(row::expires_at.lt(now));
        let take = diesel::update(row::table.find(1).filter(free))
            .set((row::holder.eq(&holder), row::expires_at.eq(sql::<Timestamptz>(LEASE))))
            .returning(Progress::as_returning());
        let mut has_waited = false;
        loop {
            if let Some(progress) = retried(|| take.clone().get_result(connection).optional())? {
                return Ok(Journal { holder, progress, renewed: Instant::now() });
            }
            if !std::mem::replace(&mut has_waited, true) {
                log::info!("another program runs migrations; waiting for it");
            }
            thread::sleep(POLL);
        }
    }

    /// Lets others run migrations. If this fails, they can when the lease has expired.
    pub(super) fn close(self, connection: &mut PgConnection) {
        let ours = row::table.filter(row::holder.eq(&self.holder));
        let free = diesel::update(ours).set(row::holder.eq(None::<String>));
        if let Err(error) = retried(|| free.clone().execute(connection)) {
            log::debug!("the lock of the migrations was not released: {error}");
        }
    }

    /// Puts an interrupted migration first. Its statements must be the same as before.
    pub(super) fn check(
        &mut self,
        scripts: &mut [Script],
        applied: &HashSet<String>,
    ) -> Result<(), MigrationError> {
        let Progress { version: Some(version), executed, is_started, digest, .. } = &self.progress
        else {
            return Ok(());
        };
        if applied.contains(version) {
            self.progress = Progress::default();
            return Ok(());
        }
        let count = index(*executed) + usize::from(*is_started);
        scripts.sort_by_key(|script| script.version != *version);
        match scripts.first().filter(|script| script.version == *version) {
            Some(script) if script.digest(count).as_ref() == Some(digest) => Ok(()),
            _ => Err(MigrationError::Changed { version: version.clone(), executed: *executed }),
        }
    }

    /// Returns how many statements of a migration were executed.
    pub(super) fn executed(&self, script: &Script) -> usize {
        let is_current = self.progress.version.as_ref() == Some(&script.version);
        if is_current { index(self.progress.executed) } else { 0 }
    }

    /// Records that a statement will be sent. Returns whether it was sent before.
    pub(super) fn start(
        &mut self,
        script: &Script,
        number: usize,
        connection: &mut PgConnection,
    ) -> Result<bool, MigrationError> {
        let is_repeated = self.progress.is_started;
        self.save(Progress { is_started: true, ..at(script, number, 1) }, connection)?;
        Ok(is_repeated)
    }

    /// Records that a statement was not executed.
    pub(super) fn undo(
        &mut self,
        script: &Script,
        number: usize,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        self.save(at(script, number, 0), connection)
    }

    /// Records that a statement was executed, and waits for its job.
    pub(super) fn end(
        &mut self,
        script: &Script,
        number: usize,
        job: Option<String>,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        self.save(Progress { job, ..at(script, number + 1, 0) }, connection)?;
        self.wait(script, connection)
    }

    /// Waits for the job of the last statement, if it has one.
    pub(super) fn wait(
        &mut self,
        script: &Script,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        let Some(job) = self.progress.job.clone() else { return Ok(()) };
        let number = index(self.progress.executed) - 1;
        loop {
            let (status, details) = retried(|| state_of(&job, connection))?;
            match status.as_str() {
                "completed" => return self.save(at(script, number + 1, 0), connection),
                "submitted" | "processing" => {}
                _ => {
                    self.undo(script, number, connection)?;
                    let at = script.at(number);
                    return Err(MigrationError::Job { at, job, status, details });
                }
            }
            if self.renewed.elapsed() > RENEWAL {
                self.save(self.progress.clone(), connection)?;
            }
            thread::sleep(POLL);
        }
    }

    /// Executes a statement in the transaction that records it.
    pub(super) fn execute(
        &mut self,
        script: &Script,
        number: usize,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        let next = at(script, number + 1, 0);
        let both = || {
            connection.transaction(|connection| {
                connection.batch_execute(&script.statements[number].text)?;
                self.write(&next, connection)
            })
        };
        match retried(both) {
            Err(QueryError::RollbackTransaction) => return Err(MigrationError::Taken),
            Err(cause) => return Err(MigrationError::Statement { at: script.at(number), cause }),
            Ok(()) => self.saved(next),
        }
        Ok(())
    }

    /// Adds the row of diesel's own harness.
    pub(super) fn finish(
        &mut self,
        script: &Script,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        let insert =
            diesel::insert_into(applied::table).values(applied::version.eq(&script.version));
        let both = || {
            connection.transaction(|connection| {
                insert.execute(connection)?;
                self.write(&Progress::default(), connection)
            })
        };
        retried(both).map_err(bookkeeping)?;
        self.saved(Progress::default());
        Ok(())
    }

    fn save(
        &mut self,
        progress: Progress,
        connection: &mut PgConnection,
    ) -> Result<(), MigrationError> {
        retried(|| self.write(&progress, connection)).map_err(bookkeeping)?;
        self.saved(progress);
        Ok(())
    }

    fn saved(&mut self, progress: Progress) {
        (self.progress, self.renewed) = (progress, Instant::now());
    }

    /// Fails with `RollbackTransaction` if the lock is another program's.
    fn write(&self, progress: &Progress, connection: &mut PgConnection) -> QueryResult<()> {
        let ours = row::table.filter(row::holder.eq(&self.holder));
        let count = diesel::update(ours)
            .set((progress, row::expires_at.eq(sql::<Timestamptz>(LEASE))))
            .execute(connection)?;
        if count == 1 { Ok(()) } else { Err(QueryError::RollbackTransaction) }
    }
}

fn bookkeeping(error: QueryError) -> MigrationError {
    match error {
        QueryError::RollbackTransaction => MigrationError::Taken,
        error => MigrationError::Bookkeeping(error),
    }
}

/// Returns the progress after `executed` statements, with the digest of `started` more.
fn at(script: &Script, executed: usize, started: usize) -> Progress {
    Progress {
        version: Some(script.version.clone()),
        executed: i32::try_from(executed).unwrap_or(i32::MAX),
        is_started: false,
        digest: script.digest(executed + started).unwrap_or_default(),
        job: None,
    }
}

fn index(executed: i32) -> usize {
    usize::try_from(executed).unwrap_or_default()
}

pub(super) fn applied(connection: &mut PgConnection) -> QueryResult<Vec<String>> {
    retried(|| applied::table.select(applied::version).load(connection))
}

/// Sends a DDL statement. Returns the id of its job, if it has one.
pub(super) fn execute(
    statement: &Statement,
    connection: &mut PgConnection,
) -> QueryResult<Option<String>> {
    if !statement.is_async() {
        return connection.batch_execute(&statement.text).map(|()| None);
    }
    let ids: Vec<JobId> = diesel::sql_query(&statement.text).load(connection)?;
    Ok(ids.into_iter().find_map(|row| row.job_id))
}

#[derive(QueryableByName)]
struct JobId {
    #[diesel(sql_type = Nullable<Text>)]
    job_id: Option<String>,
}

/// Returns the status of a job, and details.
fn state_of(job: &str, connection: &mut PgConnection) -> QueryResult<(String, String)> {
    let job = job.replace('\'', "''");
    let query = format!("SELECT status, details FROM sys.jobs WHERE job_id = '{job}'");
    let (status, details) =
        sql::<(Text, Nullable<Text>)>(&query).get_result::<(String, Option<String>)>(connection)?;
    Ok((status, details.unwrap_or_default()))
}

/// Repeats what met a conflict with another transaction, which includes a change of the schema.
pub(super) fn retried<T>(mut work: impl FnMut() -> QueryResult<T>) -> QueryResult<T> {
    for attempt in 1..ATTEMPTS {
        match work() {
            Err(error) if Failure::of(&error) == Failure::Conflict => {
                log::debug!("migrations: retried after {error}");
                thread::sleep(Duration::from_millis(fastrand::u64(5..50) * u64::from(attempt)));
            }
            outcome => return outcome,
        }
    }
    work()
}

pub(super) fn is_lost(error: &QueryError) -> bool {
    Failure::of(error) == Failure::ConnectionLost
}
