//! `nacre-image`: the command line of the builder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nacre_image::{image, kernel};

/// Builds the guest: a kernel, and an image for it.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  nacre-image kernel --config-dir kernel-config --out out
  nacre-image build rootfs-recipes/minimal.toml --agent nacre-agent --kernel out/vmlinux --out out"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Where kernels and packages are kept between runs [default: $XDG_CACHE_HOME/nacre or ~/.cache/nacre]
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the guest kernel, an uncompressed ELF with a PVH entry
    Kernel {
        /// The directory with the fragments (*.config)
        #[arg(long, value_name = "DIR", default_value = "kernel-config")]
        config_dir: PathBuf,
        /// Debian's kernel source
        #[arg(long, value_name = "FILE", default_value = "/usr/src/linux-source-6.12.tar.xz")]
        source: PathBuf,
        /// Where vmlinux, its configuration and its manifest go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Build an initrd from a recipe
    Build {
        /// The recipe
        recipe: PathBuf,
        /// The agent, a static binary: the image's /init
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// The kernel whose manifest the image's repeats
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Where the initrd and its manifest go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let cache =
        args.cache.or_else(default_cache).ok_or_else(|| anyhow::anyhow!("no home directory: say --cache DIR"))?;
    match args.command {
        Command::Kernel { config_dir, source, out } => {
            kernel::build(&kernel::Request { fragments: config_dir, source, cache, out })
        }
        Command::Build { recipe, agent, kernel, out } => {
            image::build(&image::Request { recipe, agent, kernel, cache, out })
        }
    }
}

fn default_cache() -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache"))).map(|cache| cache.join("nacre"))
}
