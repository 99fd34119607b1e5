#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by a panic"
)]
//! Help, completions, manual pages and usage errors: tests that need no server.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use tempfile::TempDir;

const RDS_IAM: &str = env!("CARGO_BIN_EXE_rds-iam");

/// Returns the command for a program in its own folder, with only PATH in its environment.
fn program(name: impl AsRef<Path>, folder: &TempDir) -> Command {
    let mut command = Command::new(name.as_ref());
    command.current_dir(folder.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The output and exit code of a program.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Said {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (child, (sender, output)) = (command.spawn().unwrap(), channel());
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    let output = output.recv_timeout(Duration::from_secs(60));
    let Output { status, stdout, stderr } = output.expect("rds-iam ends within 60 s");
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Said { code: status.code(), stdout, stderr }
}

#[test]
fn help_completions_and_the_manual_page_name_all_subcommands() {
    let folder = folder();
    for arguments in [&["help"][..], &["completions", "bash"], &["man"]] {
        let said = run(program(RDS_IAM, &folder).args(arguments));
        for subcommand in ["exec", "env", "token", "local"] {
            assert!(
                said.code == Some(0) && said.stdout.contains(subcommand),
                "{arguments:?}: {said:?}"
            );
        }
    }
    let said = run(program(RDS_IAM, &folder).args(["help", "exec"]));
    assert!(said.stdout.contains("rds-iam exec -- diesel migration run"), "{said:?}");
    let said = run(program(RDS_IAM, &folder).args(["man", "exec"]));
    let title = concat!(".TH RDS-IAM-EXEC 1  \"rds-iam ", env!("CARGO_PKG_VERSION"), "\"");
    assert!(said.stdout.contains(title), "{said:?}");
}

#[test]
fn help_describes_the_command_the_formats_and_the_log() {
    let folder = folder();
    let help = |arguments: &[&str]| run(program(RDS_IAM, &folder).args(arguments)).stdout;
    let exec = help(&["exec", "-h"]);
    let [command, options] = ["  <COMMAND>", "Database and credentials:"].map(|it| exec.find(it));
    assert!(command.is_some() && command < options, "{exec}");
    let env = help(&["env", "--help"]);
    for expected in ["- powershell: For", "- fish: ", "- plain: ", "docker --env-file", "[URL]"] {
        assert!(env.contains(expected), "{expected}: {env}");
    }
    assert!(help(&["--help"]).contains("RUST_LOG  "));
    assert!(!help(&["--help"]).contains("keep-passfile"));
}

#[test]
fn an_error_of_the_library_ends_in_a_line_of_help() {
    let folder = folder();
    let mut command = program(RDS_IAM, &folder);
    command.args(["token", "--database-url="]);
    let said = run(command.env("HOME", folder.path()));
    let lines: Vec<&str> = said.stderr.lines().collect();
    let [failed, cure] = lines.as_slice() else { panic!("{said:?}") };
    assert!(failed.starts_with("rds-iam: unusable connection string: "), "{failed}");
    assert!(cure.starts_with("help: "), "{cure}");
}

#[test]
fn bash_completes_the_options_of_a_subcommand() {
    let script = format!(
        "source <({RDS_IAM} completions bash); COMP_WORDS=(rds-iam exec --re); COMP_CWORD=2
        _rds__iam rds-iam --re exec; echo \"${{COMPREPLY[@]}}\""
    );
    let said = run(program("bash", &folder()).args(["-c", &script]));
    assert_eq!(said.stdout, "--refresh --region\n", "{said:?}");
}

#[test]
fn the_exit_code_is_the_same_if_stderr_cannot_be_written() {
    let script = format!(
        "{RDS_IAM} exec --database-url postgres://app@h/d --region eu-west-1 -- no-such 2>/dev/full"
    );
    let folder = folder();
    let mut command = program("sh", &folder);
    command.env("AWS_ACCESS_KEY_ID", "AKIA").env("AWS_SECRET_ACCESS_KEY", "hunter2");
    assert_eq!(run(command.args(["-c", &script])).code, Some(127));
}

#[test]
fn an_unknown_option_is_reported_with_the_nearest_one() {
    let said = run(program(RDS_IAM, &folder()).args(["exec", "--refersh", "--", "true"]));
    assert!(said.code == Some(2) && said.stderr.contains("--refresh"), "{said:?}");
}

#[test]
fn a_closed_standard_output_does_not_panic() {
    let folder = folder();
    for (reader, code) in [("head -c 1 >/dev/null", 0), ("exec <&-", 0)] {
        let script =
            format!("for i in 1 2 3; do {RDS_IAM} completions zsh; done | {{ {reader}; }}");
        let said = run(program("sh", &folder).args(["-c", &script]));
        assert_eq!((said.code, said.stderr.as_str()), (Some(code), ""), "{reader}");
    }
    let said = run(program("sh", &folder).args(["-c", &format!("{RDS_IAM} man >&-")]));
    assert_eq!(
        (said.code, said.stderr.as_str()),
        (Some(0), ""),
        "the standard library puts /dev/null there"
    );
    let script = format!("{RDS_IAM} man > /dev/full");
    let said = run(program("sh", &folder).args(["-c", &script]));
    assert!(said.code == Some(1) && said.stderr.starts_with("rds-iam: cannot write: "), "{said:?}");
}
