//! The command line's entry point is not the C library's: see `nacre_sys::early`.

fn main() {
    // To move a program to a random place takes a twentieth of the few milliseconds that this one lives. Its stack, heap and mappings are placed
    // at random all the same.
    if std::env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|features| features.split(',').any(|f| f == "crt-static")) {
        println!("cargo::rustc-link-arg-bin=nacre-jail=-static");
        println!("cargo::rustc-link-arg-bin=nacre-jail=-no-pie");
    }
    println!("cargo::rustc-link-arg-bin=nacre-jail=-Wl,--entry=nacre_protected_start");
    println!("cargo::rerun-if-changed=build.rs");
}
