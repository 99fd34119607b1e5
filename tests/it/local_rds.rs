//! The stand-in itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{in_a_child, manager, start};

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
    assert_eq!((first.attempts().len(), second.attempts().len(), third.attempts().len()), (1, 0, 0));
    let with_anothers_keys = first.manager_builder().build(second.database_url()).unwrap();
    assert!(with_anothers_keys.connect().is_err());
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

/// The watchdog works after the process has gone, so there is nothing to join: the folder's end is awaited.
#[test]
fn nothing_is_left_after_a_process_that_ends_without_a_drop() {
    let note = tempfile::NamedTempFile::new().unwrap();
    in_a_child("local_rds::leaks", &[("NOTE", note.path().to_str().unwrap())]);
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
fn debug_shows_no_secret() {
    let rds = start(LocalRds::builder());
    let shown = format!("{rds:?} {:?}", rds.attempts());
    assert!(!shown.contains("local-rds-secret") && !shown.contains(rds.password()), "{shown}");
}
