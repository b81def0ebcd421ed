//! `nacre`: containers in virtual machines, on a command line.

use clap::Parser as _;

fn main() {
    let args = nacre_shim::cli::Args::parse();
    // Reading standard input takes a thread that nothing can wake: what is to be cleaned up is dropped in here, then the process ends.
    std::process::exit(nacre_shim::commands::main(args));
}
