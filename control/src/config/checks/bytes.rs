//! What is sent to a server: bytes.

use crate::config::error::quoted;

/// What [`bytes`] reads.
pub(super) const BYTES: &str =
    r#"ASCII with \xNN, \r, \n, \t, \0 and \\ in single quotes, e.g. 'PING\r\n', or "hex:0011ff""#;

/// Text with escapes, or `hex:` and pairs of digits.
///
/// The escapes are ours and not TOML's, because in TOML `"\xff"` is the character U+00FF, which would be sent as two
/// bytes. That is also why characters beyond ASCII are refused rather than sent as UTF-8.
pub(super) fn bytes(typed: &str) -> Result<Vec<u8>, String> {
    if let Some(digits) = typed.strip_prefix("hex:") {
        return hex(digits).ok_or_else(|| format!("{} is not pairs of hexadecimal digits", quoted(typed)));
    }
    let mut bytes = Vec::with_capacity(typed.len());
    let mut rest = typed.chars();
    while let Some(character) = rest.next() {
        let byte = match character {
            '\\' => match rest.next() {
                Some('r') => b'\r',
                Some('n') => b'\n',
                Some('t') => b'\t',
                Some('0') => 0,
                Some('\\') => b'\\',
                Some('x') => {
                    let digits: String = rest.by_ref().take(2).collect();
                    match hex(&digits).as_deref() {
                        Some(&[byte]) => byte,
                        _ => return Err(format!("\"\\x{}\" is not an escape", digits.escape_debug())),
                    }
                }
                Some(other) => return Err(format!("\"\\{}\" is not an escape", other.escape_debug())),
                None => return Err("ends with a single \\".to_owned()),
            },
            _ => match u8::try_from(character) {
                Ok(byte) if byte.is_ascii() => byte,
                _ => return Err(format!("contains {character:?}, which is not ASCII")),
            },
        };
        bytes.push(byte);
    }
    Ok(bytes)
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (typed, expected) in [
            ("", &b""[..]),
            ("PING\\r\\n", b"PING\r\n"),
            ("PING\r\n", b"PING\r\n"),
            ("\\x00\\xFf\\0\\t\\\\x41", b"\x00\xff\0\t\\x41"),
            ("hex:", b""),
            ("hex:0011fF", b"\x00\x11\xff"),
        ] {
            assert_eq!(bytes(typed).as_deref(), Ok(expected), "{typed}");
        }
    }

    #[test]
    fn what_is_no_escape() {
        for (typed, wrong) in [
            ("\\q", "\"\\q\" is not an escape"),
            ("\\x4", "\"\\x4\" is not an escape"),
            ("\\x+4", "\"\\x+4\" is not an escape"),
            ("\\x\u{1b}", "\"\\x\\u{1b}\" is not an escape"),
            ("a\\", "ends with a single \\"),
            ("\u{ff}", "contains 'ÿ', which is not ASCII"),
            ("hex:001", "\"hex:001\" is not pairs of hexadecimal digits"),
            ("hex:0x", "\"hex:0x\" is not pairs of hexadecimal digits"),
            ("hex:ää", "\"hex:ää\" is not pairs of hexadecimal digits"),
        ] {
            assert_eq!(bytes(typed), Err(wrong.to_owned()), "{typed}");
        }
    }
}
