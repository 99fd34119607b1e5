//! Threads that run until they are told to stop.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::Failure;
use crate::bell::Bell;

/// How long the jobs in hand may go on after a signal: less than the 30 s after which Kubernetes
/// and ECS kill.
const GRACE: Duration = Duration::from_secs(25);

/// What a thread of this name does.
pub(crate) type Task = (String, Box<dyn FnOnce() + Send>);

/// Runs them until the bell is stopped, and then for GRACE at most. One that panics stops all, so
/// that whoever started this program sees it.
pub(crate) fn run(tasks: Vec<Task>, bell: &Arc<Bell>) -> Result<(), Failure> {
    let (alive, ended) = channel::<()>();
    let mut threads = Vec::new();
    for (name, task) in tasks {
        let (alive, stops) = (alive.clone(), StopsAtItsEnd(bell.clone()));
        let body = move || {
            let _held = (stops, alive);
            task();
        };
        threads.push(thread::Builder::new().name(name).spawn(body)?);
    }
    drop(alive);
    bell.wait_until_stopped();
    if ended.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
        return Err(
            "the jobs in hand take too long; the server rolls them back, and they come again"
                .into(),
        );
    }
    let panicked = threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count();
    if panicked == 0 { Ok(()) } else { Err("a thread panicked".into()) }
}

struct StopsAtItsEnd(Arc<Bell>);

impl Drop for StopsAtItsEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A second signal ends the program at once: the server rolls back what is in hand when it notices,
/// which is at the end of the query that runs, or before by its client_connection_check_interval.
pub(crate) fn stop_on_signals(bell: Arc<Bell>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for (i, signal) in signals.forever().enumerate() {
            log::info!("signal {signal}");
            if i > 0 {
                let _ = emulate_default_handler(signal);
            }
            bell.stop();
        }
    });
    Ok(())
}
