//! The rate of the processor's time stamp counter, which a guest without a calibrating timer must be told.

// UNSAFETY: reading the counter is an intrinsic.
#![expect(unsafe_code, reason = "rdtsc is an intrinsic without a safe form")]

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::Duration;

/// The counter's rate in kHz, measured against CLOCK_MONOTONIC_RAW over `window`. The error is about one microsecond in
/// `window`. `None` when the counter does not move as a clock does.
pub fn frequency_khz(window: Duration) -> Option<u64> {
    let (start_ns, start_tsc) = sample();
    thread::sleep(window);
    let (end_ns, end_tsc) = sample();
    let ns = u128::from(end_ns.checked_sub(start_ns).filter(|&ns| ns > 0)?);
    let ticks = u128::from(end_tsc.checked_sub(start_tsc)?);
    u64::try_from(ticks * 1_000_000 / ns).ok().filter(|&khz| khz > 0)
}

/// Clock and counter at one instant: of several pairs, the one whose two counter readings lie closest together.
fn sample() -> (u64, u64) {
    let mut best = (0, 0);
    let mut narrowest = u64::MAX;
    for _ in 0..16 {
        let before = read();
        let now = raw_clock_ns();
        let width = read().wrapping_sub(before);
        if width < narrowest {
            narrowest = width;
            best = (now, before.wrapping_add(width / 2));
        }
    }
    best
}

fn read() -> u64 {
    // SAFETY: every x86-64 processor has rdtsc, and Linux leaves it enabled for programs.
    unsafe { _rdtsc() }
}

fn raw_clock_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer; the call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut now) };
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_to_a_part_in_a_thousand() {
        let first = frequency_khz(Duration::from_millis(20)).unwrap();
        let second = frequency_khz(Duration::from_millis(20)).unwrap();
        assert!(first.abs_diff(second) < first / 1000, "{first} and {second}");
    }
}
