//! `LocalRds` itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::time::Duration;

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{
    backend, current_user, end_of, eventually, in_a_child, manager, refused, send, soon, start,
};

fn folder(rds: &LocalRds) -> PathBuf {
    rds.ca_file().parent().unwrap().to_owned()
}

#[test]
fn several_servers_are_independent() {
    let servers: Vec<LocalRds> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3).map(|_| scope.spawn(|| start(LocalRds::builder()))).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [first, second, third] = servers.as_slice() else { panic!("not three") };
    assert!(manager(first).connect().is_ok());
    assert_eq!(
        (first.attempts().len(), second.attempts().len(), third.attempts().len()),
        (1, 0, 0)
    );
    let with_other_keys = first.manager_builder().build(second.database_url()).unwrap();
    assert!(with_other_keys.connect().is_err());
}

#[test]
fn other_users_cannot_reach_the_superusers_socket() {
    let rds = start(LocalRds::builder());
    for private in ["run", "data"] {
        let mode = std::fs::metadata(folder(&rds).join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{private}");
    }
    assert!(folder(&rds).join(format!("run/.s.PGSQL.{}", rds.port())).exists());
    let mode = std::fs::metadata(folder(&rds)).unwrap().permissions().mode();
    assert_eq!(mode & 0o022, 0, "writable for others: {mode:o}");
}

#[test]
fn nothing_is_left_after_a_drop() {
    let rds = start(LocalRds::builder());
    let (folder, port) = (folder(&rds), rds.port());
    assert!(folder.exists());
    drop(rds);
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn nothing_is_left_after_a_panic() {
    let (sender, receiver) = channel();
    let test = std::thread::spawn(move || {
        let rds = start(LocalRds::builder());
        sender.send(folder(&rds)).unwrap();
        panic!("a test fails");
    });
    assert!(test.join().is_err());
    assert!(!receiver.try_recv().unwrap().exists());
}

/// The watchdog runs after the end of the process. There is nothing to join, so the test polls.
#[test]
fn nothing_is_left_after_a_process_that_ends_without_a_drop() {
    nothing_is_left_after("local_rds::leaks");
}

#[test]
fn nothing_is_left_of_a_server_with_a_stopped_backend() {
    nothing_is_left_after("local_rds::leaks_with_a_backend_stopped");
}

fn nothing_is_left_after(test: &str) {
    let note = tempfile::NamedTempFile::new().unwrap();
    in_a_child(test, &[("NOTE", note.path().to_str().unwrap())]);
    let folder = PathBuf::from(std::fs::read_to_string(note.path()).unwrap());
    assert!(folder.is_absolute());
    eventually("the folder is removed", || !folder.exists());
}

#[test]
#[ignore = "runs in a child process, which ends without a drop of the server"]
fn leaks() {
    let rds = start(LocalRds::builder());
    std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
    std::mem::forget(rds);
}

#[test]
#[ignore = "runs in a child process, which ends without a drop of the server"]
fn leaks_with_a_backend_stopped() {
    let rds = start(LocalRds::builder());
    std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
    let mut session = rds.superuser().unwrap();
    send("STOP", backend(&mut session));
    std::mem::forget((rds, session));
}

#[test]
fn pg_variables_for_other_servers_are_ignored() {
    let theirs = [
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGOPTIONS", "-c nonsense=1"),
        ("PGGSSENCMODE", "require"),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGCLIENTENCODING", "bogus"),
        ("PGDATA", "/nonexistent"),
        ("PGPASSWORD", "hunter2"),
    ];
    in_a_child("local_rds::starts_and_answers", &theirs);
}

#[test]
#[ignore = "runs in a child process, with PG* variables for other servers"]
fn starts_and_answers() {
    let rds = start(LocalRds::builder());
    assert_eq!(current_user(&mut rds.superuser().unwrap()), "rdsadmin");
}

#[test]
fn temporary_folders_with_special_characters_work() {
    for name in ["a b", "o'neil", "double\"quote", "100%", "é"] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        for path in [parent.path(), &folder] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        in_a_child("local_rds::logs_in", &[("TMPDIR", folder.to_str().unwrap())]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{name}");
    }
}

#[test]
#[ignore = "runs in a child process, with another TMPDIR"]
fn logs_in() {
    let rds = start(LocalRds::builder());
    assert_eq!(current_user(&mut manager(&rds).connect().unwrap()), LocalRds::USER);
}

#[test]
fn a_temporary_folder_without_room_for_a_socket_is_reported() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["a,b", &"x".repeat(100)] {
        let folder = parent.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        in_a_child("local_rds::has_no_room", &[("TMPDIR", folder.to_str().unwrap())]);
    }
}

#[test]
#[ignore = "runs in a child process, with another TMPDIR"]
fn has_no_room() {
    let text = LocalRds::start().unwrap_err().to_string();
    assert!(text.contains("set TMPDIR to a folder with a short path"), "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_when_the_watchdog_was_killed() {
    let rds = start(LocalRds::builder());
    let folder = folder(&rds);
    let watches = |process: &std::fs::DirEntry| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"sh\0-c\0")
            && line.ends_with(format!("{}\0", folder.display()).as_bytes())
    };
    let watchdog = std::fs::read_dir("/proc").unwrap().flatten().find(watches).unwrap();
    let kill = Command::new("sh")
        .arg("-c")
        .arg("kill -KILL \"$0\"")
        .arg(watchdog.file_name())
        .status()
        .unwrap();
    assert!(kill.success());
    // The command line of a zombie is empty.
    soon("the watchdog ends", || !watches(&watchdog));
    let port = rds.port();
    drop(rds);
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn after_a_rotation_only_the_new_authority_is_trusted() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let mut session = manager.connect().unwrap();
    let authority = rds.rotate_certificate().unwrap();
    assert_eq!(current_user(&mut session), "app");
    assert!(refused(&manager).contains("certificate verify failed"));

    std::fs::write(rds.ca_file(), authority).unwrap();
    // A new manager has no back-off.
    rds.manager().unwrap().connect().unwrap();
    rds.restart().unwrap();
    rds.manager().unwrap().connect().unwrap();

    rds.stop();
    rds.rotate_certificate().unwrap_err();
}

#[test]
fn the_case_of_the_endpoint_does_not_matter() {
    let rds = start(
        LocalRds::builder()
            .endpoint("DB.ABC.eu-west-1.rds.amazonaws.com.", 5432)
            .region("eu-west-1"),
    );
    assert!(manager(&rds).connect().is_ok());
}

#[test]
fn invalid_settings_are_refused_before_the_start() {
    for builder in [
        LocalRds::builder().endpoint("not a host", 5432),
        LocalRds::builder().endpoint("localhost", 0),
        LocalRds::builder().region("Ireland"),
        LocalRds::builder().iam_user(""),
        LocalRds::builder().iam_user("x".repeat(64)),
        LocalRds::builder().iam_user(LocalRds::USER),
        LocalRds::builder().iam_user(LocalRds::USER_WITH_PASSWORD),
    ] {
        let error = builder.start().unwrap_err();
        assert!(matches!(error, diesel_rds_iam::Error::Config(_)), "{error}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let rds = start(LocalRds::builder());
    let shown = format!("{rds:?} {:?}", rds.attempts());
    assert!(!shown.contains("local-rds-secret") && !shown.contains(rds.password()), "{shown}");
}

/// The process id of the server.
pub(crate) fn postmaster(rds: &LocalRds) -> String {
    let text = std::fs::read_to_string(folder(rds).join("data/postmaster.pid")).unwrap();
    text.lines().next().unwrap().to_owned()
}

#[test]
fn a_stopped_postgres_does_not_block_the_drop() {
    let rds = start(LocalRds::builder());
    let folder = folder(&rds);
    send("STOP", postmaster(&rds));
    let (sender, dropped) = channel();
    std::thread::spawn(move || {
        drop(rds);
        sender.send(()).unwrap();
    });
    dropped.recv_timeout(Duration::from_secs(30)).expect("the drop ends within 30 s");
    assert!(!folder.exists());
}

#[test]
fn nothing_is_left_of_a_stopped_postgres() {
    nothing_is_left_after("local_rds::leaks_stopped");
}

#[test]
#[ignore = "runs in a child process, which ends without a drop of the server"]
fn leaks_stopped() {
    let rds = start(LocalRds::builder());
    std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
    send("STOP", postmaster(&rds));
    std::mem::forget(rds);
}

static SERVER: OnceLock<LocalRds> = OnceLock::new();

/// A logger that calls a method of the server about which it logs.
struct CountingLogger;

impl log::Log for CountingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let attempts = SERVER.get().map_or(0, |rds| rds.attempts().len());
        eprintln!("{attempts}: {}", record.args());
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_can_call_methods_of_the_server() {
    let output = in_a_child("local_rds::logs_attempts", &[]);
    assert!(output.contains("LocalRds admitted app"), "{output}");
}

#[test]
#[ignore = "runs in a child process, with another logger"]
fn logs_attempts() {
    log::set_logger(&CountingLogger).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let rds = SERVER.get_or_init(|| LocalRds::start().unwrap());
    assert_eq!(current_user(&mut rds.manager().unwrap().connect().unwrap()), LocalRds::USER);
    assert_eq!(rds.attempts().len(), 1);
    // A static is not dropped.
    rds.stop();
}

/// As root, the server runs under another account, which must not gain rights of root.
mod as_root {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Child;

    use super::*;

    fn is_root() -> bool {
        std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
    }

    /// Runs a shell command as the server's account.
    fn as_account(rds: &LocalRds, script: &str) -> bool {
        let data = std::fs::metadata(folder(rds).join("data")).unwrap();
        let mut sh = Command::new("sh");
        sh.args(["-c", script]).uid(data.uid()).gid(data.gid()).current_dir(folder(rds));
        sh.status().unwrap().success()
    }

    fn assert_untouched(file: &Path) {
        let metadata = std::fs::metadata(file).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::read_to_string(file).unwrap(), "of root");
    }

    #[test]
    fn links_of_the_servers_account_are_not_followed() {
        if !is_root() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of root").unwrap();
        let target = file.path().display();
        let rds = start(LocalRds::builder());
        for name in ["server.pem", "server.key", "ca.pem"] {
            assert!(!as_account(&rds, &format!("ln -sf {target} {name}")), "{name}");
        }
        // Even if there is a link, it is replaced and not followed.
        std::fs::remove_file(folder(&rds).join("server.key")).unwrap();
        symlink(file.path(), folder(&rds).join("server.key")).unwrap();
        rds.rotate_certificate().unwrap();
        assert_untouched(file.path());

        assert!(as_account(&rds, &format!("ln -sf {target} data/standby.signal")));
        rds.demote().unwrap_err();
        assert_untouched(file.path());
    }

    /// A process of root in its own process group.
    fn bystander() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    #[test]
    fn the_watchdog_does_not_signal_what_postmaster_pid_names() {
        if !is_root() {
            return;
        }
        let mut sleep = bystander();
        let note = tempfile::NamedTempFile::new().unwrap();
        let group = format!("-{}", sleep.id());
        in_a_child(
            "local_rds::as_root::leaks_with_another_pid",
            &[("NOTE", note.path().to_str().unwrap()), ("PID", &group)],
        );
        let folder = PathBuf::from(std::fs::read_to_string(note.path()).unwrap());
        eventually("the folder is removed", || !folder.exists());
        assert!(sleep.try_wait().unwrap().is_none(), "the watchdog ended a process of root");
        sleep.kill().unwrap();
        end_of(&mut sleep, "sleep");
    }

    #[test]
    #[ignore = "runs in a child process, which ends without a drop of the server"]
    fn leaks_with_another_pid() {
        let rds = start(LocalRds::builder());
        let pid = std::env::var("PID").unwrap();
        assert!(as_account(&rds, &format!("echo {pid} > data/postmaster.pid")));
        std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
        std::mem::forget(rds);
    }
}
