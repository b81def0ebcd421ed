//! Images to pull before a container asks for them: a list of references, on the kernel's command line or in a file.

/// The most images of a list.
const MAX_IMAGES: usize = 16;

/// The longest reference.
const MAX_REFERENCE: usize = 1024;

/// The references of `REF,REF`.
pub(super) fn of_value(value: &str) -> Result<Vec<String>, &'static str> {
    if value.is_empty() { Ok(Vec::new()) } else { list(value.split(',')) }
}

/// The references of a text with one a line; `#` begins a comment.
pub fn of_text(text: &str) -> Result<Vec<String>, &'static str> {
    let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(reference, _)| reference).trim());
    list(lines.filter(|reference| !reference.is_empty()))
}

fn list<'a>(references: impl Iterator<Item = &'a str>) -> Result<Vec<String>, &'static str> {
    let mut images = Vec::new();
    for reference in references {
        let is_plain = reference.bytes().all(|byte| byte.is_ascii_graphic());
        if reference.is_empty() || reference.len() > MAX_REFERENCE || !is_plain {
            return Err("not a list of images: a reference is empty, longer than 1024 bytes, or not plain ASCII");
        }
        if images.len() >= MAX_IMAGES {
            return Err("more than 16 images");
        }
        images.push(reference.into());
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_is_written() {
        assert_eq!(of_value("").unwrap(), [""; 0]);
        assert_eq!(of_value("a,r.example:5000/b@sha256:00").unwrap(), ["a", "r.example:5000/b@sha256:00"]);
        assert_eq!(of_text("# why\n\n  a:1 # here\r\nb\n").unwrap(), ["a:1", "b"]);
        assert_eq!(of_text("#").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_out_of_bounds_is_no_list() {
        let (most, longest) = (["a"; MAX_IMAGES].join(","), "a".repeat(MAX_REFERENCE));
        assert_eq!(of_value(&most).unwrap().len(), MAX_IMAGES);
        assert_eq!(of_value(&longest).unwrap(), [longest.as_str()]);
        for bad in [&format!("{most},a"), &format!("{longest}a"), "a,", ",", "a,,b", "a b", "ä", "a\u{7}"] {
            assert!(of_value(bad).is_err(), "{bad:?}");
        }
        assert!(of_text(&most.replace(',', "\n")).is_ok());
        assert!(of_text(&"a\n".repeat(MAX_IMAGES + 1)).is_err());
        assert!(of_text("two words").is_err());
    }
}
