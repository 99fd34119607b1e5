//! The stand-in itself.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{backend, current_user, in_a_child, manager, refused, send, start};

fn folder(rds: &LocalRds) -> PathBuf {
    rds.ca_file().parent().unwrap().to_owned()
}

#[test]
fn several_at_once_know_nothing_of_each_other() {
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
    let with_anothers_keys = first.manager_builder().build(second.database_url()).unwrap();
    assert!(with_anothers_keys.connect().is_err());
}

#[test]
fn nobody_else_can_reach_the_superusers_socket() {
    let rds = start(LocalRds::builder());
    assert_eq!(std::fs::metadata(folder(&rds)).unwrap().permissions().mode() & 0o777, 0o700);
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
    let (sender, receiver) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let rds = start(LocalRds::builder());
        sender.send(folder(&rds)).unwrap();
        panic!("a test fails");
    });
    assert!(test.join().is_err());
    assert!(!receiver.recv().unwrap().exists());
}

/// The watchdog works after the process has gone, so there is nothing to join: the folder's end is
/// awaited.
#[test]
fn nothing_is_left_after_a_process_that_ends_without_a_drop() {
    nothing_is_left_after("local_rds::leaks");
}

#[test]
fn nothing_is_left_of_a_server_with_a_backend_that_was_stopped() {
    nothing_is_left_after("local_rds::leaks_with_a_backend_stopped");
}

fn nothing_is_left_after(test: &str) {
    let note = tempfile::NamedTempFile::new().unwrap();
    in_a_child(test, &[("NOTE", note.path().to_str().unwrap())]);
    let folder = PathBuf::from(std::fs::read_to_string(note.path()).unwrap());
    assert!(folder.is_absolute());
    let deadline = Instant::now() + Duration::from_secs(20);
    while folder.exists() {
        assert!(Instant::now() < deadline, "{} is still there", folder.display());
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "runs as a process of its own, which ends with a server that nobody drops"]
fn leaks() {
    let rds = start(LocalRds::builder());
    std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
    std::mem::forget(rds);
}

#[test]
#[ignore = "runs as a process of its own, which ends with a server that nobody drops"]
fn leaks_with_a_backend_stopped() {
    let rds = start(LocalRds::builder());
    std::fs::write(std::env::var("NOTE").unwrap(), folder(&rds).to_str().unwrap()).unwrap();
    let mut session = rds.superuser().unwrap();
    send("STOP", backend(&mut session));
    std::mem::forget((rds, session));
}

#[test]
fn variables_that_are_meant_for_another_server_do_no_harm() {
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
#[ignore = "runs as a process of its own, with other people's PG* variables"]
fn starts_and_answers() {
    let rds = start(LocalRds::builder());
    assert_eq!(current_user(&mut rds.superuser().unwrap()), "rdsadmin");
}

#[test]
fn odd_temporary_folders_do_no_harm() {
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
#[ignore = "runs as a process of its own, with a temporary folder of its own"]
fn logs_in() {
    let rds = start(LocalRds::builder());
    assert_eq!(current_user(&mut manager(&rds).connect().unwrap()), LocalRds::USER);
}

#[test]
fn a_temporary_folder_that_no_socket_can_be_in_is_told_as_such() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["a,b", &"x".repeat(100)] {
        let folder = parent.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        in_a_child("local_rds::has_no_room", &[("TMPDIR", folder.to_str().unwrap())]);
    }
}

#[test]
#[ignore = "runs as a process of its own, with a temporary folder of its own"]
fn has_no_room() {
    let text = LocalRds::start().unwrap_err().to_string();
    assert!(text.contains("set TMPDIR to another"), "{text}");
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
    // Dead, but not waited for: its command line is empty.
    while watches(&watchdog) {
        std::thread::yield_now();
    }
    let port = rds.port();
    drop(rds);
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_certificate_of_another_authority_lets_in_who_trusts_that() {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let mut session = manager.connect().unwrap();
    let authority = rds.rotate_certificate().unwrap();
    assert_eq!(current_user(&mut session), "app");
    assert!(refused(&manager).contains("certificate verify failed"));

    std::fs::write(rds.ca_file(), authority).unwrap();
    // Its own pause after a refusal is not what this is about.
    rds.manager_builder().build(rds.database_url()).unwrap().connect().unwrap();
    rds.restart().unwrap();
    rds.manager_builder().build(rds.database_url()).unwrap().connect().unwrap();

    rds.stop();
    rds.rotate_certificate().unwrap_err();
}

#[test]
fn an_endpoint_is_known_by_its_name_in_any_case() {
    let rds = start(
        LocalRds::builder()
            .endpoint("DB.ABC.eu-west-1.rds.amazonaws.com.", 5432)
            .region("eu-west-1"),
    );
    assert!(manager(&rds).connect().is_ok());
}

#[test]
fn what_cannot_be_started_is_refused_before_it_starts() {
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
        assert!(matches!(error, diesel_rds_iam::Error::Conninfo(_)), "{error}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let rds = start(LocalRds::builder());
    let shown = format!("{rds:?} {:?}", rds.attempts());
    assert!(!shown.contains("local-rds-secret") && !shown.contains(rds.password()), "{shown}");
}
