//! The log: one JSON object a line, on the console and to whoever reads the log port.
//!
//! The keys are those that Kata's hosts know (`ts`, `level`, `msg`, `version`, `subsystem`, `pid`, `name`, `source`); an event's own
//! fields follow. There are no spans: what an event needs to say it carries itself.

mod port;

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

pub use port::{end, serve};

/// What a line's fields may take; longer ones are cut, so that no guest fills the console with one request.
const MAX_LINE: usize = 4096;

/// The longest escape of JSON's for one byte: `\u001f`.
const LONGEST_ESCAPE: usize = 6;

/// How many lines a slow reader of the log port may be behind.
const BACKLOG: usize = 256;

static READERS: OnceLock<broadcast::Sender<Arc<str>>> = OnceLock::new();

/// The least severe event that is logged. No event looks at it: each place that makes some knows whether they are wanted.
static LEVEL: Mutex<Level> = Mutex::new(Level::INFO);

/// The level that a word of Kata's names.
pub fn level(word: &str) -> Option<Level> {
    match word {
        "panic" | "fatal" | "critical" | "error" => Some(Level::ERROR),
        "warn" | "warning" => Some(Level::WARN),
        "info" => Some(Level::INFO),
        "debug" => Some(Level::DEBUG),
        "trace" => Some(Level::TRACE),
        _ => None,
    }
}

/// Log events of `level` and above to standard output.
pub fn start(level: Level) {
    set_level(level);
    let lines = JsonLines { pid: std::process::id() };
    if tracing::subscriber::set_global_default(lines).is_err() {
        tracing::debug!("the log is set up already");
    }
}

/// Log events of `level` and above from now on. What it was before is returned.
pub fn set_level(level: Level) -> Level {
    let before = std::mem::replace(&mut *lock_level(), level);
    tracing::callsite::rebuild_interest_cache();
    before
}

fn lock_level() -> MutexGuard<'static, Level> {
    // Each change is one assignment, so a holder that panicked left a whole value.
    LEVEL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every line from now on.
fn subscribe() -> broadcast::Receiver<Arc<str>> {
    READERS.get_or_init(|| broadcast::channel(BACKLOG).0).subscribe()
}

struct JsonLines {
    pid: u32,
}

impl Subscriber for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= *lock_level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some((*lock_level()).into())
    }

    fn event(&self, event: &Event<'_>) {
        let line = line(event, self.pid, SystemTime::now());
        print(line.as_bytes());
        if let Some(readers) = READERS.get() {
            let _ = readers.send(line.into()); // nobody reads: nothing is lost
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Write all of `line` to standard output, of which a terminal may take a part at a time.
fn print(mut line: &[u8]) {
    while !line.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), line) {
            Ok(written) if written > 0 => line = line.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            _ => return, // a console that is gone can't be told so
        }
    }
}

fn line(event: &Event<'_>, pid: u32, now: SystemTime) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let metadata = event.metadata();
    let subsystem = metadata.target().strip_prefix("nacre_agent::").unwrap_or(metadata.target());
    assemble(&fields, *metadata.level(), subsystem, pid, now)
}

/// For a reader that was too slow: how many lines it has missed.
fn missed(lines: u64, now: SystemTime) -> String {
    let message = format!("{lines} lines are missing here, as they were not read in time");
    let fields = Fields { message, rest: format!(",\"missing\":\"{lines}\"") };
    assemble(&fields, Level::WARN, "log", std::process::id(), now)
}

fn assemble(fields: &Fields, level: Level, subsystem: &str, pid: u32, now: SystemTime) -> String {
    let mut line = format!(
        r#"{{"msg":{},"level":"{}","ts":"{}","pid":"{pid}","version":"{}","name":"nacre-agent","source":"agent","subsystem":{}"#,
        quoted(&fields.message),
        level,
        Timestamp(now),
        env!("CARGO_PKG_VERSION"),
        quoted(subsystem),
    );
    line.push_str(&fields.rest);
    line.push_str("}\n");
    line
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl fmt::Display) {
        let room = MAX_LINE.saturating_sub(self.rest.len() + self.message.len());
        let mut text = value.to_string();
        text.truncate(text.floor_char_boundary(room));
        if quoted(&text).to_string().len() > room {
            text.truncate(text.floor_char_boundary(room / LONGEST_ESCAPE));
        }
        match field.name() {
            "message" => self.message = text,
            name => {
                // Writing to a String can't fail.
                let _ = write!(self.rest, ",{}:{}", quoted(name), quoted(&text));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

/// `text` as a JSON string.
fn quoted(text: &str) -> serde_json::Value {
    serde_json::Value::from(text)
}

/// A point in time as RFC 3339 has it, in UTC.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
    }
}

/// Year, month and day of a day after 1970. The year begins in March here, so that the leap day is its last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let era_day = days % 146_097; // of 400 years
    let era_year = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let day = year_day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era_year + days / 146_097 * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
        }
    }

    struct Capture(Arc<Mutex<String>>);

    impl Subscriber for Capture {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn event(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push_str(&line(event, 1, UNIX_EPOCH));
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn an_event_is_one_json_object_on_one_line() {
        let text = Arc::new(Mutex::new(String::new()));
        tracing::subscriber::with_default(Capture(text.clone()), || {
            tracing::warn!(container = "a\"b\n", number = 7, "it {}\nhappened", 1);
        });
        let text = text.lock().unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["msg"], "it 1\nhappened");
        assert_eq!((&json["container"], &json["number"]), (&"a\"b\n".into(), &"7".into()));
        assert_eq!((&json["level"], &json["subsystem"]), (&"WARN".into(), &"log::tests".into()));
    }

    #[test]
    fn an_endless_field_is_cut() {
        let text = Arc::new(Mutex::new(String::new()));
        tracing::subscriber::with_default(Capture(text.clone()), || {
            tracing::info!(huge = "ä".repeat(100_000), "x");
            tracing::info!(escaped = "\u{1b}".repeat(100_000), "x");
        });
        let text = text.lock().unwrap();
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.len() < MAX_LINE + 512), "{text}");
    }
}
