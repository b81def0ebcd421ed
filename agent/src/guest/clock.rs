//! The wall clock. The host sets it, so nothing that has to be trusted may be dated by it.

use rustix::time::{ClockId, Timespec, clock_settime};

/// The clock was not set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The request names no time.
    #[error("set the clock to {sec} s and {usec} µs: not a time since 1970")]
    NoTime {
        /// Seconds as requested.
        sec: i64,
        /// Microseconds as requested.
        usec: i64,
    },
    /// The kernel refused.
    #[error("clock_settime(CLOCK_REALTIME, {sec})")]
    Settime {
        /// Seconds as requested.
        sec: i64,
        /// Why.
        source: std::io::Error,
    },
}

impl ClockError {
    /// Whether the request itself is at fault.
    pub fn is_invalid(&self) -> bool {
        matches!(self, ClockError::NoTime { .. })
    }
}

/// Set the wall clock to `sec` seconds and `usec` microseconds after 1970.
pub fn set_clock(sec: i64, usec: i64) -> Result<(), ClockError> {
    let time = timespec(sec, usec).ok_or(ClockError::NoTime { sec, usec })?;
    clock_settime(ClockId::Realtime, time).map_err(|e| ClockError::Settime { sec, source: e.into() })
}

fn timespec(sec: i64, usec: i64) -> Option<Timespec> {
    (sec >= 0 && (0..1_000_000).contains(&usec)).then(|| Timespec { tv_sec: sec, tv_nsec: usec * 1000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_are_none_are_refused() {
        for (sec, usec) in [(-1, 0), (0, -1), (0, 1_000_000), (i64::MIN, i64::MIN)] {
            assert!(set_clock(sec, usec).unwrap_err().is_invalid());
        }
        assert_eq!(timespec(5, 999_999).unwrap().tv_nsec, 999_999_000);
    }
}
