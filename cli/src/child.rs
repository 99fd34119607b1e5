//! The command of `rds-iam local`: a child process that gets our signals.

use std::io;
use std::process::{Child, Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};
use signal_hook::low_level::siginfo::Cause;

/// How the command ended.
pub(crate) struct Ended(ExitStatus);

pub(crate) type Signals = SignalsInfo<WithOrigin>;

/// Runs the command until it ends. Forwards signals that were sent to this process alone; those of
/// a terminal reach both.
pub(crate) fn run_with(command: &mut Command, signals: Signals) -> io::Result<Ended> {
    let mut child = command.spawn()?;
    let _forwarding = forward(signals, &child);
    child.wait().map(Ended)
}

impl Ended {
    /// Returns the command's exit code. If a signal ended the command, the same signal ends this
    /// process.
    pub(crate) fn exit_code(self) -> ExitCode {
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&self.0) {
            disable_core_dump();
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            // The exit code of a shell, if the signal did not end this process.
            return ExitCode::from(128 + u8::try_from(signal).unwrap_or_default());
        }
        let code = self.0.code().and_then(|code| u8::try_from(code).ok());
        code.map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

/// A core dump of this process would contain secret keys, and explain nothing about the command.
fn disable_core_dump() {
    // A core_pattern that is a pipe ignores the limit.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Catches the signals of people and supervisors. Leaves out those that this process was started to
/// ignore, as by nohup.
pub(crate) fn catch() -> io::Result<Signals> {
    let ignored = ignored();
    let is_caught = |signal: &i32| ignored >> (signal - 1) & 1 == 0;
    Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().filter(is_caught))
}

/// Returns a bit for each ignored signal (proc(5), SigIgn), or 0 without /proc.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Ends the thread that forwards signals.
struct Forwarding(Handle);

fn forward(mut signals: Signals, child: &Child) -> Forwarding {
    let handle = signals.handle();
    let pid = Pid::from_child(child);
    std::thread::spawn(move || {
        for origin in signals.forever().filter(|origin| origin.cause != Cause::Kernel) {
            if let Some(signal) = Signal::from_named_raw(origin.signal) {
                // Fails if the command has ended.
                let _ = kill_process(pid, signal);
            }
        }
    });
    Forwarding(handle)
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.close();
    }
}
