//! Prometheus' text format: families of samples.

use std::fmt::Write as _;

/// The type of a family.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// May change either way.
    Gauge,
    /// Counts of durations within bounds.
    Histogram,
}

/// The text as it grows.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    family: &'static str,
}

// Writing to a String can't fail, so its results are dropped here.
impl Text {
    /// The samples that follow belong to this family.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.family = name;
    }

    /// One sample of the current family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.part("", labels, value);
    }

    /// The same, of a family of histograms: their parts have names that end in `suffix`.
    pub fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        for (i, (name, value)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{name}=\"{}\"", if i == 0 { '{' } else { ',' }, escape(value));
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family of gauges that differ in their label `item`.
    pub fn items(&mut self, name: &'static str, help: &str, items: impl IntoIterator<Item = (String, f64)>) {
        self.family(name, Kind::Gauge, help);
        for (item, value) in items {
            self.sample(&[("item", &item)], value);
        }
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.text
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.family("a", Kind::Gauge, "help");
        text.sample(&[("x", "q\"\\\n"), ("y", "")], 1.5);
        text.sample(&[], 20.0);
        assert_eq!(text.into_string(), "# HELP a help\n# TYPE a gauge\na{x=\"q\\\"\\\\\\n\",y=\"\"} 1.5\na 20\n");
    }
}
