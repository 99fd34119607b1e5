//! A private passfile with valid tokens, kept by a process beside the command.
//!
//! rds-iam itself becomes the command, so no parent stands between the command and the signals that
//! it gets, its exit code, and its orphaned children.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use clap::Args;
use diesel_rds_iam::{LibpqLogin, RdsConnectionManager};
use rustix::process::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::{NamedTempFile, TempDir};

use crate::database::Options;
use crate::{Failure, Outcome};

/// Keep a passfile until a process ends (internal)
#[derive(Args)]
pub(crate) struct KeepPassfile {
    /// The process
    #[arg(long)]
    of: i32,

    /// Set in the second of two processes: the command must not get a child that it did not start
    #[arg(long)]
    detached: bool,

    #[command(flatten)]
    options: Options,
}

/// Starts the process that keeps a passfile for as long as this process runs. Returns the path of
/// the file, and no text in the error if that process has printed one.
pub(crate) fn start_keeper(
    options: &Options,
    url: Option<&str>,
) -> Result<PathBuf, Option<io::Error>> {
    let mut command = keeper(options).map_err(Some)?;
    command.arg(format!("--of={}", std::process::id())).stdout(Stdio::piped());
    if let Some(url) = url {
        command.env("DATABASE_URL", url);
    }
    let mut child = command.spawn().map_err(Some)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(Some)?;
    }
    child.wait().map_err(Some)?;
    line.strip_suffix('\n').map(PathBuf::from).ok_or(None)
}

/// Returns the command for another process of this program.
fn keeper(options: &Options) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("keep-passfile").args(options.arguments()).stdin(Stdio::null());
    Ok(command)
}

impl KeepPassfile {
    pub(crate) fn run(self) -> Outcome {
        if !self.detached {
            let mut command = keeper(&self.options)?;
            command.args([format!("--of={}", self.of), "--detached".into()]);
            // Its own process group: the signals of a terminal are for the command.
            command.process_group(0).spawn()?;
            return Ok(ExitCode::SUCCESS);
        }
        ignore_signals()?;
        let process = Process::open(self.of)?;
        let manager = self.options.manager_for(None)?;
        let mut passfile = Passfile::create(&manager.libpq_login()?).map_err(|error| {
            Failure::new(
                1,
                format!("cannot write a passfile: {error}\nhelp: set XDG_RUNTIME_DIR or TMPDIR"),
            )
        })?;
        writeln!(io::stdout(), "{}", passfile.path().display())?;
        while !process.ends_within(TICK) {
            if passfile.is_due(SystemTime::now()) {
                passfile.refresh(&manager);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// systemd sends SIGTERM to all processes of a service. The command may log in until it ends.
fn ignore_signals() -> io::Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

/// Another process, which is not a child.
struct Process {
    pid: Pid,
    #[cfg(target_os = "linux")]
    descriptor: Option<std::os::fd::OwnedFd>,
}

impl Process {
    fn open(pid: i32) -> Result<Process, Failure> {
        let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0);
        let pid = pid.ok_or_else(|| Failure::new(2, "--of is not the id of a process"))?;
        #[cfg(target_os = "linux")]
        let descriptor =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok();
        Ok(Process {
            pid,
            #[cfg(target_os = "linux")]
            descriptor,
        })
    }

    /// Waits until the process has ended. Returns `false` after `limit`.
    fn ends_within(&self, limit: Duration) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};

            let limit = Timespec::try_from(limit).ok();
            let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
            return poll(&mut descriptors, limit.as_ref()).is_ok_and(|ready| ready > 0);
        }
        std::thread::sleep(limit);
        rustix::process::test_kill_process(self.pid) == Err(rustix::io::Errno::SRCH)
    }
}

/// A file with the tokens of all hosts, in a folder that only its owner can enter. Dropping it
/// removes both.
struct Passfile {
    folder: TempDir,
    expires_at: Option<SystemTime>,
    written: SystemTime,
}

/// The least remaining validity of a token: for a slow login, and for clocks that differ.
const RESERVE: Duration = Duration::from_secs(5 * 60);

/// The shortest time between two refreshes, if credentials expire sooner than a token.
const PAUSE: Duration = Duration::from_secs(60);

/// How often to check the clock. One long wait would miss that the clock was set or that the
/// machine slept.
const TICK: Duration = Duration::from_secs(1);

impl Passfile {
    fn create(login: &LibpqLogin) -> io::Result<Passfile> {
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| is_own(path));
        let mut builder = tempfile::Builder::new();
        builder.prefix("rds-iam-");
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let folder = match runtime.map(|runtime| builder.tempdir_in(runtime)) {
            Some(Ok(folder)) => folder,
            _ => builder.tempdir()?,
        };
        let mut passfile = Passfile { folder, expires_at: None, written: SystemTime::UNIX_EPOCH };
        passfile.write(login)?;
        Ok(passfile)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("passfile")
    }

    /// Replaces the file in one step, because a login can read it at any moment.
    fn write(&mut self, login: &LibpqLogin) -> io::Result<()> {
        // NamedTempFile is readable by its owner only, as libpq requires.
        let mut file = NamedTempFile::new_in(self.folder.path())?;
        file.write_all(login.passfile().as_bytes())?;
        file.persist(self.path())?;
        self.expires_at = login.expires_at();
        self.written = SystemTime::now();
        Ok(())
    }

    fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back shows neither the age of the token nor its end.
        let Ok(since) = now.duration_since(self.written) else { return true };
        since >= PAUSE && self.expires_at.is_some_and(|end| end < now + RESERVE)
    }

    fn refresh(&mut self, manager: &RdsConnectionManager) {
        let refreshed = match manager.libpq_login() {
            Ok(login) => self.write(&login).map_err(|error| format!("cannot write it: {error}")),
            Err(error) => Err(error.to_string()),
        };
        match refreshed {
            Ok(()) => log::debug!("passfile refreshed"),
            Err(text) => {
                log::warn!("passfile not refreshed, its tokens stay: {text}");
                // The next attempt comes after a pause.
                self.written = SystemTime::now();
            }
        }
    }
}

/// Whether it is a folder of this user. `su` keeps the XDG_RUNTIME_DIR of the user before.
fn is_own(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let data = path.metadata();
    data.is_ok_and(|it| it.is_dir() && it.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passfile_is_due_before_its_end_and_after_the_clock_was_set_back() {
        let written = SystemTime::now();
        let expires_at = Some(written + Duration::from_secs(900));
        let passfile = Passfile { folder: tempfile::tempdir().unwrap(), expires_at, written };
        let due_after = |seconds| passfile.is_due(written + Duration::from_secs(seconds));
        assert_eq!([0, 599, 601].map(due_after), [false, false, true]);
        assert!(passfile.is_due(written - Duration::from_secs(86_400)));
    }
}
