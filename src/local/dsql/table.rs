//! The rules for CREATE TABLE and ALTER TABLE that depend on the text. The types of columns are
//! checked in the database (sys.sql).

use super::statement::{Check, Refusal, cache, explicit_cache, refuse};
use super::tokens::Tokens;

pub(super) fn create(tokens: &Tokens<'_>) -> Check {
    if tokens.has_outside("AS") {
        return refuse("unsupported statement: CreateTableAs");
    }
    for word in ["PARTITION", "INHERITS"] {
        if tokens.has_outside(word) {
            return refuse(format!("{word} not supported for CREATE TABLE"));
        }
    }
    if tokens.has("EXCLUDE USING") || tokens.has("EXCLUDE (") {
        return refuse("EXCLUDE constraint not supported");
    }
    let open = tokens.list().iter().position(|token| token.text == "(");
    let parts = open.map(|open| tokens.parts(open + 1)).unwrap_or_default();
    if parts.iter().any(|part| is_deferrable(part) && !part.has("REFERENCES")) {
        return refuse("DEFERRABLE constraint not supported");
    }
    identity(tokens)
}

/// Only foreign keys can be deferrable.
fn is_deferrable(part: &Tokens<'_>) -> bool {
    part.find(1, "DEFERRABLE").is_some_and(|at| !part.is_at(at - 1, "NOT"))
}

/// Each identity column needs CACHE. Without it, PostgreSQL takes 1.
fn identity(tokens: &Tokens<'_>) -> Check {
    let mut from = 0;
    while let Some(at) = tokens.find(from, "AS IDENTITY") {
        from = at + 2;
        let options = if tokens.is_at(from, "(") { cache(tokens, from + 1) } else { Err(None) };
        options.map_err(|message| Refusal {
            code: "0A000",
            message: message.unwrap_or_else(|| explicit_cache("identity column")),
        })?;
    }
    Ok(())
}

pub(super) fn alter(tokens: &Tokens<'_>) -> Check {
    let is_async = tokens.is_at(2, "ASYNC");
    let at = tokens.skip(2, "ASYNC");
    let at = tokens.skip(tokens.skip(at, "IF EXISTS"), "ONLY");
    let at = tokens.skip(tokens.skip_name(at), "*");
    for action in tokens.parts(at) {
        match action.word(0).as_str() {
            "ADD" => add(&action)?,
            "ALTER" => alter_column(&action)?,
            "VALIDATE" if is_async => {}
            "VALIDATE" => refuse("unsupported ALTER TABLE VALIDATE CONSTRAINT statement")?,
            "DROP" | "RENAME" | "OWNER" => {}
            "SET" if action.is_at(1, "SCHEMA") => {}
            other => refuse(format!("unsupported ALTER TABLE {other} statement"))?,
        }
    }
    identity(tokens)
}

/// Words behind the type of a column that begin a constraint.
const CONSTRAINTS: &[&str] =
    &["NOT", "DEFAULT", "PRIMARY", "UNIQUE", "CHECK", "REFERENCES", "GENERATED", "CONSTRAINT"];

fn add(action: &Tokens<'_>) -> Check {
    let at = if action.is_at(1, "CONSTRAINT") { 3 } else { 1 };
    let is_allowed = match action.word(at).as_str() {
        "PRIMARY" | "EXCLUDE" => false,
        "UNIQUE" => action.is_at(at + 1, "USING INDEX"),
        "CHECK" | "FOREIGN" => action.has("NOT VALID"),
        _ => return add_column(action),
    };
    if is_allowed { Ok(()) } else { refuse("unsupported ALTER TABLE ADD CONSTRAINT statement") }
}

fn add_column(action: &Tokens<'_>) -> Check {
    let at = action.skip(action.skip(1, "COLUMN"), "IF NOT EXISTS");
    if action.has_outside("COLLATE") {
        return refuse("COLLATE clause not supported");
    }
    let words = (at + 1..action.list().len()).map(|at| action.word(at));
    if words.into_iter().any(|word| CONSTRAINTS.contains(&word.as_str())) {
        return refuse("ALTER TABLE ADD COLUMN with constraint not supported");
    }
    Ok(())
}

fn alter_column(action: &Tokens<'_>) -> Check {
    if action.is_at(1, "CONSTRAINT") {
        return Ok(());
    }
    let at = action.skip(1, "COLUMN") + 1;
    let what = match () {
        () if action.is_at(at, "TYPE") || action.is_at(at, "SET DATA TYPE") => "SET DATA TYPE",
        () if action.is_at(at, "SET NOT NULL") => "SET NOT NULL",
        () if action.is_at(at, "SET STATISTICS") => "SET STATISTICS",
        () => return Ok(()),
    };
    refuse(format!("unsupported ALTER TABLE ALTER COLUMN ... {what} statement"))
}
