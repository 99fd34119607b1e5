//! [`Journal`]: the row that excludes other programs and holds the progress of a migration.

use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::{now, sql};
use diesel::migration::CREATE_MIGRATIONS_TABLE;
use diesel::prelude::*;
use diesel::result::Error as QueryError;
use diesel::sql_types::{Nullable, Text, Timestamptz};

use super::error::MigrationError;
use super::script::{Script, is_async};
use crate::connection::Failure;

/// Longer than a DDL statement of Aurora DSQL, which takes seconds. Its indexes are made by jobs.
const LEASE: &str = "now() + interval '2 minutes'";
/// Between attempts to get the lock, and between looks at a job.
const POLL: Duration = Duration::from_secs(1);
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

diesel::table! { __diesel_schema_migrations (version) { version -> Text } }
use __diesel_schema_migrations as recorded;

pub(super) struct Journal<'a> {
    connection: &'a mut PgConnection,
    holder: String,
    progress: Progress,
}

/// The progress of the migration that runs, or was interrupted.
#[derive(Debug, Clone, Default, PartialEq, Queryable, Selectable, AsChangeset)]
#[diesel(table_name = __diesel_dsql_migrations, treat_none_as_null = true)]
pub(super) struct Progress {
    pub(super) version: Option<String>,
    pub(super) executed: i32,
    /// The next statement was sent, and its outcome is not recorded.
    pub(super) is_started: bool,
    /// Of the statements that were executed or started.
    pub(super) digest: String,
    /// The job that continues the last statement.
    pub(super) job: Option<String>,
}

impl Progress {
    /// The progress after `executed` statements, with the digest of the first `known`.
    pub(super) fn after(executed: usize, known: usize, script: &Script) -> Progress {
        Progress {
            version: Some(script.version.clone()),
            executed: i32::try_from(executed).unwrap_or(i32::MAX),
            digest: script.digest(known).unwrap_or_default(),
            ..Progress::default()
        }
    }

    fn executed(&self) -> usize {
        usize::try_from(self.executed).unwrap_or_default()
    }
}

impl Journal<'_> {
    /// Waits until no other program runs migrations.
    pub(super) fn open(connection: &mut PgConnection) -> QueryResult<Journal<'_>> {
        for statement in [CREATE_MIGRATIONS_TABLE, CREATE, INSERT] {
            let mut execute = || retried(|| connection.batch_execute(statement));
            // On PostgreSQL, two programs that create a table at once can meet in the catalog.
            execute().or_else(|_| execute())?;
        }
        let holder = format!("process {}, {:08x}", std::process::id(), fastrand::u32(..));
        let free = row::holder.is_null().or(row::expires_at.lt(now));
        let take = diesel::update(row::table.find(1).filter(free))
            .set((row::holder.eq(&holder), row::expires_at.eq(sql::<Timestamptz>(LEASE))))
            .returning(Progress::as_returning());
        let mut has_waited = false;
        loop {
            if let Some(progress) = retried(|| take.clone().get_result(connection).optional())? {
                return Ok(Journal { connection, holder, progress });
            }
            if !std::mem::replace(&mut has_waited, true) {
                log::info!("another program runs migrations; waiting for it");
            }
            thread::sleep(POLL);
        }
    }

    /// Lets others run migrations. If this fails, they can when the lease has expired.
    pub(super) fn close(self) {
        let ours = row::table.filter(row::holder.eq(self.holder));
        let free = diesel::update(ours).set(row::holder.eq(None::<String>));
        if let Err(error) = retried(|| free.clone().execute(self.connection)) {
            log::debug!("the lock of the migrations was not released: {error}");
        }
    }

    /// Returns the migrations that are not recorded yet, an interrupted one first.
    pub(super) fn pending(
        &mut self,
        mut scripts: Vec<Script>,
    ) -> Result<Vec<Script>, MigrationError> {
        let recorded: Vec<String> =
            retried(|| recorded::table.select(recorded::version).load(self.connection))?;
        scripts.retain(|script| !recorded.contains(&script.version));
        let Progress { version: Some(version), is_started, digest, .. } = &self.progress else {
            return Ok(scripts);
        };
        if recorded.contains(version) {
            self.progress = Progress::default();
            return Ok(scripts);
        }
        let count = self.progress.executed() + usize::from(*is_started);
        scripts.sort_by_key(|script| script.version != *version);
        let first = scripts.first().filter(|script| script.version == *version);
        if first.and_then(|script| script.digest(count)).as_ref() == Some(digest) {
            return Ok(scripts);
        }
        Err(MigrationError::Unusable(format!(
            "migration {version} was interrupted after statement {count}, and was changed since; \
             restore it, or undo its statements by hand and then run UPDATE \
             __diesel_dsql_migrations SET version = NULL"
        )))
    }

    /// Returns how many statements of a migration were executed.
    pub(super) fn executed(&self, script: &Script) -> usize {
        let is_current = self.progress.version.as_ref() == Some(&script.version);
        if is_current { self.progress.executed() } else { 0 }
    }

    /// Whether the next statement was sent before.
    pub(super) fn is_started(&self) -> bool {
        self.progress.is_started
    }

    pub(super) fn record(&mut self, progress: Progress) -> Result<(), MigrationError> {
        self.record_with(progress, |_| Ok(()))?.map_err(MigrationError::Bookkeeping)
    }

    /// Executes a statement in the transaction that records it.
    pub(super) fn execute(
        &mut self,
        statement: &str,
        progress: Progress,
    ) -> Result<QueryResult<()>, MigrationError> {
        self.record_with(progress, |connection| connection.batch_execute(statement))
    }

    /// Adds the row of diesel's own harness.
    pub(super) fn finish(&mut self, script: &Script) -> Result<(), MigrationError> {
        let row = recorded::version.eq(&script.version);
        let insert = diesel::insert_into(recorded::table).values(row);
        self.record_with(Progress::default(), |it| insert.execute(it).map(drop))?
            .map_err(MigrationError::Bookkeeping)
    }

    fn record_with(
        &mut self,
        progress: Progress,
        mut work: impl FnMut(&mut PgConnection) -> QueryResult<()>,
    ) -> Result<QueryResult<()>, MigrationError> {
        let update = diesel::update(row::table.filter(row::holder.eq(&self.holder)))
            .set((&progress, row::expires_at.eq(sql::<Timestamptz>(LEASE))));
        let recorded = retried(|| {
            self.connection.transaction(|connection| {
                work(connection)?;
                match update.clone().execute(connection)? {
                    0 => Err(QueryError::RollbackTransaction),
                    _ => Ok(()),
                }
            })
        });
        match recorded {
            Err(QueryError::RollbackTransaction) => return Err(MigrationError::Taken),
            Ok(()) => self.progress = progress,
            Err(_) => {}
        }
        Ok(recorded)
    }

    /// Sends a DDL statement. Returns the id of its job, if it has one.
    pub(super) fn send(&mut self, statement: &str) -> QueryResult<Option<String>> {
        retried(|| {
            if !is_async(statement) {
                return self.connection.batch_execute(statement).map(|()| None);
            }
            let jobs: Vec<Option<String>> =
                sql::<Nullable<Text>>(statement).load(self.connection)?;
            Ok(jobs.into_iter().flatten().next())
        })
    }

    /// Waits for the job of the last statement, if it has one.
    pub(super) fn wait(&mut self, script: &Script) -> Result<(), MigrationError> {
        while let Some(job) = self.progress.job.clone() {
            let executed = self.progress.executed();
            let (status, details) = retried(|| state_of(&job, self.connection))?;
            match status.as_str() {
                "completed" => self.record(Progress::after(executed, executed, script))?,
                "submitted" | "processing" => {
                    self.record(self.progress.clone())?;
                    thread::sleep(POLL);
                }
                _ => {
                    self.record(Progress::after(executed - 1, executed - 1, script))?;
                    let details = format!("{status}: {details}");
                    return Err(MigrationError::Job { at: script.at(executed - 1), details });
                }
            }
        }
        Ok(())
    }
}

/// Returns the status of a job, and details.
fn state_of(job: &str, connection: &mut PgConnection) -> QueryResult<(String, String)> {
    let job = job.replace('\'', "''");
    let query = format!("SELECT status, details FROM sys.jobs WHERE job_id = '{job}'");
    let (status, details) =
        sql::<(Text, Nullable<Text>)>(&query).get_result::<(_, Option<String>)>(connection)?;
    Ok((status, details.unwrap_or_default()))
}

/// Repeats what met a conflict with another transaction, which includes a change of the schema.
fn retried<T>(mut work: impl FnMut() -> QueryResult<T>) -> QueryResult<T> {
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
