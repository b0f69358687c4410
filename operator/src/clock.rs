//! Where the shells read the time; decisions get it as an argument.

use jiff::Timestamp;

/// A source of the current time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The current time.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn now(self) -> Timestamp {
        Timestamp::now()
    }
}
