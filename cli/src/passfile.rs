//! A private passfile that is kept current.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use diesel_rds_iam::{LibpqLogin, RdsConnectionManager};
use tempfile::{NamedTempFile, TempDir};

/// A file with the tokens of all hosts, in a folder that only its owner can enter. Both go with it.
pub(crate) struct Passfile {
    folder: TempDir,
    expires_at: Option<SystemTime>,
    written: SystemTime,
}

/// Rewrites the passfile in time, until it is dropped.
pub(crate) struct Keeper {
    /// Its end is the thread's end.
    sender: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How much of its life a token has left, at least: for a login that takes long, and clocks that
/// differ.
const RESERVE: Duration = Duration::from_secs(5 * 60);

/// Not more often than that, where credentials end sooner.
const PAUSE: Duration = Duration::from_secs(60);

/// How often to look at the clock. Waiting once for all would miss that it was set, or that the
/// machine slept.
const TICK: Duration = Duration::from_secs(1);

impl Passfile {
    pub(crate) fn create(login: &LibpqLogin) -> io::Result<Passfile> {
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
        let mut builder = tempfile::Builder::new();
        builder.prefix("rds-iam-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let folder = match runtime.map(|runtime| builder.tempdir_in(runtime)) {
            Some(Ok(folder)) => folder,
            _ => builder.tempdir()?,
        };
        let mut passfile = Passfile { folder, expires_at: None, written: SystemTime::UNIX_EPOCH };
        passfile.write(login)?;
        Ok(passfile)
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_in(self.folder.path())
    }

    /// In one step, for a login can read it at any moment.
    fn write(&mut self, login: &LibpqLogin) -> io::Result<()> {
        // Readable by its owner only, as libpq wants it.
        let mut file = NamedTempFile::new_in(self.folder.path())?;
        file.write_all(login.passfile().as_bytes())?;
        file.persist(self.path())?;
        self.expires_at = login.expires_at();
        self.written = SystemTime::now();
        Ok(())
    }

    fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back says nothing of the token's age: then it is due, too.
        let since = now.duration_since(self.written).unwrap_or(PAUSE);
        since >= PAUSE && self.expires_at.is_some_and(|end| end < now + RESERVE)
    }

    fn refresh(&mut self, manager: &RdsConnectionManager) {
        let refreshed = match manager.libpq_login() {
            Ok(login) => self.write(&login).map_err(|error| format!("cannot write it: {error}")),
            Err(error) => Err(error.to_string()),
        };
        match refreshed {
            Ok(()) => log::debug!("the passfile holds new tokens"),
            Err(text) => {
                log::warn!("the passfile keeps its old tokens: {text}");
                // Not again at the next tick.
                self.written = SystemTime::now();
            }
        }
    }

    pub(crate) fn keep_current(mut self, manager: RdsConnectionManager) -> Keeper {
        let (sender, receiver) = channel::<()>();
        let thread = thread::spawn(move || {
            while receiver.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if self.is_due(SystemTime::now()) {
                    self.refresh(&manager);
                }
            }
        });
        Keeper { sender: Some(sender), thread: Some(thread) }
    }
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join("passfile")
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and the file is gone all the same.
            let _ = thread.join();
        }
    }
}
