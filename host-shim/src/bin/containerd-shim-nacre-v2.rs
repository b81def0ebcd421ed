//! `containerd-shim-nacre-v2`: containerd and CRI-O call it, nobody else.

use std::process::ExitCode;

fn main() -> ExitCode {
    match nacre_shim::shim::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-nacre-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}
