//! The C library's heap, for programs that use much memory for a short time on many threads.

// UNSAFETY: mallopt(3) is a C function.
#![expect(unsafe_code, reason = "mallopt has no safe form")]

/// What is as large as this comes from the kernel and goes back to it at once.
const LARGE: libc::c_int = 1 << 20;

/// Has the heap give back what is freed: one arena for all threads, and no large piece ever kept in it. By itself glibc has an arena for nearly each
/// thread, and takes a piece that was freed for a sign that others as large will be wanted.
///
/// To be called before there are threads. Another C library does as it likes.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE)] {
        // SAFETY: it stores a number. Where it does not, the heap is larger and nothing else.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back to the kernel whatever pages of the heap hold nothing. Another C library does as it likes.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the heap's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
