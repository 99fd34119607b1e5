//! [`CheckoutTimeout`]: the time limit of a pool's checkout.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    static CURRENT: Cell<Option<State>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct State {
    deadline: Instant,
    is_over: bool,
}

/// The checkout of this thread, until the drop.
///
/// r2d2 checks its idle connections in turn until one is valid, without a time limit. If the server
/// is frozen, each check takes `ping_timeout`. A checkout that is over checks no more connections.
pub(crate) struct CheckoutTimeout(());

impl CheckoutTimeout {
    pub(crate) fn start(deadline: Instant) -> CheckoutTimeout {
        CURRENT.set(Some(State { deadline, is_over: false }));
        CheckoutTimeout(())
    }

    /// A ping got no answer. The checkout is over if its time is up. Before the first such ping it
    /// is not: a connection that only had no time to answer would not be used again.
    pub(super) fn ping_timed_out() {
        if let Some(state) = CURRENT.get() {
            let is_over = Instant::now() >= state.deadline;
            CURRENT.set(Some(State { is_over, ..state }));
        }
    }

    /// Whether this thread's checkout is over.
    pub(crate) fn is_over() -> bool {
        CURRENT.get().is_some_and(|state| state.is_over)
    }
}

impl Drop for CheckoutTimeout {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_checkout_is_over_if_a_ping_got_no_answer_and_its_time_is_up() {
        CheckoutTimeout::ping_timed_out();
        assert!(!CheckoutTimeout::is_over(), "no checkout");
        let long = CheckoutTimeout::start(Instant::now() + Duration::from_secs(3600));
        CheckoutTimeout::ping_timed_out();
        assert!(!CheckoutTimeout::is_over(), "there is time left");
        drop(long);
        let short = CheckoutTimeout::start(Instant::now());
        assert!(!CheckoutTimeout::is_over(), "each checkout can ping once");
        CheckoutTimeout::ping_timed_out();
        assert!(CheckoutTimeout::is_over());
        drop(short);
        assert!(!CheckoutTimeout::is_over());
    }
}
