//! `nacre-jail`: the container engine on a command line that podman, containerd and conformance suites know how to drive.

// The start of Rust's runtime costs as much as laying out a root: it reads the process's mappings to find its stack. What of it is needed here
// is in `nacre_sys::early::settle`.
#![cfg_attr(not(test), no_main)]

mod cli;

/// Called by the C library.
// UNSAFETY: the name is C's; nothing else is called so.
#[cfg_attr(not(test), expect(unsafe_code, reason = "a function that C calls"), unsafe(no_mangle))]
extern "C" fn main() -> i32 {
    nacre_sys::early::settle();
    let code = cli::main();
    let _ = std::io::Write::flush(&mut std::io::stdout()); // who closed the stream does not want it
    code.into()
}
