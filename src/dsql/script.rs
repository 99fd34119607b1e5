//! [`Script`]: the statements of a migration.

use std::any::Any;

use diesel::connection::{BoxableConnection, SimpleConnection};
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::result::{Error as QueryError, QueryResult};
use sha2::{Digest, Sha256};

use super::error::MigrationError;
use crate::connection::{Words, skip_comments, split};
use crate::error::one_line;
use crate::token::hex;

/// A migration that can run statement by statement.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) statements: Vec<Statement>,
}

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) text: String,
    first_words: Vec<String>,
}

/// Reads all migrations, in the order of their versions.
pub(super) fn read(source: &impl MigrationSource<Pg>) -> Result<Vec<Script>, MigrationError> {
    let migrations = source.migrations().map_err(MigrationError::Source)?;
    let mut scripts =
        migrations.iter().map(|it| Script::of(&**it)).collect::<Result<Vec<_>, _>>()?;
    scripts.sort_by(|one, other| one.version.cmp(&other.version));
    Ok(scripts)
}

impl Script {
    fn of(migration: &dyn Migration<Pg>) -> Result<Script, MigrationError> {
        let name = migration.name().to_string();
        let mut captured = Captured::default();
        if let Err(cause) = migration.run(&mut captured) {
            return Err(MigrationError::NotSql { name, cause });
        }
        if captured.text.is_empty() {
            return Err(MigrationError::NotSql { name, cause: "it sends no SQL".into() });
        }
        let statements = split(&captured.text).map(Statement::new);
        let script = Script {
            version: migration.name().version().to_string(),
            statements: statements.filter(|it| !it.first_words.is_empty()).collect(),
            name,
        };
        match script.statements.iter().position(Statement::is_control) {
            Some(number) => Err(MigrationError::Control { at: script.at(number) }),
            None => Ok(script),
        }
    }

    /// Returns which statement it is, for people.
    pub(super) fn at(&self, number: usize) -> String {
        let mut text = one_line(&self.statements[number].text);
        if let Some((end, _)) = text.char_indices().nth(60) {
            text.replace_range(end.., "...");
        }
        format!("{}, statement {} of {} ({text})", self.name, number + 1, self.statements.len())
    }

    /// Returns a digest of the first `count` statements, or `None` if there are fewer.
    pub(super) fn digest(&self, count: usize) -> Option<String> {
        let mut digest = Sha256::new();
        for statement in self.statements.get(..count)? {
            digest.update(&statement.text);
            digest.update([0]);
        }
        Some(hex(&digest.finalize()))
    }
}

impl Statement {
    fn new(text: &str) -> Statement {
        let text = skip_comments(text).trim_end();
        let first_words = Words(text).take(4).map(str::to_ascii_uppercase).collect();
        Statement { text: text.to_owned(), first_words }
    }

    fn starts_with(&self, words: &[&str]) -> bool {
        words.contains(&self.first_words[0].as_str())
    }

    /// Whether it must be a transaction alone.
    pub(super) fn is_ddl(&self) -> bool {
        !self.starts_with(&["INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "SELECT", "VALUES"])
    }

    /// `CREATE INDEX ASYNC`, `ALTER TABLE ASYNC`: a job continues it.
    pub(super) fn is_async(&self) -> bool {
        self.first_words.iter().any(|word| word == "ASYNC")
    }

    fn is_control(&self) -> bool {
        let ends = ["COMMIT", "END", "ROLLBACK", "ABORT", "RELEASE", "PREPARE"];
        self.starts_with(&["BEGIN", "START", "SAVEPOINT"]) || self.starts_with(&ends)
    }

    /// Whether this answer to the repeated statement shows that it was executed before.
    pub(super) fn is_done_by(&self, error: &QueryError) -> bool {
        match self.first_words[0].as_str() {
            // The index is there, and its job is not known.
            _ if self.is_async() => false,
            "CREATE" | "ALTER" => says(error, "already exists"),
            "DROP" => says(error, "does not exist"),
            _ => false,
        }
    }
}

/// Whether the error can come from a statement that was executed before. diesel does not report
/// the SQLSTATE. Aurora DSQL speaks English only.
pub(super) fn is_of_repetition(error: &QueryError) -> bool {
    says(error, "already exists") || says(error, "does not exist")
}

fn says(error: &QueryError, text: &str) -> bool {
    matches!(error, QueryError::DatabaseError(_, information) if information.message().contains(text))
}

/// A connection to nowhere. A migration of SQL files gives it the text of its file, which the
/// trait of a migration does not show.
#[derive(Default)]
struct Captured {
    text: String,
}

impl SimpleConnection for Captured {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.text.push_str(query);
        self.text.push_str("\n;");
        Ok(())
    }
}

impl BoxableConnection<Pg> for Captured {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
