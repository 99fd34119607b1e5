//! Nothing that any of these tests prints or logs holds a secret.

use std::process::Command;

/// Marks of a token, of LocalRds' secret keys and passwords, and of the passwords and session tokens in these tests.
const MARKS: &[&str] = &[
    "X-Amz-Signature=",
    "X-Amz-Security-Token=",
    "local-rds-secret-",
    "local-rds-password-",
    "hunter2",
    "TOKEN/+==",
    "SES/SION",
];

#[test]
fn a_run_at_trace_level_shows_none() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--nocapture", "--skip", "secrets::"]).env("RUST_LOG", "trace");
    let output = command.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", failures(&shown));
    assert!(shown.contains("diesel_rds_iam::login] connected to app@localhost"), "nothing was logged");
    assert!(shown.contains("LocalRds admits app"), "nothing was logged");
    for mark in MARKS {
        let lines: Vec<&str> = shown.lines().filter(|line| line.contains(mark)).collect();
        // Without the lines themselves: this output is scanned as well.
        assert!(lines.is_empty(), "{} lines hold {:?}", lines.len(), &mark[..5]);
    }
}

/// Which tests failed, and what the panics said, but for lines that hold a secret.
fn failures(shown: &str) -> String {
    let lines: Vec<&str> = shown.lines().collect();
    let panics = lines.iter().enumerate().filter(|(_, line)| line.contains("' panicked at "));
    let said = panics.flat_map(|(at, _)| lines[at..].iter().take(5));
    let failed = lines.iter().filter(|line| line.ends_with("... FAILED"));
    let safe = said.chain(failed).filter(|line| !MARKS.iter().any(|mark| line.contains(mark)));
    safe.fold(String::new(), |text, line| text + "\n" + line)
}
