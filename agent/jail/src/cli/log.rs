//! What there is to say to whoever called: on standard error, and one line each in the log file, in the forms that callers of runc parse.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::ValueEnum;

use super::time;

static FILE: OnceLock<(PathBuf, LogFormat)> = OnceLock::new();

/// The form of the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Writes to the file `path` from now on.
pub fn start(path: PathBuf, format: LogFormat) {
    let _ = FILE.set((path, format)); // nobody else sets it
}

/// Why the call fails.
pub fn error(message: &str) {
    append("error", message);
    let _ = writeln!(std::io::stderr(), "nacre-jail: {message}"); // there is nobody else to tell
}

/// What is odd. With a log file it stands there alone: standard error may be the container's.
pub fn warn(message: &str) {
    if FILE.get().is_some() {
        append("warning", message);
    } else {
        let _ = writeln!(std::io::stderr(), "nacre-jail: warning: {message}"); // as above
    }
}

/// A log that can't be written is not worth another error.
fn append(level: &str, message: &str) {
    let Some((path, format)) = FILE.get() else { return };
    let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) else { return };
    let line = match format {
        LogFormat::Json => serde_json::json!({ "level": level, "msg": message, "time": time::now() }).to_string(),
        LogFormat::Text => format!("time={:?} level={level} msg={message:?}", time::now()),
    };
    let _ = writeln!(file, "{line}"); // see above
}
