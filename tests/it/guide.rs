//! The chapters of the guide: their shell and SQL blocks run as they are printed, their other
//! blocks are parsed, and their contents, links and numbers are checked. Blocks of Rust are doc
//! tests.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;
use tempfile::TempDir;

use crate::support::moto::{Moto, python_bin};
use crate::support::{RDS_IAM, in_a_child, minutes, output, output_of, start};

// Both sides of the diff in from_diesel.md.
#[path = "from_diesel/after.rs"]
mod after;
#[path = "from_diesel/before.rs"]
mod before;

/// A block of code in a chapter's Markdown.
struct Block {
    line: usize,
    language: String,
    text: String,
}

struct Chapter {
    name: String,
    text: String,
    blocks: Vec<Block>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chapters() -> Vec<Chapter> {
    let files = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().path());
    let is_chapter = |file: &PathBuf| {
        file.extension().is_some_and(|ending| ending == "md") && !file.ends_with("contents.md")
    };
    let mut files: Vec<PathBuf> = files.filter(is_chapter).collect();
    files.sort();
    let chapter = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        Chapter { name, blocks: blocks(&text), text }
    };
    files.into_iter().map(chapter).collect()
}

fn blocks(markdown: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    for (i, line) in markdown.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                let language = info.split(',').next().unwrap().to_owned();
                open = Some(Block { line: i + 1, language, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// What the chapters expect: a database with the name `db.abc123.eu-west-1.rds.amazonaws.com`, a
/// tunnel to it whose local end is `$TUNNEL_PORT`, an AWS with the instance `db`, the cluster
/// `cluster` and the role `app`, and a project with migrations.
struct Stage {
    rds: Arc<LocalRds>,
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

const AWS: &str = "
aws rds create-db-instance --db-instance-identifier db --db-instance-class db.m7g.large \
    --engine postgres --allocated-storage 20 --master-username postgres \
    --manage-master-user-password --query DBInstance.DBInstanceArn
aws rds create-db-cluster --db-cluster-identifier cluster --engine aurora-postgresql \
    --master-username postgres --manage-master-user-password --query DBCluster.DBClusterArn
aws iam create-role --role-name app --assume-role-policy-document '{}' --query Role.Arn
";

impl Stage {
    fn new(moto: &Moto) -> Stage {
        let endpoint = LocalRds::builder().endpoint("db.abc123.eu-west-1.rds.amazonaws.com", 5432);
        let rds = Arc::new(start(endpoint.region("eu-west-1")));
        let mut environment = rds.environment();
        environment.extend([
            ("AWS_DEFAULT_REGION", "eu-west-1".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_ENDPOINT_URL", moto.url()),
            ("AWS_ENDPOINT_URL_STS", moto.sts_for(rds.clone()).url()),
            ("PATH", path()),
            ("TUNNEL_PORT", rds.port().to_string()),
        ]);
        let folder = tempfile::tempdir().unwrap();
        copy_migrations(folder.path());
        Stage { rds, folder, environment }
    }

    fn sh(&self, script: &str, what: &str) {
        let mut bash = Command::new("bash");
        bash.args(["-eu", "-c", script])
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path());
        let kept = ["TMPDIR", "LD_LIBRARY_PATH", "RUST_LOG"];
        bash.envs(kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        check(output(bash.envs(self.environment.iter().cloned())), what);
    }

    /// Runs SQL as the master user of a database without the user `app`.
    fn sql(&self, statements: &str) {
        let mut superuser = self.rds.superuser().unwrap();
        superuser.batch_execute("ALTER ROLE app RENAME TO owner").unwrap();
        superuser.batch_execute(statements).unwrap();
    }
}

/// Returns a PATH with rds-iam, the diesel CLI and the AWS CLI before the programs of the machine.
fn path() -> String {
    let ours = Path::new(RDS_IAM).parent().unwrap().to_owned();
    let folders = [ours, root().join("target/diesel/bin"), python_bin()];
    let machine = std::env::var_os("PATH").unwrap();
    let all = folders.into_iter().chain(std::env::split_paths(&machine));
    std::env::join_paths(all).unwrap().into_string().unwrap()
}

fn copy_migrations(to: &Path) {
    fs::write(to.join("diesel.toml"), "[print_schema]\nfile = \"schema.rs\"\n").unwrap();
    for migration in fs::read_dir(root().join("examples/migrations")).unwrap() {
        let migration = migration.unwrap();
        let folder = to.join("migrations").join(migration.file_name());
        fs::create_dir_all(&folder).unwrap();
        for name in ["up.sql", "down.sql"] {
            fs::copy(migration.path().join(name), folder.join(name)).unwrap();
        }
    }
}

/// Prints the output again, because the search for secrets reads the output of the tests.
fn check(output: Output, what: &str) {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    eprint!("{stdout}{stderr}");
    assert!(output.status.success(), "{what}: {stdout}{stderr}");
}

/// Runs a program that parses `text`, and fails if it cannot.
fn parse_by(program: impl AsRef<Path>, arguments: &[&str], text: &str, what: &str) {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    check(output_of(child, minutes(5), what), what);
}

fn parse_in_python(code: &str, text: &str, what: &str) {
    parse_by(python_bin().join("python3"), &["-c", &format!("import sys\n{code}")], text, what);
}

/// Checks that each line starts with an instruction.
fn parse_dockerfile(text: &str, what: &str) {
    for line in text.lines() {
        let instruction = line.split(' ').next().unwrap();
        assert!(["ADD", "COPY", "ENV", "FROM", "RUN"].contains(&instruction), "{what}: {line}");
    }
}

/// The longest line of a diagram. A large phone shows it without scrolling.
const DIAGRAM_WIDTH: usize = 44;

/// Connection strings, one per line; or a diagram.
fn parse_text(text: &str, what: &str) {
    let is_string = |line: &str| line.starts_with("postgres://") || line.starts_with("host=");
    for line in text.lines() {
        if text.lines().all(is_string) {
            let manager = RdsConnectionManager::new(line);
            assert!(manager.is_ok(), "{what}: {line}: {manager:?}");
        } else {
            assert!(line.chars().count() <= DIAGRAM_WIDTH, "{what}: {line}");
        }
    }
}

/// Checks that a diff contains both of its files completely.
fn parse_diff(text: &str, what: &str) {
    let side = |other: char| -> String {
        let lines = text.lines().filter(|line| !line.starts_with(other));
        lines.map(|line| line.get(1..).unwrap_or_default().to_owned() + "\n").collect()
    };
    assert_eq!(side('+'), include_str!("from_diesel/before.rs"), "{what}");
    assert_eq!(side('-'), include_str!("from_diesel/after.rs"), "{what}");
}

#[test]
fn shell_and_sql_blocks_run_as_printed() {
    let moto = Moto::start();
    Stage::new(&moto).sh(AWS, "set-up");
    let (mut scripts, mut statements) = (0, 0);
    for Chapter { name, blocks, .. } in chapters() {
        let runs = |block: &&Block| ["sh", "sql"].contains(&block.language.as_str());
        let mut stage = None;
        for block in blocks.iter().filter(runs) {
            let stage = stage.get_or_insert_with(|| Stage::new(&moto));
            if block.language == "sql" {
                stage.sql(&block.text);
                statements += 1;
            } else {
                stage.sh(&block.text, &format!("{name}.md:{}", block.line));
                scripts += 1;
            }
        }
    }
    assert!(scripts > 10 && statements > 0, "{scripts} scripts and {statements} of SQL were found");
}

#[test]
fn other_blocks_are_well_formed() {
    for Chapter { name, blocks, .. } in chapters() {
        for Block { line, language, text } in blocks {
            let what = format!("{name}.md:{line}");
            match language.as_str() {
                // Run, here or as a doctest.
                "rust" | "sh" | "sql" => {}
                "console" => parse_by("bash", &["-n"], &text, &what),
                "dockerfile" => parse_dockerfile(&text, &what),
                "hcl" => parse_in_python("import hcl2; hcl2.load(sys.stdin)", &text, &what),
                "ini" => parse_in_python(
                    "import configparser; \
                     configparser.ConfigParser().read_string(sys.stdin.read())",
                    &text,
                    &what,
                ),
                "json" => drop(serde_json::from_str::<serde_json::Value>(&text).expect(&what)),
                "text" => parse_text(&text, &what),
                "diff" => parse_diff(&text, &what),
                "toml" => {
                    parse_in_python("import tomllib; tomllib.loads(sys.stdin.read())", &text, &what)
                }
                "yaml" => {
                    parse_in_python("import yaml; assert yaml.safe_load(sys.stdin)", &text, &what)
                }
                unknown => panic!("{what}: no test knows the language {unknown:?}"),
            }
        }
    }
}

/// The titles and names of the chapters, in the order of the table of contents.
fn contents() -> Vec<(String, String)> {
    let table = fs::read_to_string(root().join("src/guide/contents.md")).unwrap();
    let row = |line: &str| {
        let (title, link) = line.strip_prefix("| [")?.split_once("](crate::guide::")?;
        Some((title.to_owned(), link.split(')').next()?.to_owned()))
    };
    table.lines().filter_map(row).collect()
}

#[test]
fn each_chapter_is_in_the_contents_and_in_the_module() {
    let module = fs::read_to_string(root().join("src/guide/mod.rs")).unwrap();
    let contents = contents();
    for Chapter { name, text, .. } in chapters() {
        let row = contents.iter().find(|(_, it)| *it == name);
        let (title, _) = row.unwrap_or_else(|| panic!("{name} is not in contents.md"));
        assert!(text.starts_with(&format!("# {title}\n")), "{name}: another title");
        assert!(module.contains(&format!("include_str!(\"{name}.md\")")), "{name}");
    }
    let modules: Vec<&str> = module
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(" {}"))
        .collect();
    let names: Vec<&str> = contents.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(modules, names, "mod.rs has the order of contents.md");
}

#[test]
fn each_chapter_ends_with_what_can_go_wrong_and_links_to_its_neighbours() {
    let contents = contents();
    let link = |label: &str, i: usize| {
        let chapter = contents.get(i);
        chapter.map(|(title, name)| format!(" · {label}: [{title}](crate::guide::{name})"))
    };
    for (i, (_, name)) in contents.iter().enumerate() {
        let text = fs::read_to_string(root().join(format!("src/guide/{name}.md"))).unwrap();
        let last = text.lines().rfind(|line| line.starts_with("## "));
        assert_eq!(last, Some("## What can go wrong"), "{name}");
        let previous = i.checked_sub(1).and_then(|i| link("previous", i)).unwrap_or_default();
        let next = link("next", i + 1).unwrap_or_default();
        let navigation = format!("\n\n---\n\n[Contents](crate::guide){previous}{next}\n");
        assert!(text.ends_with(&navigation), "{name}: expected at the end: {navigation}");
    }
}

#[test]
fn defaults_are_stated_in_the_limits_only() {
    // The age of a connection, back-offs, timeouts and intervals, as they were written before.
    let numbers = ["14 minutes", "12.6", "2, 4, 8", "100 ms", "10 seconds", "15 seconds", "30,000"];
    let mut texts = vec![("lib.rs".to_owned(), include_str!("../../src/lib.rs").to_owned())];
    texts.extend(chapters().into_iter().map(|it| (it.name, it.text)));
    for (name, text) in texts.iter().filter(|(name, _)| name != "limits") {
        for number in numbers {
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(number)).collect();
            assert!(lines.is_empty(), "{name}: link to the limits instead: {lines:?}");
        }
    }
}

#[test]
fn a_program_works_before_and_after_the_change_from_diesel() {
    let rds = start(LocalRds::builder());
    let password_url = rds.password_url().replace("&rds_iam_auth=false", "");
    let pool = before::pool(&password_url).unwrap();
    assert_eq!(before::answer(&mut before::connection(&pool).unwrap()), Ok(42));
    let environment = rds.environment();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    in_a_child("guide::a_program_works_after_the_change", &environment);
    assert_eq!(rds.attempts().len(), 2);
}

#[test]
#[ignore = "runs as a process of its own, with the AWS keys of the database in its environment"]
fn a_program_works_after_the_change() {
    let pool = after::pool(&std::env::var("DATABASE_URL").unwrap()).unwrap();
    assert_eq!(after::answer(&mut after::connection(&pool).unwrap()), Ok(42));
}
