//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::reference::Reference;
use crate::size::{Cpus, Size};

/// Runs containers, each in a virtual machine that pulls its image itself.
#[derive(Debug, Parser)]
#[command(
    name = "nacre",
    version,
    disable_version_flag = true,
    after_help = "Examples:
  nacre run docker.io/library/alpine:latest uname -r
  nacre run -it alpine sh
  nacre run -d --name web -e PORT=80 registry.example/web:1
  nacre exec -it web sh
  nacre stop web"
)]
pub struct Args {
    /// Where running pods are kept [default: $XDG_RUNTIME_DIR/nacre, or /run/nacre for root]
    #[arg(long, global = true, env = "NACRE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a VM, pull an image inside it, and run it
    #[command(after_help = "Examples:
  nacre run docker.io/library/alpine:latest uname -r
  nacre run -it --memory 2G --cpus 2 debian:stable bash
  nacre run --tls-ca ca.pem --creds-file creds registry.example:5000/app:1

Exit codes: the container's own; 125 when nacre failed, 126 when the program can't be executed, 127 when it does not exist.")]
    Run(Box<Run>),
    /// Run one more program in a running container
    Exec(Exec),
    /// List pods
    Ps {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a container wrote
    Logs {
        /// The pod
        name: String,
        /// Go on until the container ends
        #[arg(short, long)]
        follow: bool,
    },
    /// End a container: SIGTERM, and SIGKILL when that does not help
    Stop {
        /// The pod
        name: String,
        /// How long it may take to end by itself, in seconds
        #[arg(short, long, default_value_t = 10)]
        time: u64,
    },
    /// Remove an ended pod that was run with -d
    Rm {
        /// The pod
        name: String,
        /// End it first
        #[arg(short, long)]
        force: bool,
    },
    /// Serve the metrics of all pods of containerd's on this host to Prometheus
    #[command(after_help = "Examples:
  nacre monitor
  nacre monitor --listen 0.0.0.0:8090
  curl 127.0.0.1:8090/metrics?filter_family=kata_hypervisor")]
    Monitor {
        /// Where to be asked
        #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS:PORT")]
        listen: std::net::SocketAddr,
        /// Where the shims keep their pods [default: $NACRE_SHIM_STATE_DIR, or /run/nacre-shim]
        #[arg(long, value_name = "DIR")]
        pods: Option<PathBuf>,
    },
    /// Say what this host can do for pods, and what it lacks
    #[command(after_help = "Exit codes: 0 when pods can run here, 1 when something is missing that all of them need.")]
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show versions
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    /// KVM where a virtual CPU runs well, TCG elsewhere
    Auto,
    /// The processor's own virtualisation
    Kvm,
    /// Emulation
    Tcg,
}

/// `nacre run`.
#[derive(Debug, Parser)]
pub struct Run {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Go to the background once the container runs, and print its name
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// With -d: keep nothing once the container has ended. (Without -d, nothing is ever kept.)
    #[arg(long)]
    pub rm: bool,
    /// The pod's name [default: one is made up]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Set an environment variable; without =VALUE it is taken from here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Copy a file or directory into the VM and bind it into the container; changes stay in the VM
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    pub volumes: Vec<crate::volumes::Volume>,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Who the program runs as, in place of the image's user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run this program, in place of the image's entry point and command
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Processors; a fraction limits the container's share
    #[arg(long, default_value = "1", value_name = "N")]
    pub cpus: Cpus,
    /// Attach the image's layers ready-made, so that the guest neither fetches nor unpacks them: the directory or the manifest that
    /// `nacre-pull seal` has written. The guest uses those that the image's own manifest, or the guest's image, names
    #[arg(long, value_name = "DIR|MANIFEST")]
    pub layers: Option<PathBuf>,
    /// The VM's memory, which also holds the image unless there is a scratch disk
    #[arg(long, default_value = "1G", value_name = "SIZE")]
    pub memory: Size,
    /// Give the VM a disk of this size for images and what containers write; the guest encrypts it
    #[arg(long, value_name = "SIZE")]
    pub scratch: Option<Size>,
    /// Where that disk's file is made; it has no name and goes with the VM
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    pub scratch_dir: PathBuf,
    /// Certificates to trust for the image's registry (PEM)
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Do not check the registry's certificate. For development
    #[arg(long)]
    pub tls_skip_verify: bool,
    /// A file with USER:PASSWORD for the image's registry
    #[arg(long, value_name = "FILE")]
    pub creds_file: Option<PathBuf>,
    /// Keep the images' blobs here and give them to guests, which check them; many pods may share it
    #[arg(long, value_name = "DIR")]
    pub blob_cache: Option<PathBuf>,
    /// How much is kept there; what was not used for longest goes first
    #[arg(long, default_value = "20G", value_name = "SIZE", requires = "blob_cache")]
    pub blob_cache_size: Size,
    /// Give guests blobs from here, too, and keep none: an OCI layout, or containerd's content store
    #[arg(long = "blob-source", value_name = "DIR")]
    pub blob_sources: Vec<PathBuf>,
    /// The guest kernel
    #[arg(long, env = "NACRE_KERNEL", value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest image
    #[arg(long = "image", env = "NACRE_IMAGE", value_name = "FILE")]
    pub guest_image: Option<PathBuf>,
    /// How the guest's processor is made
    #[arg(long, value_enum, default_value_t = Accelerator::Auto)]
    pub accel: Accelerator,
    /// How long the guest may take to boot
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub boot_timeout: Duration,
    /// How long the image may take to be pulled
    #[arg(long, default_value = "1200", value_name = "SECONDS", value_parser = seconds)]
    pub pull_timeout: Duration,
    /// Write the times of each stage to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub timings_json: Option<PathBuf>,
    /// Say nothing of the progress
    #[arg(short, long)]
    pub quiet: bool,
    /// The image
    pub image: Reference,
    /// The program and its arguments, in place of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `nacre exec`.
#[derive(Debug, Parser)]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// The pod
    pub name: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("write whole seconds, from 1 to 86400".into()),
    }
}

/// A name is a directory's, a container's and a host's; sockets below it must fit into 107 bytes (unix(7)).
pub(crate) fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('-') && !text.ends_with('-') {
        Ok(text.into())
    } else {
        Err("write 1 to 32 small letters, digits and inner -".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_is_the_containers() {
        let args = Args::parse_from(["nacre", "run", "-it", "-e", "A=1", "alpine", "ls", "-l", "--all"]);
        let Command::Run(run) = args.command else { panic!("{args:?}") };
        assert!(run.interactive && run.tty);
        assert_eq!(run.command, ["ls", "-l", "--all"]);
        assert_eq!(run.image.to_string(), "docker.io/library/alpine:latest");
    }

    #[test]
    fn a_name_fits_everywhere() {
        for bad in ["", "A", "a/b", "-a", "a-", "a.b", &"a".repeat(33)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(name("web-1").is_ok());
    }
}
