//! A command that runs as our child, and gets our signals.

use std::io;
use std::process::{Command, ExitCode, ExitStatus};

/// How the command ended.
pub(crate) struct Ended(ExitStatus);

/// Runs the command to its end.
pub(crate) fn run(command: &mut Command) -> io::Result<Ended> {
    #[cfg(unix)]
    return run_with(command, unix::catch()?);
    #[cfg(not(unix))]
    return command.status().map(Ended);
}

/// Runs the command to its end. Signals that were sent to us alone are handed on; those of a
/// terminal reach both.
#[cfg(unix)]
pub(crate) fn run_with(command: &mut Command, signals: unix::Signals) -> io::Result<Ended> {
    let mut child = command.spawn()?;
    let _handing_on = unix::hand_on(signals, &child);
    child.wait().map(Ended)
}

impl Ended {
    /// The command's exit code. If a signal ended it, the same signal ends us.
    pub(crate) fn exit_code(self) -> ExitCode {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&self.0) {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            // SIGKILL, which nobody can send in its own name: as a shell says it.
            return ExitCode::from(128 + u8::try_from(signal).unwrap_or_default());
        }
        let code = self.0.code().and_then(|code| u8::try_from(code).ok());
        code.map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

#[cfg(unix)]
pub(crate) mod unix {
    use std::io;
    use std::process::Child;

    use rustix::process::{Pid, Signal, kill_process};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    use signal_hook::iterator::exfiltrator::WithOrigin;
    use signal_hook::iterator::{Handle, SignalsInfo};
    use signal_hook::low_level::siginfo::Cause;

    pub(crate) type Signals = SignalsInfo<WithOrigin>;

    /// All that a person or a supervisor sends, but what we were started to ignore, as by nohup: so
    /// does the command.
    pub(crate) fn catch() -> io::Result<Signals> {
        let ignored = ignored();
        let is_heard = |signal: &i32| ignored >> (signal - 1) & 1 == 0;
        Signals::new(
            [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().filter(is_heard),
        )
    }

    /// A bit for each signal that is ignored (proc(5), SigIgn); none where there is no proc.
    fn ignored() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
    }

    /// Ends the thread that hands on.
    pub(super) struct HandingOn(Handle);

    pub(super) fn hand_on(mut signals: Signals, child: &Child) -> HandingOn {
        let handle = signals.handle();
        let pid = Pid::from_child(child);
        std::thread::spawn(move || {
            for origin in signals.forever().filter(|origin| origin.cause != Cause::Kernel) {
                if let Some(signal) = Signal::from_named_raw(origin.signal) {
                    // It may have ended in the meantime.
                    let _ = kill_process(pid, signal);
                }
            }
        });
        HandingOn(handle)
    }

    impl Drop for HandingOn {
        fn drop(&mut self) {
            self.0.close();
        }
    }
}
