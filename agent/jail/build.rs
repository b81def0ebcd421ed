//! The command line's entry point is not the C library's: see `nacre_sys::early`.

fn main() {
    println!("cargo::rustc-link-arg-bin=nacre-jail=-Wl,--entry=nacre_protected_start");
    println!("cargo::rerun-if-changed=build.rs");
}
