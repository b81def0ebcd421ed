//! What the binary was started to do.

use std::ffi::OsString;
use std::path::PathBuf;

/// The text of `--help`.
pub const HELP: &str = r#"The guest agent of a pod's virtual machine.

  nacre-agent [OPTIONS]                serve as a plain process
  nacre-agent explain POLICY REQUEST   say what a policy says to a request, which is read as JSON
  nacre-agent check [--json]           say whether the running kernel has what the image relies on
  nacre-agent --version | --help

As process 1 it brings up the guest and takes its settings from the kernel command line alone.

  --listen ADDRESS   vsock://CID:PORT, unix:///PATH or unix://@NAME; the default is vsock://-1:1024
  --passfd ADDRESS   where streams are connected that a request names by port: vsock://CID:PORT, or unix:///PATH, to which
                     a caller's port is the last part of the path that its own socket is bound to
  --log ADDRESS      who connects there gets the log: vsock://CID:PORT or unix:///PATH
  --console ADDRESS  who connects there gets a shell, unless the policy says no: vsock://CID:PORT or unix:///PATH
  --last-words FILE  what the next agent reads of how this one ended; the default is /run/nacre/last-words
  --store DIR        where unpacked image layers are kept; the default is /run/nacre/images

Images are fetched by nacre-pull, a program beside this one or in /usr/libexec/nacre.

check ends with 0 when nothing is missing that is vital, and with 1 otherwise.

explain ends with 0 when the request is allowed, with 1 when it is denied, and shows what the policy's rules print:

  echo '{"container_id": "a", "process": {"Args": ["sh"]}}' | nacre-agent explain policy.rego ExecProcessRequest
"#;

/// One of the binary's jobs.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    /// Process 1: bring up the guest, then serve.
    Init,
    /// The agent as a plain process.
    Agent(Settings),
    /// Say what a policy says to a request on standard input.
    Explain {
        /// The policy's file.
        policy: PathBuf,
        /// The request's type.
        request: String,
    },
    /// Say what the running kernel lacks, as JSON or for people.
    Check {
        /// As JSON.
        json: bool,
    },
    /// Print the version.
    Version,
    /// Print the help.
    Help,
}

/// What a plain process may be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Option<String>,
    /// Where streams are connected that are passed through.
    pub passfd: Option<String>,
    /// Where the log can be had.
    pub log: Option<String>,
    /// Where the debug console is.
    pub console: Option<String>,
    /// Where last words are kept.
    pub last_words: Option<PathBuf>,
    /// Where layers are kept.
    pub store: Option<PathBuf>,
}

/// The command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// An argument that is none of ours.
    #[error("unknown argument {0:?}; see nacre-agent --help")]
    Unknown(String),
    /// The line ends too early.
    #[error("{0} needs more words; see nacre-agent --help")]
    Value(String),
}

/// The job of process `pid` with these arguments (without the program's name). The kernel hands process 1 every word of its command
/// line that it did not understand, so there arguments mean nothing.
pub fn parse(pid: u32, args: impl IntoIterator<Item = OsString>) -> Result<Role, UsageError> {
    if pid == 1 {
        return Ok(Role::Init);
    }
    let mut args = args.into_iter();
    let mut settings = Settings::default();
    while let Some(arg) = args.next() {
        let arg = arg.to_string_lossy().into_owned();
        match arg.as_str() {
            "--version" | "-V" => return Ok(Role::Version),
            "--help" | "-h" => return Ok(Role::Help),
            "explain" => {
                let mut next = || args.next().ok_or_else(|| UsageError::Value(arg.clone()));
                let (policy, request) = (next()?.into(), next()?.to_string_lossy().into_owned());
                return Ok(Role::Explain { policy, request });
            }
            "check" => {
                let json = match args.next() {
                    None => false,
                    Some(word) if word == "--json" => true,
                    Some(word) => return Err(UsageError::Unknown(word.to_string_lossy().into_owned())),
                };
                return Ok(Role::Check { json });
            }
            "--listen" | "--passfd" | "--log" | "--console" => {
                let value = args.next().ok_or(UsageError::Value(arg.clone()))?.to_string_lossy().into_owned();
                let setting = match arg.as_str() {
                    "--listen" => &mut settings.listen,
                    "--passfd" => &mut settings.passfd,
                    "--log" => &mut settings.log,
                    _ => &mut settings.console,
                };
                *setting = Some(value);
            }
            "--last-words" => settings.last_words = Some(args.next().ok_or(UsageError::Value(arg))?.into()),
            "--store" => settings.store = Some(args.next().ok_or(UsageError::Value(arg))?.into()),
            _ => return Err(UsageError::Unknown(arg)),
        }
    }
    Ok(Role::Agent(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(args: &[&str]) -> Result<Role, UsageError> {
        parse(7, args.iter().map(OsString::from))
    }

    #[test]
    fn each_job_has_its_words() {
        assert_eq!(role(&["--version"]), Ok(Role::Version));
        assert_eq!(role(&["--help"]), Ok(Role::Help));
        assert_eq!(role(&[]), Ok(Role::Agent(Settings::default())));
        let explain = Role::Explain { policy: "/p".into(), request: "R".into() };
        assert_eq!(role(&["explain", "/p", "R"]), Ok(explain));
        assert_eq!(role(&["check"]), Ok(Role::Check { json: false }));
        assert_eq!(role(&["check", "--json"]), Ok(Role::Check { json: true }));
        let settings = Settings {
            listen: Some("unix:///a".into()),
            passfd: Some("unix:///c".into()),
            log: Some("unix:///d".into()),
            console: Some("unix:///f".into()),
            last_words: Some("/e".into()),
            store: Some("/b".into()),
        };
        let words =
            "--listen unix:///a --store /b --passfd unix:///c --log unix:///d --last-words /e --console unix:///f";
        let words: Vec<_> = words.split(' ').collect();
        assert_eq!(role(&words), Ok(Role::Agent(settings)));
    }

    #[test]
    fn words_of_the_kernel_command_line_do_not_stop_process_1() {
        assert_eq!(parse(1, ["quiet".into(), "--nonsense".into()]), Ok(Role::Init));
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        assert!(role(&["check", "--frob"]).is_err());
        assert!(role(&["--frob"]).unwrap_err().to_string().contains("--frob"));
        assert!(role(&["explain", "/p"]).is_err());
        assert!(role(&["--listen"]).unwrap_err().to_string().contains("--listen needs more words"));
    }
}
