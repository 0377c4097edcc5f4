//! What a server or a program has said, in a form that fits in a reason or a log: short, in one line, and with nothing in it that
//! a terminal would obey.

use crate::config::error::harmless;

/// How many characters of it are repeated.
const MAX_SHOWN: usize = 100;

/// The first line with something in it, empty if there is none.
pub(crate) fn first_line(bytes: &[u8]) -> String {
    let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
    let line = lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default();
    shortened(&String::from_utf8_lossy(line).chars().map(harmless).collect::<String>())
}

/// Bytes in quotes, with escapes for what is not printable ASCII.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", shortened(&bytes[..bytes.len().min(MAX_SHOWN + 1)].escape_ascii().to_string()))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        for (bytes, expected) in [
            (&b""[..], ""),
            (b"\r\n \n", ""),
            (b"\n  disk full \nmore", "disk full"),
            (b"\x1b[2Ja\x00\xffb", "\u{fffd}[2Ja\u{fffd}\u{fffd}b"),
        ] {
            assert_eq!(first_line(bytes), expected);
        }
        assert_eq!(first_line(&[b'x'; 5000]), format!("{}...", "x".repeat(100)));
    }

    #[test]
    fn quotes() {
        assert_eq!(quoted(b"a\"\r\n\xff"), r#""a\"\r\n\xff""#);
        assert_eq!(quoted(&[b'x'; 100]), format!("\"{}\"", "x".repeat(100)));
        assert_eq!(quoted(&[b'x'; 101]), format!("\"{}...\"", "x".repeat(100)));
    }
}
