//! How long requests take.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::text::{Kind, Text};

/// The upper bounds of the buckets, in seconds; the last one has none.
const BOUNDS: [f64; 6] = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0];

/// Of each method that was called, how often each duration occurred.
#[derive(Debug, Default)]
pub struct Calls(Mutex<BTreeMap<&'static str, Count>>);

#[derive(Debug, Default, Clone)]
struct Count {
    /// Those within a bound and no smaller one; the last are beyond all.
    within: [u64; BOUNDS.len() + 1],
    seconds: f64,
    failed: u64,
}

impl Calls {
    /// A call of `method` took so long, and succeeded or not.
    pub fn count(&self, method: &'static str, duration: Duration, succeeded: bool) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        // Numbers are whole whoever panicked.
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(method).or_default();
        if let Some(within) = count.within.get_mut(bucket) {
            *within += 1;
        }
        count.seconds += seconds;
        count.failed += u64::from(!succeeded);
    }

    pub(super) fn write(&self, text: &mut Text) {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.family("nacre_rpc_seconds", Kind::Histogram, "How long requests have taken, with what they waited for");
        for (method, count) in &calls {
            let mut sum = 0;
            for (place, within) in count.within.iter().enumerate() {
                sum += within;
                let bound = BOUNDS.get(place).map_or("+Inf".into(), f64::to_string);
                text.part("_bucket", &[("rpc", method), ("le", &bound)], sum as f64);
            }
            text.part("_sum", &[("rpc", method)], count.seconds);
            text.part("_count", &[("rpc", method)], sum as f64);
        }
        text.family("nacre_rpc_failed_total", Kind::Counter, "Requests that were refused or failed");
        for (method, count) in &calls {
            text.sample(&[("rpc", method)], count.failed as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_within_their_bound() {
        let calls = Calls::default();
        for (milliseconds, succeeded) in [(1, true), (5, true), (5, false), (20_000, true)] {
            calls.count("Check", Duration::from_millis(milliseconds), succeeded);
        }
        let mut text = Text::default();
        calls.write(&mut text);
        let text = text.into_string();
        for line in [
            "# TYPE nacre_rpc_seconds histogram",
            r#"nacre_rpc_seconds_bucket{rpc="Check",le="0.0001"} 0"#,
            r#"nacre_rpc_seconds_bucket{rpc="Check",le="0.001"} 1"#,
            r#"nacre_rpc_seconds_bucket{rpc="Check",le="0.01"} 3"#,
            r#"nacre_rpc_seconds_bucket{rpc="Check",le="10"} 3"#,
            r#"nacre_rpc_seconds_bucket{rpc="Check",le="+Inf"} 4"#,
            r#"nacre_rpc_seconds_sum{rpc="Check"} 20.011"#,
            r#"nacre_rpc_seconds_count{rpc="Check"} 4"#,
            r#"nacre_rpc_failed_total{rpc="Check"} 1"#,
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
    }
}
