//! `nacre-agent`: picks its job and does it.

use std::path::Path;
use std::process::ExitCode;

use nacre_agent::args::{self, Role, Settings};
use nacre_agent::boot::Boot;
use nacre_agent::check::{self, Finding};
use nacre_agent::init;
use nacre_agent::last_words;
use nacre_agent::policy::{self, Explained};
use nacre_agent::server::{self, Start};

fn main() -> ExitCode {
    let boot = Boot::begin();
    let role = match args::parse(std::process::id(), std::env::args_os().skip(1)) {
        Ok(role) => role,
        Err(error) => return say(&mut std::io::stderr(), &format!("nacre-agent: {error}\n"), ExitCode::from(2)),
    };
    let start = match role {
        Role::Version => {
            let version = concat!("nacre-agent ", env!("CARGO_PKG_VERSION"), "\n");
            return say(&mut std::io::stdout(), version, ExitCode::SUCCESS);
        }
        Role::Help => return say(&mut std::io::stdout(), args::HELP, ExitCode::SUCCESS),
        Role::Explain { policy, request } => return explain(&policy, &request),
        Role::Check { json } => return check(json),
        Role::Init => Start { boot, guest: Some(init::run()), settings: Settings::default() },
        Role::Agent(settings) => Start { boot, guest: None, settings },
    };
    // Containers are made on many threads, each of which would have a heap of its own.
    nacre_sys::heap::keep_small();
    match server::run(start) {
        Ok(()) => {
            last_words::end_in_order();
            ExitCode::SUCCESS
        }
        Err(error) => {
            last_words::say(&format!("failed: {error:#}"));
            say(&mut std::io::stderr(), &format!("nacre-agent: {error:#}\n"), ExitCode::FAILURE)
        }
    }
}

fn check(json: bool) -> ExitCode {
    let findings = match check::check(Path::new("/")) {
        Ok(findings) => findings,
        Err(error) => {
            let error = anyhow::Error::from(error);
            return say(&mut std::io::stderr(), &format!("nacre-agent: {error:#}\n"), ExitCode::from(2));
        }
    };
    let line = |Finding { option, why, vital, ok }: &Finding| {
        let state = match (ok, vital) {
            (true, _) => "ok",
            (false, false) => "missing",
            (false, true) => "MISSING",
        };
        format!("{state:8} {option}: {why}\n")
    };
    let text = match json {
        true => serde_json::to_string(&findings).unwrap_or_default() + "\n", // plain values, which are always JSON
        false => findings.iter().map(line).collect(),
    };
    let whole = findings.iter().all(|finding| finding.ok || !finding.vital);
    say(&mut std::io::stdout(), &text, if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn explain(policy: &Path, request: &str) -> ExitCode {
    let explained = std::io::read_to_string(std::io::stdin())
        .map_err(anyhow::Error::from)
        .and_then(|input| policy::explain(policy, request, &input));
    let (text, code) = match explained {
        Ok(Explained { denied, prints }) => {
            let prints: String = prints.iter().map(|line| format!("  {line}\n")).collect();
            match denied {
                None => (format!("{request} is allowed\n{prints}"), ExitCode::SUCCESS),
                Some(reason) => (format!("{request} is blocked by policy: {reason}\n{prints}"), ExitCode::FAILURE),
            }
        }
        Err(error) => {
            return say(&mut std::io::stderr(), &format!("nacre-agent: {error:#}\n"), ExitCode::from(2));
        }
    };
    say(&mut std::io::stdout(), &text, code)
}

fn say(to: &mut impl std::io::Write, text: &str, code: ExitCode) -> ExitCode {
    // Nobody is left to hear that nobody listens.
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    code
}
