//! Generates messages and services from `proto/`, in pure Rust: no system `protoc` is needed.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const FILES: [&str; 7] = ["agent", "health", "csi", "types", "oci", "nacre", "keyprovider"];

fn main() {
    let inputs = FILES.map(|name| format!("proto/{name}.proto"));
    for input in &inputs {
        println!("cargo:rerun-if-changed={input}");
    }
    Codegen::new()
        .inputs(&inputs)
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .expect("generate code from proto/");
    // The service files carry inner attributes, so they must be modules of their own, not includes.
    let modules = std::path::Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("mod.rs");
    let mut text = std::fs::read_to_string(&modules).expect("read the generated mod.rs");
    for service in ["agent", "health", "nacre", "keyprovider"] {
        text += &format!("pub mod {service}_ttrpc;\n");
    }
    std::fs::write(&modules, text).expect("write the generated mod.rs");
}
