//! Threads that run until the bell is stopped.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::Failure;
use crate::bell::Bell;

/// How long running jobs may continue after a signal. Kubernetes and ECS kill after 30 s.
const GRACE: Duration = Duration::from_secs(25);

/// The name of a thread, and what it runs.
pub(crate) type Task = (String, Box<dyn FnOnce() + Send>);

/// Runs the tasks until the bell is stopped, and then for at most GRACE. A panic stops all threads,
/// so that the program ends with an error.
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
            "running jobs took too long; the server rolls them back, and they will run again"
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

/// Stops the bell at the first signal. A second signal ends the program at once: the server rolls
/// back the running jobs at the end of their query, or earlier with
/// client_connection_check_interval.
pub(crate) fn stop_on_signals(bell: Arc<Bell>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for (i, signal) in signals.forever().enumerate() {
            log::info!("signal {signal} received");
            if i > 0 {
                let _ = emulate_default_handler(signal);
            }
            bell.stop();
        }
    });
    Ok(())
}
