//! Nothing that any of these tests prints, logs, hands to a program or leaves lying about holds a
//! secret: not the library, not an example, not a subcommand, not under the faults.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use openssl::base64;

/// What tokens, LocalRds' secret keys and passwords, and the passwords and session tokens of these
/// tests begin with.
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

/// Somebody's own files and commands, which tests write with a secret in them: sources of
/// credentials, and the clients that `exec --in-url` is warned about (Debian's are in perl).
const GIVEN: &[&str] =
    &[".env", "answer.json", "config", "credentials", "perl", "pg_dump", "psql", "sh"];

/// Signs that the run did what it is to be searched for.
const DONE: &[&str] = &[
    "diesel_rds_iam::login] connected to app@localhost",
    "LocalRds admits app",
    "rows, each as its ledger says",
    "web::",
    "worker::",
    "migrate::",
    "guide::",
    "cli::exec::",
    "cli::env_and_token::",
    "cli::local::",
    "cli::manual::",
    "doctor_program::",
];

#[test]
fn a_run_at_trace_level_shows_none() {
    let folder = tempfile::tempdir().unwrap();
    // The server's account has to get through.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    // 10,000 logins say nothing that those of login.rs do not.
    command.args(["--nocapture", "--skip", "secrets::", "--skip", "hostile_logins::"]);
    command.env("RUST_LOG", "trace").env("TMPDIR", folder.path());
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (has_ended, forms) = (AtomicBool::new(false), forms());
    let (output, mut seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&has_ended, folder.path(), &forms));
        let output = run.wait_with_output().unwrap();
        has_ended.store(true, Ordering::SeqCst);
        (output, watch.join().unwrap())
    });
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}", failures(&shown, &forms));
    DONE.iter().for_each(|sign| assert!(shown.contains(sign), "it did not do {sign}"));
    assert!(
        ["rds-iam", "initdb", "psql"].iter().all(|program| seen.programs.contains(program)),
        "{:?}",
        seen.programs
    );
    seen.search("what is printed", &shown, &forms);
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

/// Where secrets were seen, without them: this output is searched as well.
#[derive(Default)]
struct Seen {
    secrets: Vec<String>,
    programs: Vec<&'static str>,
}

/// Looks, ten times a second, at the arguments of the session's processes, and at what others can
/// read of the temporary folder, until the run has ended. A process that is gone sooner may not be
/// seen.
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

/// The sixth field of a process's stat; the second is a name in parentheses.
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
        if !GIVEN.contains(&program) {
            self.search(&format!("an argument of {program}"), arguments, forms);
        }
    }

    fn search_file(&mut self, file: &Path, forms: &[(String, String)]) {
        if !GIVEN.iter().any(|given| file.ends_with(given)) {
            // It may be gone already.
            let contents = fs::read(file).unwrap_or_default();
            self.search(&file.display().to_string(), &String::from_utf8_lossy(&contents), forms);
        }
    }

    fn search(&mut self, place: &str, text: &str, forms: &[(String, String)]) {
        let secret = found(text, forms).map(|beginning| format!("{place} holds {beginning}..."));
        self.secrets.extend(secret.filter(|secret| !self.secrets.contains(secret)));
    }
}

/// The first secret in a text: how it begins.
fn found(text: &str, forms: &[(String, String)]) -> Option<String> {
    forms.iter().find(|(_, form)| text.contains(form)).map(|(beginning, _)| beginning.clone())
}

/// How each mark begins, and one of the forms in which it can appear: as it is, percent-encoded
/// once and twice, as bytes in decimal and hexadecimal, and in base64, wherever in a longer text it
/// stands.
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

/// Those characters that tell of the mark alone, where so many bytes stand before it.
fn in_base64(mark: &str, shift: usize) -> String {
    let text = [vec![0; shift], mark.as_bytes().to_vec()].concat();
    let (begin, end) = ((shift * 8).div_ceil(6), text.len() * 8 / 6);
    base64::encode_block(&text)[begin..end].to_owned()
}

fn visit(folder: &Path, look: &mut dyn FnMut(&Path)) {
    walk(folder, &|_| true, look);
}

/// What is nobody's business but its owner's is left out.
fn visit_readable(folder: &Path, look: &mut dyn FnMut(&Path)) {
    walk(folder, &|mode| mode & 0o077 != 0, look);
}

fn walk(folder: &Path, wanted: &dyn Fn(u32) -> bool, look: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(data)) = (entry.path(), entry.metadata()) else { continue };
        if !wanted(data.permissions().mode()) || data.is_symlink() {
            continue;
        }
        if data.is_dir() {
            walk(&path, wanted, look)
        } else if data.is_file() {
            look(&path)
        }
    }
}

/// Which tests failed, and what the panics said, but for lines that hold a secret.
fn failures(shown: &str, forms: &[(String, String)]) -> String {
    let lines: Vec<&str> = shown.lines().collect();
    let panics = lines.iter().enumerate().filter(|(_, line)| line.contains(" panicked at "));
    let said = panics.flat_map(|(at, _)| lines[at..].iter().take(5));
    let failed = lines.iter().filter(|line| line.ends_with("... FAILED"));
    let safe = said.chain(failed).filter(|line| found(line, forms).is_none());
    safe.fold(String::new(), |text, line| text + "\n" + line)
}
