//! Any bytes as a frame's body, to a gate that is closed: an answer that refuses, but to the health calls.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_agent::fuzzing::Gate;
use ttrpc::Code;

thread_local! {
    static GATE: Gate = Gate::new().expect("a gate can be made");
}

fuzz_target!(|bytes: &[u8]| {
    let code = GATE.with(|gate| gate.frame(bytes));
    let refused = matches!(code, None | Some(Code::PERMISSION_DENIED | Code::INVALID_ARGUMENT | Code::UNKNOWN));
    assert!(refused || bytes.windows(11).any(|name| name == b"grpc.Health"), "{code:?}");
});
