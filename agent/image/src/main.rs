//! `nacre-pull`: the image engine on a command line, for use and measurement outside a VM.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use nacre_pull::{Auth, Request, worker};

const HELP: &str = "\
Pulls an image: verified, unpacked layers in a directory, and its configuration as JSON on standard output.

  nacre-pull [--store DIR] [--ca FILE] [--creds USER:PASSWORD] [--insecure] REFERENCE

  --store DIR            where layers are kept; the default is ./nacre-layers
  --ca FILE              certificates to trust (PEM)
  --creds USER:PASSWORD  who asks
  --insecure             take any certificate, or none

Example:
  nacre-pull --store /var/tmp/layers registry.example/app:1
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|arg| arg == "worker") {
        return worker::main();
    }
    match parse(args) {
        Ok(Some(request)) => run(&request).unwrap_or_else(|error| {
            eprintln!("nacre-pull: {error}");
            ExitCode::FAILURE
        }),
        Ok(None) => {
            eprint!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("nacre-pull: {reason}; see nacre-pull --help");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Request>, String> {
    let mut request = Request {
        reference: String::new(),
        store: PathBuf::from("nacre-layers"),
        auth: None,
        ca_pem: None,
        skip_tls_verification: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--insecure" => request.skip_tls_verification = true,
            "--store" => request.store = value()?.into(),
            "--ca" => {
                let path = value()?;
                request.ca_pem = Some(std::fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?);
            }
            "--creds" => {
                let value = value()?;
                let (username, password) = value.split_once(':').ok_or("--creds wants USER:PASSWORD")?;
                request.auth = Some(Auth { username: username.into(), password: password.into() });
            }
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ if request.reference.is_empty() => request.reference = arg,
            _ => return Err(format!("one reference too many: {arg}")),
        }
    }
    if request.reference.is_empty() { Err("which image?".into()) } else { Ok(Some(request)) }
}

/// The worker's events go to standard output as they are.
fn run(request: &Request) -> std::io::Result<ExitCode> {
    let mut child = Command::new(std::env::current_exe()?).arg("worker").stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(request)?)?;
    }
    Ok(if child.wait()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
