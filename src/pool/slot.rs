//! [`Slot`]: where a thread stores the connection of one owner.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};

use crate::error::Error;

thread_local! {
    /// std's thread-locals are dropped when the thread ends. Those of other crates are kept for
    /// the next thread.
    static SLOTS: RefCell<Vec<Stored>> = const { RefCell::new(Vec::new()) };
}

/// What this thread stores for one owner.
struct Stored {
    owner: Weak<()>,
    is_in_use: bool,
    kept: Option<Box<dyn Any>>,
}

/// The right to use this thread's slot of one owner. The drop gives it back.
pub(super) struct Slot {
    owner: Weak<()>,
    /// The slot is this thread's, so the right must not leave the thread.
    _not_send: PhantomData<*const ()>,
}

impl Slot {
    /// Takes the slot, and what is stored there.
    pub(super) fn take(owner: &Arc<()>) -> Result<(Slot, Option<Box<dyn Any>>), Error> {
        let owner = Arc::downgrade(owner);
        // Orphans are dropped after the borrow ends, because closing a connection is foreign code.
        let taken = SLOTS.try_with(|slots| {
            let mut slots = slots.borrow_mut();
            let orphans: Vec<Stored> =
                slots.extract_if(.., |stored| stored.owner.strong_count() == 0).collect();
            let known = slots.iter().position(|stored| stored.owner.ptr_eq(&owner));
            let i = known.unwrap_or_else(|| {
                slots.push(Stored { owner: owner.clone(), is_in_use: false, kept: None });
                slots.len() - 1
            });
            let was_in_use = std::mem::replace(&mut slots[i].is_in_use, true);
            let kept = if was_in_use { Err(Error::InUse) } else { Ok(slots[i].kept.take()) };
            (kept, orphans)
        });
        let (kept, _orphans) = taken.map_err(|_| Error::ThreadEnding)?;
        // Before there is a Slot, whose drop would free the slot of the guard that has it.
        let kept = kept?;
        Ok((Slot { owner, _not_send: PhantomData }, kept))
    }

    pub(super) fn put_back(&self, kept: Box<dyn Any>) {
        self.with_stored(|stored| stored.kept = Some(kept));
    }

    /// Does nothing if the thread is ending and its slots are gone.
    fn with_stored(&self, change: impl FnOnce(&mut Stored)) {
        let _ = SLOTS.try_with(|slots| {
            let mut slots = slots.borrow_mut();
            if let Some(stored) = slots.iter_mut().find(|stored| stored.owner.ptr_eq(&self.owner)) {
                change(stored);
            }
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.with_stored(|stored| stored.is_in_use = false);
    }
}
