//! The kernel command line, cut into its words.
//!
//! The rules are those of the kernel's own `next_arg` (lib/cmdline.c): white space separates words, a double quote
//! protects white space wherever it stands, and quotes around a whole word or around its value are dropped.

/// One word: a key, and its value where the word has an equals sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// What stands before the first equals sign.
    pub key: &'a str,
    /// What follows it.
    pub value: Option<&'a str>,
}

/// The words of `line`, in order.
pub fn split(line: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            is_space(c) && !quoted
        });
        let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
        rest = tail;
        Some(parse(word))
    })
}

fn parse(word: &str) -> Word<'_> {
    let word = unquote(word);
    match word.split_once('=') {
        Some((key, value)) => Word { key, value: Some(unquote(value)) },
        None => Word { key: word, value: None },
    }
}

fn unquote(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
        None => text,
    }
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\0'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<(&str, Option<&str>)> {
        split(line).map(|w| (w.key, w.value)).collect()
    }

    #[test]
    fn words_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(words(""), []);
        assert_eq!(words(" quiet  a=b\n"), [("quiet", None), ("a", Some("b"))]);
        assert_eq!(words("a=b=c d="), [("a", Some("b=c")), ("d", Some(""))]);
        assert_eq!(words(r#"dm="0 8 linear" x"#), [("dm", Some("0 8 linear")), ("x", None)]);
        assert_eq!(words(r#""dm=0 8" x"#), [("dm", Some("0 8")), ("x", None)]);
        assert_eq!(words(r#"a="no end x"#), [("a", Some("no end x"))]);
        assert_eq!(words(r#"a=b" "c"#), [("a", Some(r#"b" "c"#))]);
        assert_eq!(words("\""), [("", None)]);
    }
}
