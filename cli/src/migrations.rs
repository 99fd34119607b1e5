//! Checks the migrations of the diesel CLI before they run on Aurora DSQL.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use dsql_lint::lint_sql;

const INITIAL_SETUP: &str = "00000000000000_diesel_initial_setup";

const ONE_DDL: &str = "write one DDL statement per migration, with run_in_transaction = false in \
    its metadata.toml; or run the migrations with diesel_rds_iam::dsql, which splits files";

/// Returns why a command of the diesel CLI cannot work on Aurora DSQL, if it cannot.
pub(crate) fn complaints(command: &[OsString]) -> Option<String> {
    let words: Vec<&str> = command.iter().filter_map(|word| word.to_str()).collect();
    if Path::new(words.first()?).file_stem()? != "diesel" {
        return None;
    }
    let files: &[&str] = words.windows(2).find_map(|pair| match pair {
        ["migration", "run"] => Some(&["up.sql"][..]),
        ["migration", "revert"] => Some(&["down.sql"]),
        ["migration", "redo"] => Some(&["down.sql", "up.sql"]),
        ["database", "setup" | "reset"] | [_, "setup"] => Some(&[]),
        _ => None,
    })?;
    if files.is_empty() {
        return Some(format!(
            "this command creates the migration {INITIAL_SETUP}, which cannot run on Aurora DSQL\n\
             help: make the folder migrations by hand, and use diesel migration run"
        ));
    }
    let mut migrations: Vec<PathBuf> =
        fs::read_dir(folder(&words)?).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    migrations.sort();
    let all: Vec<String> =
        migrations.iter().flat_map(|it| files.iter().flat_map(|file| of_file(it, file))).collect();
    (!all.is_empty()).then(|| {
        format!(
            "nothing was run, because a migration cannot run on Aurora DSQL\n{}\nhelp: if that is \
             wrong, use rds-iam exec --unchecked",
            all.join("\n")
        )
    })
}

/// Finds the migrations as the diesel CLI does. If this does not find them, it says so itself.
fn folder(words: &[&str]) -> Option<PathBuf> {
    let option = words.iter().enumerate().find_map(|(i, word)| match *word {
        "--migration-dir" => words.get(i + 1).copied(),
        word => word.strip_prefix("--migration-dir="),
    });
    let here = std::env::current_dir().ok()?;
    let above = |name: &str| here.ancestors().map(|it| it.join(name)).find(|it| it.exists());
    option
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("MIGRATION_DIRECTORY").map(PathBuf::from))
        .or_else(|| above("diesel.toml").and_then(|toml| folder_in(&toml)))
        .or_else(|| above("migrations"))
}

/// Reads `dir` of the section `migrations_directory` of a diesel.toml.
fn folder_in(toml: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(toml).ok()?;
    let mut lines = text.lines().map(str::trim).skip_while(|it| *it != "[migrations_directory]");
    let section = lines.by_ref().skip(1).take_while(|line| !line.starts_with('['));
    let value = section.into_iter().find_map(|line| line.strip_prefix("dir"))?;
    let value = value.trim_start().strip_prefix('=')?.trim().trim_matches(['"', '\'']);
    Some(toml.parent()?.join(value))
}

/// Checks a file as part of the transaction in which the diesel CLI runs it.
fn of_file(migration: &Path, name: &str) -> Vec<String> {
    let path = migration.join(name);
    let Ok(text) = fs::read_to_string(&path) else { return Vec::new() };
    if migration.file_name().is_some_and(|name| name == INITIAL_SETUP) {
        let help = "delete this folder, because nothing needs it";
        return vec![format!("{}: there is no PL/pgSQL\n  help: {help}", path.display())];
    }
    let metadata = fs::read_to_string(migration.join("metadata.toml")).unwrap_or_default();
    let is_alone = |line: &str| {
        let code = line.split('#').next().unwrap_or_default();
        code.split_whitespace().collect::<String>() == "run_in_transaction=false"
    };
    let record = match metadata.lines().any(is_alone) {
        true => "",
        false => "INSERT INTO __diesel_schema_migrations (version) VALUES ('');",
    };
    // On one line with the first statement, so that lines keep their numbers.
    let transaction = format!("BEGIN; {text}\n; {record} COMMIT;");
    let found = lint_sql(&transaction).into_iter().map(|found| {
        let (line, message) = (found.line, found.message);
        let (statement, help) = match found.statement.trim() {
            "BEGIN;" | "BEGIN" => (String::new(), ONE_DDL),
            statement => {
                let first = statement.lines().next().unwrap_or_default();
                (format!("\n  {first}"), found.suggestion.as_str())
            }
        };
        format!("{}:{line}: {message}{statement}\n  help: {help}", path.display())
    });
    found.collect()
}
