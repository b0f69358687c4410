//! One promotion of a workload at a time within this process.
//!
//! Reading, deciding and writing of two promotions with the same workload never interleave, so that each sees what the other has
//! decided. Across processes the lease does the same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// Whose turn it is, by workload.
#[derive(Debug, Default)]
pub(super) struct Turns {
    all: std::sync::Mutex<HashMap<String, Weak<Mutex<()>>>>,
}

impl Turns {
    /// Waits for the turn at `workload`; it ends when the guard is dropped.
    pub(super) async fn take(&self, workload: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turn| turn.strong_count() > 0);
            let known = all.get(workload).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(Mutex::new(()));
                all.insert(workload.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_workload() {
        let turns = Turns::default();
        let first = turns.take("ml/scanner").await;
        let other = turns.take("ml/other").await;
        let waiting = turns.take("ml/scanner");
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let second = waiting.await;
        drop((second, other));
        drop(turns.take("ml/third").await);
        assert!(turns.all.lock().unwrap().len() <= 1);
    }
}
