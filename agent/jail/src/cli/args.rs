//! What can be said on the command line. Names and meanings are runc's, so that whoever drives runc can drive this.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Args as _, Parser, Subcommand, ValueEnum};

use super::log::LogFormat;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

const EXAMPLES: &str = "\
Examples:
  mkdir -p bundle/rootfs && tar -C bundle/rootfs -xf rootfs.tar
  nacre-jail spec --bundle bundle             # writes bundle/config.json
  nacre-jail run --bundle bundle demo         # a shell in it
  nacre-jail exec demo ps                     # one more process
  podman --runtime \"$(command -v nacre-jail)\" run alpine true

Exit codes: of run and exec, the program's own (128 and the signal that ended it); 126 and 127
when it can't be run or is not there. Everything else: 0, or 1 with one line on standard error;
exec says 255 when it fails itself.";

/// Runs containers from OCI bundles.
#[derive(Debug, Parser)]
#[command(name = "nacre-jail", version = VERSION, after_help = EXAMPLES, disable_help_subcommand = true)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Where containers are remembered
    #[arg(long, value_name = "DIR", default_value = "/run/nacre-jail", env = "NACRE_JAIL_ROOT")]
    pub root: PathBuf,
    /// Append errors to this file, too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// The form of that file
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Taken for compatibility: there is one level of detail
    #[arg(long)]
    pub debug: bool,
    /// Taken for compatibility: a cgroupsPath of the form slice:prefix:name is always understood
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Taken for compatibility: rights are found out by trying
    #[arg(long, value_name = "VALUE")]
    pub rootless: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Makes [`Command`] of a list: variant, its arguments, its name and what it does. clap's own derive builds the arguments of every command at each
/// call, which takes longer than to unmount a container's root; here those of one command are built, when it is named.
macro_rules! commands {
    ($($variant:ident($args:ty) $name:literal: $about:literal;)*) => {
        #[derive(Debug)]
        pub enum Command {
            $($variant($args),)*
        }

        impl clap::FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Command, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => <$args>::from_arg_matches(matches).map(Command::$variant),)*
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Command::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command.subcommand_required(true).arg_required_else_help(true)
                    $(.subcommand(clap::Command::new($name).about($about).defer(<$args>::augment_args)))*
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Command::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }
    };
}

commands! {
    Create(Create) "create": "Make a container whose program waits for `start`";
    Start(Id) "start": "Let a created container run its program";
    State(Id) "state": "Print a container's state as JSON";
    Kill(Kill) "kill": "Send a signal to a container's first process";
    Delete(Delete) "delete": "Remove a stopped container";
    Run(Run) "run": "Create, start, wait, delete";
    Exec(Exec) "exec": "Run one more process in a running container";
    Ps(Ps) "ps": "Print a container's processes";
    Pause(Id) "pause": "Freeze a container's processes";
    Resume(Id) "resume": "Let frozen processes go on";
    Update(Box<Update>) "update": "Change a container's limits";
    Events(Events) "events": "Print use and events as lines of JSON";
    Stats(Id) "stats": "Print what a container uses as JSON";
    Features(Nothing) "features": "Print what this runtime can do as JSON";
    Spec(Spec) "spec": "Write a config.json to start from";
    List(List) "list": "Print the containers";
    Completion(Completion) "completion": "Print a shell's completion script";
}

#[derive(Debug, clap::Args)]
pub struct Id {
    /// The container's name
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub struct Nothing {}

#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Kill it first; no error if there is none
    #[arg(short, long)]
    pub force: bool,
    /// The container's name
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub struct Ps {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// The container's name
    pub id: String,
    /// Arguments of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub ps_args: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Spec {
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// In a user namespace of the caller's own
    #[arg(long)]
    pub rootless: bool,
}

#[derive(Debug, clap::Args)]
pub struct Completion {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// The directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// A UNIX socket that is sent the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the first process's number to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// A UNIX socket that is sent the pidfd of the first process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Move the root into place instead of pivoting into it
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for compatibility: every container has a keyring of its own
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors after 2 to the container
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The container's name
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub struct Run {
    /// Do not wait for it
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the stopped container
    #[arg(long)]
    pub keep: bool,
    /// Taken for compatibility: orphans go to whoever adopts them in the container
    #[arg(long)]
    pub no_subreaper: bool,
    #[command(flatten)]
    pub create: Create,
}

#[derive(Debug, clap::Args)]
pub struct Kill {
    /// To every process of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container's name
    pub id: String,
    /// A name, with or without SIG, or a number
    #[arg(default_value = "TERM")]
    pub signal: String,
}

#[derive(Debug, clap::Args)]
pub struct Exec {
    /// The process as JSON (`process` of config.json)
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for it
    #[arg(short, long)]
    pub detach: bool,
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// A UNIX socket that is sent the pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// NAME=VALUE, any number of times
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// UID[:GID]
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// One more capability, any number of times
    #[arg(short, long)]
    pub cap: Vec<String>,
    #[arg(long)]
    pub no_new_privs: bool,
    /// An AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// An SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Run it even in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's name
    pub id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct Events {
    /// One reading, and no waiting
    #[arg(long)]
    pub stats: bool,
    /// The time between two readings (500ms, 5s, 1m)
    #[arg(long, default_value = "5s", value_parser = super::time::parse_duration)]
    pub interval: Duration,
    /// The container's name
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub struct List {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Sizes are bytes, with k, m or g for powers of 1024. −1 lifts a limit.
#[derive(Debug, clap::Args)]
pub struct Update {
    /// `linux.resources` as JSON, from a file or from standard input (-)
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long, value_name = "US")]
    pub cpu_burst: Option<u64>,
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// 1 for a container that runs only when nobody else does
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    #[arg(long, value_name = "US")]
    pub cpu_rt_period: Option<u64>,
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = super::size::parse_size)]
    pub memory: Option<i64>,
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = super::size::parse_size)]
    pub memory_reservation: Option<i64>,
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = super::size::parse_size)]
    pub memory_swap: Option<i64>,
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// The container's name
    pub id: String,
}
