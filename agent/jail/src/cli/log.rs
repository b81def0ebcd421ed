//! The log file: one line an error, in the forms that callers of runc parse.

use std::fs::OpenOptions;
use std::io::Write as _;

use super::args::{Args, LogFormat};
use super::time;

/// Appends `message`. A log that can't be written is not worth another error.
pub fn error(args: &Args, message: &str) {
    let Some(path) = &args.log else { return };
    let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) else { return };
    let line = match args.log_format {
        LogFormat::Json => serde_json::json!({ "level": "error", "msg": message, "time": time::now() }).to_string(),
        LogFormat::Text => format!("time={:?} level=error msg={message:?}", time::now()),
    };
    let _ = writeln!(file, "{line}"); // see above
}
