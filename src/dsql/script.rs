//! [`Script`]: the statements of a migration.

use std::any::Any;

use diesel::connection::{BoxableConnection, SimpleConnection};
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::result::QueryResult;
use sha2::{Digest, Sha256};

use super::error::MigrationError;
use crate::connection::{Words, skip_comments, split};
use crate::error::{cut, one_line};
use crate::token::hex;

/// A migration that can run statement by statement.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) version: String,
    /// Without the comments before them.
    pub(super) statements: Vec<String>,
}

/// Reads all migrations, in the order of their versions.
pub(super) fn read(source: &impl MigrationSource<Pg>) -> Result<Vec<Script>, MigrationError> {
    let unreadable =
        |error| MigrationError::Unusable(format!("cannot read the migrations: {error}"));
    let migrations = source.migrations().map_err(unreadable)?;
    let scripts: Result<Vec<_>, _> = migrations.iter().map(|it| Script::of(&**it)).collect();
    let mut scripts = scripts.map_err(MigrationError::Unusable)?;
    scripts.sort_by(|one, other| one.version.cmp(&other.version));
    Ok(scripts)
}

impl Script {
    fn of(migration: &dyn Migration<Pg>) -> Result<Script, String> {
        let name = migration.name().to_string();
        let mut captured = Captured::default();
        let ran = migration.run(&mut captured).err().map(|error| error.to_string());
        if let Some(error) = ran.or(captured.0.is_empty().then(|| "it sends no SQL".into())) {
            return Err(format!(
                "migration {name} is not a file of SQL: {}; write it as up.sql",
                one_line(&error)
            ));
        }
        let statements = split(&captured.0).map(|text| skip_comments(text).trim_end().to_owned());
        let script = Script {
            version: migration.name().version().to_string(),
            statements: statements.filter(|text| !text.is_empty()).collect(),
            name,
        };
        match script.statements.iter().position(|text| starts_with(text, CONTROL)) {
            Some(number) => Err(format!(
                "migration {} controls a transaction, but each statement is one already; remove \
                 it, and write the body of a function as a string ($$...$$)",
                script.at(number)
            )),
            None => Ok(script),
        }
    }

    /// Returns which statement it is, for people.
    pub(super) fn at(&self, number: usize) -> String {
        let text = cut(one_line(&self.statements[number]), 60);
        format!("{}, statement {} of {} ({text})", self.name, number + 1, self.statements.len())
    }

    /// Returns a digest of the first `count` statements, or `None` if there are fewer.
    pub(super) fn digest(&self, count: usize) -> Option<String> {
        let mut digest = Sha256::new();
        for statement in self.statements.get(..count)? {
            digest.update(statement);
            digest.update([0]);
        }
        Some(hex(&digest.finalize()))
    }
}

const CONTROL: &str = "BEGIN START SAVEPOINT COMMIT END ROLLBACK ABORT RELEASE PREPARE";
const NOT_DDL: &str = "INSERT UPDATE DELETE MERGE WITH SELECT VALUES";

/// Whether the first word of a statement is one of `words`.
fn starts_with(statement: &str, words: &str) -> bool {
    let first = Words(statement).next().unwrap_or_default();
    words.split(' ').any(|word| first.eq_ignore_ascii_case(word))
}

/// Whether the statement must be a transaction alone.
pub(super) fn is_ddl(statement: &str) -> bool {
    !starts_with(statement, NOT_DDL)
}

/// `CREATE INDEX ASYNC`, `ALTER TABLE ASYNC`: a job continues it.
pub(super) fn is_async(statement: &str) -> bool {
    is_ddl(statement) && Words(statement).take(4).any(|word| word.eq_ignore_ascii_case("ASYNC"))
}

/// Whether this answer to a repeated statement shows that it was executed before. If it may, but
/// does not show it, returns `None`. diesel does not report the SQLSTATE, and DSQL speaks English.
pub(super) fn is_done(statement: &str, answer: &str) -> Option<bool> {
    let (exists, is_gone) = (answer.contains("already exists"), answer.contains("does not exist"));
    match () {
        () if !exists && !is_gone => Some(false),
        // The index is there, and its job is not known.
        () if is_async(statement) => None,
        () if exists && starts_with(statement, "CREATE ALTER") => Some(true),
        () if is_gone && starts_with(statement, "DROP") => Some(true),
        () => None,
    }
}

/// A connection to nowhere. A migration of SQL files gives it the text of its file, which the
/// trait of a migration does not show.
#[derive(Default)]
struct Captured(String);

impl SimpleConnection for Captured {
    fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.0.push_str(query);
        self.0.push_str("\n;");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_decide_how_a_statement_runs() {
        let cases = [
            ("CREATE TABLE t (id INT)", true, false),
            ("/* a */ create unique index async i on t (a)", true, true),
            ("ALTER TABLE ASYNC t VALIDATE CONSTRAINT c", true, true),
            ("GRANT SELECT ON t TO app", true, false),
            ("insert into async values (1)", false, false),
            ("WITH a AS (SELECT 1) DELETE FROM t", false, false),
        ];
        for (statement, ddl, with_job) in cases {
            assert_eq!((is_ddl(statement), is_async(statement)), (ddl, with_job), "{statement}");
        }
    }

    #[test]
    fn an_answer_shows_that_a_repeated_statement_was_executed_or_does_not() {
        let (exists, gone) = ("relation \"t\" already exists", "table \"t\" does not exist");
        let cases = [
            ("CREATE TABLE t (id INT)", exists, Some(true)),
            ("ALTER TABLE t ADD a INT", exists, Some(true)),
            ("DROP TABLE t", gone, Some(true)),
            ("CREATE TABLE t (id x)", "type \"x\" does not exist", None),
            ("ALTER TABLE t RENAME TO u", gone, None),
            ("CREATE INDEX ASYNC i ON t (a)", exists, None),
            ("CREATE TABLE t (id INT)", "permission denied for schema public", Some(false)),
        ];
        for (statement, answer, expected) in cases {
            assert_eq!(is_done(statement, answer), expected, "{statement}: {answer}");
        }
    }
}
