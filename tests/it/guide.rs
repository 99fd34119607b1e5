//! The guide's blocks: what a shell or a server can run is run as it is printed, and the rest is
//! parsed. (Its blocks of Rust are doctests.)

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
use crate::support::{RDS_IAM, start};

/// A block of code in a chapter's Markdown.
struct Block {
    line: usize,
    language: String,
    text: String,
}

struct Chapter {
    name: String,
    blocks: Vec<Block>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chapters() -> Vec<Chapter> {
    let files = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|ending| ending == "md")).collect();
    files.sort();
    let chapter = |file: PathBuf| Chapter {
        name: file.file_stem().unwrap().to_str().unwrap().to_owned(),
        blocks: blocks(&fs::read_to_string(file).unwrap()),
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

/// What the chapters take for granted: a database that believes to be
/// `db.abc123.eu-west-1.rds.amazonaws.com`, at the far end of a tunnel whose near end is at
/// `$TUNNEL_PORT`, an AWS that knows the instance `db`, the cluster `cluster` and the role `app`,
/// and a project with migrations.
struct Stage {
    rds: Arc<LocalRds>,
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

const AWS: &str = "
aws rds create-db-instance --db-instance-identifier db --db-instance-class db.m7g.large --engine postgres \
    --allocated-storage 20 --master-username postgres --manage-master-user-password --query DBInstance.DBInstanceArn
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
        check(bash.envs(self.environment.iter().cloned()).output().unwrap(), what);
    }

    /// As the master user of a database that has no user `app` yet.
    fn sql(&self, statements: &str) {
        let mut superuser = self.rds.superuser().unwrap();
        superuser.batch_execute("ALTER ROLE app RENAME TO owner").unwrap();
        superuser.batch_execute(statements).unwrap();
    }
}

/// rds-iam, the diesel CLI and the AWS CLI, and then what the machine has.
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

/// Shows what it showed, for the search for secrets.
fn check(output: Output, what: &str) {
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    eprint!("{stdout}{stderr}");
    assert!(output.status.success(), "{what}: {stdout}{stderr}");
}

/// A program that reads a block, and fails where it cannot.
fn parse_by(program: impl AsRef<Path>, arguments: &[&str], text: &str, what: &str) {
    let mut command = Command::new(program.as_ref());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    check(child.wait_with_output().unwrap(), what);
}

fn parse_in_python(code: &str, text: &str, what: &str) {
    parse_by(python_bin().join("python3"), &["-c", &format!("import sys\n{code}")], text, what);
}

/// An instruction at the start of each line.
fn parse_dockerfile(text: &str, what: &str) {
    for line in text.lines() {
        let instruction = line.split(' ').next().unwrap();
        assert!(["ADD", "COPY", "ENV", "FROM", "RUN"].contains(&instruction), "{what}: {line}");
    }
}

/// Lines of connection strings.
fn parse_strings(text: &str, what: &str) {
    for line in text.lines() {
        let manager = RdsConnectionManager::new(line);
        assert!(manager.is_ok(), "{what}: {line}: {manager:?}");
    }
}

#[test]
fn what_a_shell_or_a_server_can_run_is_run() {
    let moto = Moto::start();
    Stage::new(&moto).sh(AWS, "set-up");
    let (mut scripts, mut statements) = (0, 0);
    for Chapter { name, blocks } in chapters() {
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
fn what_cannot_be_run_here_is_well_formed() {
    for Chapter { name, blocks } in chapters() {
        for Block { line, language, text } in blocks {
            let what = format!("{name}.md:{line}");
            match language.as_str() {
                // Run, here or as a doctest.
                "rust" | "sh" | "sql" => {}
                "console" => parse_by("bash", &["-n"], &text, &what),
                "dockerfile" => parse_dockerfile(&text, &what),
                "hcl" => parse_in_python("import hcl2; hcl2.load(sys.stdin)", &text, &what),
                "ini" => parse_in_python(
                    "import configparser; configparser.ConfigParser().read_string(sys.stdin.read())",
                    &text,
                    &what,
                ),
                "json" => drop(serde_json::from_str::<serde_json::Value>(&text).expect(&what)),
                "text" => parse_strings(&text, &what),
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

#[test]
fn each_chapter_is_in_the_tables_of_contents() {
    let [guide, crate_page] = ["src/guide/mod.rs", "src/lib.rs"]
        .map(|file| fs::read_to_string(root().join(file)).unwrap());
    for Chapter { name, .. } in chapters() {
        assert!(guide.contains(&format!("//! | [`{name}`] |")), "{name}");
        assert!(guide.contains(&format!("include_str!(\"{name}.md\")")), "{name}");
        assert!(crate_page.contains(&format!("(guide::{name})")), "{name}");
    }
}
