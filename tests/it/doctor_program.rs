//! `rds-iam doctor`, as its users see it.

use std::process::{Command, Output};

use diesel_rds_iam::local::LocalRds;
use serde_json::Value;

use crate::support::{RDS_IAM, start, with_no_settings};

/// With nobody else's settings.
fn doctor(environment: &[(&'static str, String)], arguments: &[&str]) -> Output {
    run(Command::new(RDS_IAM).arg("doctor").args(arguments), environment)
}

fn run(command: &mut Command, environment: &[(&'static str, String)]) -> Output {
    // Nobody's file .env.
    let output = with_no_settings(command)
        .envs(environment.iter().cloned())
        .current_dir("/")
        .output()
        .unwrap();
    // For the search for secrets.
    eprint!("{}{}", text(&output), String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn as_user(rds: &LocalRds, user: &str) -> Vec<(&'static str, String)> {
    let mut environment = rds.environment();
    environment.retain(|(name, _)| *name != "DATABASE_URL");
    environment.push(("DATABASE_URL", rds.database_url_for(user)));
    environment
}

#[test]
fn exits_with_0_only_when_a_login_works() {
    let rds = start(LocalRds::builder());
    let works = doctor(&rds.environment(), &[]);
    assert_eq!(works.status.code(), Some(0));
    assert!(text(&works).contains("✓ libpq") && !text(&works).contains('✗'), "{}", text(&works));

    let refused = doctor(&as_user(&rds, LocalRds::USER_WITHOUT_GRANT), &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("✗ login"), "{}", text(&refused));
    assert!(text(&refused).contains("GRANT rds_iam TO \"without_grant\";"), "{}", text(&refused));

    let no_string = doctor(&[], &["--database-url", "postgres://app:hunter2@db.example.com/app"]);
    assert_eq!(no_string.status.code(), Some(1));
    assert!(text(&no_string).contains("✗ connection string"), "{}", text(&no_string));
    assert!(text(&no_string).contains("cure: remove the password"), "{}", text(&no_string));
}

#[test]
fn json_is_one_object() {
    let rds = start(LocalRds::builder());
    let parse = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let works = parse(&doctor(&rds.environment(), &["--json"]));
    assert_eq!(works["lets_in"], true);
    let names: Vec<&str> = works["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 10, "{names:?}");

    let refused = doctor(&as_user(&rds, LocalRds::USER_WITHOUT_GRANT), &["--json"]);
    assert_eq!(refused.status.code(), Some(1));
    let refused = parse(&refused);
    let last = refused["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((&refused["lets_in"], &last["ok"]), (&Value::from(false), &Value::from(false)));
    let cause = &last["diagnosis"]["causes"][0];
    assert!(cause["cure"].as_str().unwrap().contains("GRANT rds_iam"), "{cause}");
    assert!(cause["decided_by"].is_string(), "{cause}");

    let no_string = parse(&doctor(&[], &["--json", "--database-url", "hostt=x"]));
    assert_eq!(no_string["steps"][0]["name"], "connection string");
}

const ESCAPE: char = '\x1b';

#[test]
fn a_pipe_gets_no_colour() {
    let piped = doctor(&[("TERM", "xterm".into())], &["--database-url", "hostt=x"]);
    assert!(!text(&piped).contains(ESCAPE), "{}", text(&piped));
}

#[test]
#[cfg(target_os = "linux")]
fn a_terminal_gets_colour_unless_no_color_says_otherwise() {
    let on_a_terminal = |no_color: &str| {
        // util-linux's script gives its command a terminal.
        let line = format!("{RDS_IAM} doctor --database-url hostt=x");
        let mut script = Command::new("script");
        text(&run(script.args(["-qec", &line, "/dev/null"]), &[("NO_COLOR", no_color.into())]))
    };
    assert!(on_a_terminal("").contains(ESCAPE));
    let plain = on_a_terminal("1");
    assert!(plain.contains("✗ connection string") && !plain.contains(ESCAPE), "{plain}");
}
