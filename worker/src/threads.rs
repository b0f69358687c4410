//! Threads beside others: what they give, and their panics, which are the waiting one's. Starts none, and decides nothing about when to wait.

use std::thread::ScopedJoinHandle;

/// What a thread gives, once it ends.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
