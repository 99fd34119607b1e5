//! Runs the other tests and searches for secrets in their output, their logs, the arguments of
//! their processes and their temporary files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use openssl::base64;

use crate::support::{minutes, output_of};

/// How secrets begin: those in tokens, LocalRds' secret keys and passwords, and the passwords and
/// session tokens of these tests.
const MARKS: &[&str] = &[
    "X-Amz-Signature=",
    "X-Amz-Security-Token=",
    // As pairs and as JSON.
    "X-Amz-Signature\", \"",
    "X-Amz-Signature\":",
    "X-Amz-Security-Token\", \"",
    "X-Amz-Security-Token\":",
    "local-rds-secret-",
    "local-rds-password-",
    "hunter2",
    "TOKEN/+==",
    "SES/SION",
];

/// Files and commands of a user, which tests write with a secret in them: sources of credentials,
/// and the clients that `exec --in-url` warns about (Debian's are in perl).
const FIXTURES: &[&str] =
    &[".env", "answer.json", "config", "credentials", "perl", "pg_dump", "psql", "sh"];

/// Signs that the run included each part that is searched.
const DONE: &[&str] = &[
    "diesel_rds_iam::login::iam] connected to app@localhost",
    "LocalRds admitted app",
    "rows, all as in the ledger",
    "web::",
    "worker::",
    "migrate::",
    "guide::",
    "cli::exec::",
    "cli::env_and_token::",
    "cli::local::",
    "doctor_program::",
];

#[test]
fn a_run_at_trace_level_shows_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    // The account of the server needs access.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    // The logins of hostile_logins do not differ from those of login.rs.
    command.args(["--nocapture", "--skip", "secrets::", "--skip", "hostile_logins::"]);
    command.env("RUST_LOG", "trace").env("TMPDIR", folder.path());
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (has_ended, forms) = (AtomicBool::new(false), forms());
    let (output, mut seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&has_ended, folder.path(), &forms));
        let output = output_of(run, minutes(60), "all tests at trace level");
        has_ended.store(true, Ordering::SeqCst);
        (output, watch.join().unwrap())
    });
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", failures(&shown, &forms));
    DONE.iter().for_each(|sign| assert!(shown.contains(sign), "the run did not include {sign}"));
    assert!(
        ["rds-iam", "initdb", "psql"].iter().all(|program| seen.programs.contains(program)),
        "{:?}",
        seen.programs
    );
    seen.search("the output", &shown, &forms);
    visit(folder.path(), &mut |file| seen.search_file(file, &forms));
    assert!(seen.secrets.is_empty(), "{:#?}", seen.secrets);
}

#[test]
fn a_secret_is_found_in_each_form() {
    let forms = forms();
    let token = "host:5432/?Action=connect&X-Amz-Signature=0123456789abcdef";
    let encoded = token.replace('&', "%26").replace('=', "%3D");
    let bytes = token.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let blocks = (0..3)
        .map(|shift| base64::encode_block(format!("{}{token}", "x".repeat(shift)).as_bytes()));
    let pair = format!("{:?}", ("X-Amz-Signature", "0123456789abcdef"));
    let json = serde_json::json!({ "X-Amz-Signature": "0123456789abcdef" }).to_string();
    let hex = token.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let percent = [encoded.replace("%3D", "%3d"), encoded.replace('%', "%25"), encoded];
    let shown = [token.to_owned(), bytes, hex, pair, json].into_iter().chain(percent);
    for shown in shown.chain(blocks) {
        assert_eq!(
            found(&format!("password: {shown};"), &forms).as_deref(),
            Some("X-Am"),
            "{shown}"
        );
    }
    assert_eq!(found("host:5432/?Action=connect&X-Amz-Sign", &forms), None);
}

/// Where secrets were seen. It does not contain them, because this output is searched, too.
#[derive(Default)]
struct Seen {
    secrets: Vec<String>,
    programs: Vec<&'static str>,
}

/// Until the run has ended, searches ten times per second the arguments of all processes of the
/// session, and the files in the temporary folder that others can read. Misses processes that end
/// within 100 ms.
fn watch(has_ended: &AtomicBool, folder: &Path, forms: &[(String, String)]) -> Seen {
    let (mut seen, ours) = (Seen::default(), session(Path::new("/proc/self")));
    while !has_ended.load(Ordering::SeqCst) {
        let processes =
            fs::read_dir("/proc").into_iter().flatten().flatten().map(|process| process.path());
        for process in processes.filter(|process| session(process) == ours) {
            let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
            seen.arguments(&String::from_utf8_lossy(&arguments), forms);
        }
        visit_readable(folder, &mut |file| seen.search_file(file, forms));
        thread::sleep(Duration::from_millis(100));
    }
    seen
}

/// Returns the session of a process: the sixth field of its stat. The second
/// field is a name in parentheses.
fn session(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(3).map(str::to_owned)
}

impl Seen {
    fn arguments(&mut self, arguments: &str, forms: &[(String, String)]) {
        let program = arguments
            .split('\0')
            .next()
            .and_then(|path| path.rsplit('/').next())
            .unwrap_or_default();
        for known in ["rds-iam", "initdb", "psql"] {
            if program == known && !self.programs.contains(&known) {
                self.programs.push(known);
            }
        }
        if !FIXTURES.contains(&program) {
            self.search(&format!("an argument of {program}"), arguments, forms);
        }
    }

    fn search_file(&mut self, file: &Path, forms: &[(String, String)]) {
        if !FIXTURES.iter().any(|given| file.ends_with(given)) {
            // The file may have been removed.
            let contents = fs::read(file).unwrap_or_default();
            self.search(&file.display().to_string(), &String::from_utf8_lossy(&contents), forms);
        }
    }

    fn search(&mut self, place: &str, text: &str, forms: &[(String, String)]) {
        let secret = found(text, forms).map(|beginning| format!("{place} contains {beginning}..."));
        self.secrets.extend(secret.filter(|secret| !self.secrets.contains(secret)));
    }
}

/// Returns the beginning of the first secret in a text.
fn found(text: &str, forms: &[(String, String)]) -> Option<String> {
    forms.iter().find(|(_, form)| text.contains(form)).map(|(beginning, _)| beginning.clone())
}

/// Returns the beginning of each mark with each form in which it can appear: unchanged,
/// percent-encoded once and twice, as bytes in decimal and hexadecimal, and in base64 at any
/// offset.
fn forms() -> Vec<(String, String)> {
    let mut forms = Vec::new();
    for mark in MARKS {
        let encoded = mark.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
        let [bytes, hex] = [|byte: u8| byte.to_string(), |byte: u8| format!("{byte:02x}")]
            .map(|written| mark.bytes().map(written).collect::<Vec<_>>());
        let lists = [bytes.join(", "), hex.join(", "), hex.concat()];
        let all =
            [(*mark).to_owned(), encoded.to_lowercase(), encoded.replace('%', "%25"), encoded];
        let lower = mark.replace('/', "%2f").replace('+', "%2b").replace('=', "%3d");
        let all = all
            .into_iter()
            .chain([lower])
            .chain(lists)
            .chain((0..3).map(|shift| in_base64(mark, shift)));
        forms.extend(all.map(|form| (mark[..4].to_owned(), form)));
    }
    forms
}

/// Returns the base64 characters that depend on the mark only, if `shift` bytes precede it.
fn in_base64(mark: &str, shift: usize) -> String {
    let text = [vec![0; shift], mark.as_bytes().to_vec()].concat();
    let (begin, end) = ((shift * 8).div_ceil(6), text.len() * 8 / 6);
    base64::encode_block(&text)[begin..end].to_owned()
}

fn visit(folder: &Path, search: &mut dyn FnMut(&Path)) {
    walk(folder, &|_| true, search);
}

/// Visits the files that others than the owner can read.
fn visit_readable(folder: &Path, search: &mut dyn FnMut(&Path)) {
    walk(folder, &|mode| mode & 0o077 != 0, search);
}

fn walk(folder: &Path, wanted: &dyn Fn(u32) -> bool, search: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(data)) = (entry.path(), entry.metadata()) else { continue };
        if !wanted(data.permissions().mode()) || data.is_symlink() {
            continue;
        }
        if data.is_dir() {
            walk(&path, wanted, search)
        } else if data.is_file() {
            search(&path)
        }
    }
}

/// Returns the failed tests and the texts of panics, without lines that contain a secret.
fn failures(shown: &str, forms: &[(String, String)]) -> String {
    let lines: Vec<&str> = shown.lines().collect();
    let panics = lines.iter().enumerate().filter(|(_, line)| line.contains(" panicked at "));
    let texts = panics.flat_map(|(at, _)| lines[at..].iter().take(5));
    let failed = lines.iter().filter(|line| line.ends_with("... FAILED"));
    let redacted = texts.chain(failed).filter(|line| found(line, forms).is_none());
    redacted.fold(String::new(), |text, line| text + "\n" + line)
}
