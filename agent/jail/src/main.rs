//! `nacre-jail`: the container engine on a command line that podman, containerd and conformance suites know how to drive.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
