//! What Aurora DSQL answers to a statement, by its text.
//!
//! The texts and SQLSTATEs are those of AWS' documentation and of published records of a cluster.
//! Where there is no record, the SQLSTATE is 0A000.

use super::table;
use super::tokens::Tokens;

/// An error of DSQL.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// What a statement means for the transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Kind {
    Begin,
    End,
    Ddl,
    Dml,
    #[default]
    Other,
}

/// What happens to a statement.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    Forward,
    Refuse(Refusal),
    /// PostgreSQL gets this statement instead.
    Replace(String),
}

pub(super) type Check = Result<(), Refusal>;

pub(super) fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code: "0A000", message: message.into() })
}

pub(super) fn kind(tokens: &Tokens<'_>) -> Kind {
    match tokens.word(0).as_str() {
        "BEGIN" | "START" => Kind::Begin,
        "COMMIT" | "END" | "ROLLBACK" | "ABORT" => Kind::End,
        "CREATE" | "ALTER" | "DROP" | "GRANT" | "REVOKE" | "COMMENT" | "AWS" => Kind::Ddl,
        "INSERT" | "UPDATE" | "DELETE" | "COPY" => Kind::Dml,
        "WITH" => kind_of_with(tokens),
        "EXPLAIN" if tokens.has("ANALYZE") => kind_of_with(tokens),
        _ => Kind::Other,
    }
}

/// A statement that writes can be anywhere behind WITH. `FOR UPDATE` does not write.
fn kind_of_with(tokens: &Tokens<'_>) -> Kind {
    let is_write = |at: usize| {
        ["INSERT INTO", "DELETE FROM"].iter().any(|words| tokens.is_at(at, words))
            || tokens.is_at(at, "UPDATE") && at > 0 && !tokens.is_at(at - 1, "FOR")
    };
    if (0..tokens.list().len()).any(is_write) { Kind::Dml } else { Kind::Other }
}

pub(super) fn plan(tokens: &Tokens<'_>) -> Plan {
    match check(tokens) {
        Err(refusal) => Plan::Refuse(refusal),
        Ok(()) => replacement(tokens).map_or(Plan::Forward, Plan::Replace),
    }
}

/// Returns what stands for a statement that PostgreSQL does not know.
fn replacement(tokens: &Tokens<'_>) -> Option<String> {
    // The ARN is not checked, because LocalRds trusts key pairs and no IAM roles.
    if let Some(role) = tokens.list().get(3).map(|token| token.text) {
        match () {
            () if tokens.is_at(0, "AWS IAM GRANT") => {
                return Some(format!("GRANT rds_iam TO {role}"));
            }
            () if tokens.is_at(0, "AWS IAM REVOKE") => {
                return Some(format!("REVOKE rds_iam FROM {role}"));
            }
            () => {}
        }
    }
    let (kind, tag) = match () {
        () if tokens.is_at(0, "CREATE INDEX ASYNC") || tokens.is_at(0, "CREATE UNIQUE INDEX") => {
            ("INDEX_BUILD", "CREATE INDEX")
        }
        () if tokens.is_at(0, "ALTER TABLE ASYNC") => ("VALIDATE_CONSTRAINT", "ALTER TABLE"),
        () => return None,
    };
    let keyword = tokens.list().get(tokens.find(0, "ASYNC")?)?;
    let (before, rest) = tokens.text.split_at(keyword.start);
    let statement = format!("{before}{}", &rest[keyword.text.len()..]).replace('\'', "''");
    // standard_conforming_strings cannot be turned off, so backslashes need no quotes.
    Some(format!("SELECT job_id FROM sys.local_rds_run('{statement}', '{kind}', '{tag}')"))
}

fn check(tokens: &Tokens<'_>) -> Check {
    match tokens.word(0).as_str() {
        "CREATE" => create(tokens)?,
        "ALTER" => alter(tokens)?,
        "DROP" => drop(tokens)?,
        "SET" => set(tokens)?,
        "BEGIN" | "START" => isolation(tokens)?,
        "ROLLBACK" if tokens.has("TO") => {
            refuse("unsupported transaction statement: ROLLBACK TO")?;
        }
        "COMMIT" | "ROLLBACK" if tokens.is_at(1, "PREPARED") => prepared()?,
        "PREPARE" if tokens.is_at(1, "TRANSACTION") => prepared()?,
        word @ ("SAVEPOINT" | "RELEASE") => {
            refuse(format!("unsupported transaction statement: {word}"))?;
        }
        "VACUUM" => refuse("unsupported VACUUM statement")?,
        "MERGE" => refuse("unsupported statement type: MERGE")?,
        word => {
            if let Some((_, name)) = STATEMENTS.iter().find(|(known, _)| *known == word) {
                refuse(format!("unsupported statement: {name}"))?;
            }
        }
    }
    clauses(tokens)?;
    functions(tokens)
}

/// Statements that do not exist, and their names in DSQL's errors.
const STATEMENTS: &[(&str, &str)] = &[
    ("TRUNCATE", "Truncate"),
    ("LISTEN", "Listen"),
    ("NOTIFY", "Notify"),
    ("UNLISTEN", "Unlisten"),
    ("LOCK", "Lock"),
    ("DO", "Do"),
    ("CLUSTER", "Cluster"),
    ("REINDEX", "Reindex"),
    ("CHECKPOINT", "CheckPoint"),
    ("LOAD", "Load"),
    ("SECURITY", "SecLabel"),
    ("IMPORT", "ImportForeignSchema"),
    ("REASSIGN", "ReassignOwned"),
];

fn prepared() -> Check {
    refuse("unsupported transaction statement: PREPARE TRANSACTION")
}

fn create(tokens: &Tokens<'_>) -> Check {
    let at = tokens.skip(1, "OR REPLACE");
    match tokens.word(at).as_str() {
        "TABLE" => table::create(tokens),
        "INDEX" | "UNIQUE" => index(tokens),
        "SEQUENCE" => cache(tokens, 2).map_err(|message| Refusal {
            code: "0A000",
            message: message.unwrap_or_else(|| explicit_cache("CREATE SEQUENCE")),
        }),
        "FUNCTION" => function(tokens),
        "VIEW" | "RECURSIVE" | "SCHEMA" | "ROLE" | "USER" | "DOMAIN" | "STATISTICS" => Ok(()),
        "TEMP" | "TEMPORARY" | "LOCAL" | "GLOBAL" => {
            refuse("TEMPORARY or TEMP table not supported for CREATE TABLE")
        }
        "UNLOGGED" => refuse("UNLOGGED table not supported for CREATE TABLE"),
        "MATERIALIZED" => refuse("unsupported statement: CreateTableAs"),
        "EXTENSION" => refuse("unsupported statement: CreateExtension"),
        "DATABASE" => refuse("unsupported statement: Createdb"),
        "TABLESPACE" => refuse("unsupported statement: CreateTableSpace"),
        "FOREIGN" => refuse("unsupported statement: CreateForeignTable"),
        "CONSTRAINT" => refuse("CREATE TRIGGER not supported"),
        other => refuse(format!("CREATE {other} not supported")),
    }
}

pub(super) fn explicit_cache(what: &str) -> String {
    format!(
        "{what} is not supported without an explicit cache size. please define CACHE greater than \
         or equal to 65536 or equal to 1"
    )
}

/// Checks that CACHE is 1 or at least 65536 in the tokens from `from` on that are at least as deep
/// as the first. `Err(None)` if it is missing.
pub(super) fn cache(tokens: &Tokens<'_>, from: usize) -> Result<(), Option<String>> {
    let depth = tokens.list().get(from).map_or(0, |token| token.depth);
    let mut inside = (from..tokens.list().len()).take_while(|at| tokens.list()[*at].depth >= depth);
    let Some(at) = inside.find(|at| tokens.is_at(*at, "CACHE")) else { return Err(None) };
    match tokens.word(at + 1).parse::<u64>() {
        Ok(1 | 65_536..) | Err(_) => Ok(()),
        Ok(_) => Err(Some("CACHE must be 1 or at least 65536".into())),
    }
}

fn index(tokens: &Tokens<'_>) -> Check {
    if tokens.has("CONCURRENTLY") {
        return refuse("CONCURRENTLY not supported for CREATE INDEX");
    }
    if tokens.has_outside("USING") {
        return refuse("USING not supported for CREATE INDEX");
    }
    if columns_of_index(tokens) > 8 {
        let message = "more than 8 column keys in an index are not supported".into();
        return Err(Refusal { code: "54011", message });
    }
    if tokens.is_at(2, "ASYNC") || tokens.is_at(3, "ASYNC") {
        return Ok(());
    }
    refuse("unsupported mode. please use CREATE INDEX ASYNC.")
}

fn columns_of_index(tokens: &Tokens<'_>) -> usize {
    let Some(open) = tokens.list().iter().position(|token| token.text == "(") else { return 0 };
    let inside = tokens.list()[open + 1..].iter().take_while(|token| token.depth > 0);
    1 + inside.filter(|token| token.depth == 1 && token.text == ",").count()
}

fn function(tokens: &Tokens<'_>) -> Check {
    let language = tokens.find(0, "LANGUAGE").map(|at| tokens.word(at + 1).to_ascii_lowercase());
    match language.as_deref().map(|name| name.trim_matches(['\'', '"'])) {
        None | Some("sql") => Ok(()),
        Some(other) => refuse(format!("CREATE FUNCTION with language {other} not supported")),
    }
}

fn alter(tokens: &Tokens<'_>) -> Check {
    match tokens.word(1).as_str() {
        "TABLE" => table::alter(tokens),
        "SEQUENCE" => match cache(tokens, 2) {
            Err(Some(message)) => refuse(message),
            _ => Ok(()),
        },
        "INDEX" | "VIEW" | "SCHEMA" | "ROLE" | "USER" | "FUNCTION" | "DOMAIN" | "STATISTICS"
        | "DEFAULT" | "CONSTRAINT" => Ok(()),
        "TYPE" if tokens.has("RENAME TO") => refuse("unsupported object in RENAME statement"),
        "SYSTEM" => refuse("unsupported statement: AlterSystem"),
        other => refuse(format!("ALTER {other} not supported")),
    }
}

fn drop(tokens: &Tokens<'_>) -> Check {
    match tokens.word(1).as_str() {
        "TABLE" | "INDEX" | "VIEW" | "SEQUENCE" | "SCHEMA" | "ROLE" | "USER" | "FUNCTION"
        | "DOMAIN" | "STATISTICS" => Ok(()),
        _ => refuse("unsupported object in DROP statement"),
    }
}

/// Settings that can be changed. Published records have only some of them.
const SETTINGS: &[&str] = &[
    "APPLICATION_NAME",
    "BYTEA_OUTPUT",
    "CLIENT_ENCODING",
    "CONSTRAINTS",
    "DATESTYLE",
    "EXTRA_FLOAT_DIGITS",
    "INTERVALSTYLE",
    "NAMES",
    "SEARCH_PATH",
    "TIME",
    "TIMEZONE",
];

fn set(tokens: &Tokens<'_>) -> Check {
    if tokens.is_at(1, "TRANSACTION") || tokens.is_at(1, "SESSION CHARACTERISTICS") {
        isolation(tokens)?;
        return refuse("setting configuration parameter \"TRANSACTION\" not supported");
    }
    let at = if tokens.is_at(1, "LOCAL") || tokens.is_at(1, "SESSION") { 2 } else { 1 };
    let name = tokens.word(at);
    let is_reset = tokens.is_at(at + 2, "DEFAULT") && tokens.list().len() == at + 3;
    if is_reset || name.starts_with("ENABLE_") || SETTINGS.contains(&name.as_str()) {
        return Ok(());
    }
    let name = name.to_ascii_lowercase();
    refuse(format!("setting configuration parameter \"{name}\" not supported"))
}

fn isolation(tokens: &Tokens<'_>) -> Check {
    let Some(at) = tokens.find(1, "ISOLATION LEVEL") else { return Ok(()) };
    if tokens.is_at(at + 2, "REPEATABLE READ") {
        return Ok(());
    }
    let level = if tokens.is_at(at + 2, "READ") {
        format!("READ {}", tokens.word(at + 3))
    } else {
        tokens.word(at + 2)
    };
    refuse(format!("Unsupported isolation level: {level}"))
}

fn clauses(tokens: &Tokens<'_>) -> Check {
    if tokens.has("FOR SHARE") || tokens.has("FOR NO KEY UPDATE") {
        return refuse("locking clauses other than FOR UPDATE/FOR KEY SHARE are not supported");
    }
    if tokens.has("TABLESAMPLE") {
        return refuse("TABLESAMPLE clause not supported");
    }
    if tokens.is_at(0, "SELECT") && tokens.has_outside("INTO") {
        return refuse("unsupported statement: CreateTableAs");
    }
    Ok(())
}

/// Functions that do not exist, by the start of their name, and the SQLSTATE.
const FUNCTIONS: &[(&str, &str)] = &[
    ("SET_CONFIG", "0A000"),
    ("PG_ADVISORY_", "0A000"),
    ("PG_TRY_ADVISORY_", "0A000"),
    ("PG_NOTIFY", "0A000"),
    ("PG_XACT_STATUS", "42883"),
    ("PG_CURRENT_XACT_ID", "42883"),
    ("TXID_", "42883"),
];

/// They use a text search configuration, and there is none.
const TEXT_SEARCH: &[&str] =
    &["TO_TSVECTOR", "TO_TSQUERY", "PLAINTO_TSQUERY", "PHRASETO_TSQUERY", "WEBSEARCH_TO_TSQUERY"];

fn functions(tokens: &Tokens<'_>) -> Check {
    for at in (0..tokens.list().len()).filter(|at| tokens.is_at(at + 1, "(")) {
        let name = tokens.word(at);
        if TEXT_SEARCH.contains(&name.as_str()) {
            let message = "text search configuration \"english\" does not exist".into();
            return Err(Refusal { code: "42704", message });
        }
        if let Some((_, code)) = FUNCTIONS.iter().find(|(start, _)| name.starts_with(start)) {
            let name = name.to_ascii_lowercase();
            let message = match *code {
                "42883" => format!("function {name} does not exist"),
                _ => format!("function {name} not supported"),
            };
            return Err(Refusal { code, message });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tokens::statements;
    use super::*;

    fn planned(text: &str) -> Plan {
        plan(&statements(text)[0])
    }

    #[test]
    fn a_job_is_a_call_with_the_statement_without_async() {
        let cases = [
            (
                "create index async i on t (a) where b = 'x'",
                "SELECT job_id FROM sys.local_rds_run('create index  i on t (a) where b = ''x''', \
                 'INDEX_BUILD', 'CREATE INDEX')",
            ),
            (
                "ALTER TABLE ASYNC t VALIDATE CONSTRAINT c",
                "SELECT job_id FROM sys.local_rds_run('ALTER TABLE  t VALIDATE CONSTRAINT c', \
                 'VALIDATE_CONSTRAINT', 'ALTER TABLE')",
            ),
            ("AWS IAM GRANT \"a b\" TO 'arn:x'", "GRANT rds_iam TO \"a b\""),
        ];
        for (text, expected) in cases {
            assert_eq!(planned(text), Plan::Replace(expected.into()));
        }
    }

    #[test]
    fn names_and_strings_are_not_keywords() {
        for text in [
            "SELECT \"set_config\"",
            "SELECT set_config FROM t",
            "INSERT INTO t VALUES ('TRUNCATE', 'FOR SHARE')",
            "CREATE TABLE t (\"as\" int, note text DEFAULT 'AS IDENTITY')",
            "ALTER TABLE t RENAME COLUMN a TO b",
        ] {
            assert_eq!(planned(text), Plan::Forward, "{text}");
        }
    }

    #[test]
    fn the_start_of_a_functions_name_decides() {
        for (text, code) in [
            ("SELECT pg_catalog.set_config('a', 'b', false)", "0A000"),
            ("SELECT Pg_Try_Advisory_Lock (1)", "0A000"),
            ("SELECT pg_current_xact_id_if_assigned()", "42883"),
        ] {
            let Plan::Refuse(refusal) = planned(text) else { panic!("{text}") };
            assert_eq!(refusal.code, code, "{text}");
        }
    }

    #[test]
    fn kinds() {
        let cases = [
            ("explain analyze insert into t values (1)", Kind::Dml),
            ("EXPLAIN INSERT INTO t VALUES (1)", Kind::Other),
            ("WITH a AS (SELECT 1) UPDATE t SET n = 1", Kind::Dml),
            ("WITH a AS (SELECT id FROM t FOR UPDATE) SELECT * FROM a", Kind::Other),
            ("/* a */ -- b\ncreate table t ()", Kind::Ddl),
            ("end", Kind::End),
            ("start transaction", Kind::Begin),
        ];
        for (text, expected) in cases {
            assert_eq!(kind(&statements(text)[0]), expected, "{text}");
        }
    }
}
