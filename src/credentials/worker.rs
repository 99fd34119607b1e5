//! [`Worker`]: the thread that calls the sources of credentials.

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A thread with a current-thread runtime, for all caches of the process. It ends when the last of
/// them is dropped.
///
/// Callers wait for it and never block on a runtime themselves, because they may be inside of async
/// code.
pub(super) struct Worker {
    runtime: Handle,
    /// Its drop ends the thread.
    running: oneshot::Sender<()>,
    process: u32,
}

impl Worker {
    /// Returns the running worker, or starts one.
    pub(super) fn shared() -> io::Result<Arc<Worker>> {
        static RUNNING: Mutex<Weak<Worker>> = Mutex::new(Weak::new());
        let mut running = RUNNING.lock();
        if let Some(worker) = running.upgrade().filter(|worker| worker.is_running()) {
            return Ok(worker);
        }
        let worker = Arc::new(Worker::start()?);
        *running = Arc::downgrade(&worker);
        Ok(worker)
    }

    fn start() -> io::Result<Worker> {
        let (running, ended) = oneshot::channel();
        let (built, outcome) = std::sync::mpsc::channel();
        // The runtime is made on its thread to be dropped there: a runtime must not be dropped
        // inside async code.
        let serve = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = built.send(Ok(runtime.handle().clone()));
                let _ = runtime.block_on(ended);
            }
            // Such as without free file descriptors.
            Err(error) => drop(built.send(Err(error))),
        };
        std::thread::Builder::new().name("rds-iam-worker".into()).spawn(serve)?;
        let runtime = outcome.recv().map_err(io::Error::other)??;
        Ok(Worker { runtime, running, process: std::process::id() })
    }

    /// Whether the thread runs. After a fork it does not: only the thread that forked is in the
    /// child.
    fn is_running(&self) -> bool {
        self.process == std::process::id() && !self.running.is_closed()
    }

    /// Runs `task` soon. Drops it if the thread has ended.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}
