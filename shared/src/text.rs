//! Text of the other side or of a file, made safe for terminals, logs and the history.

use serde_json::Value;

/// Most characters kept of a reason that the other side gives.
pub const REASON_CHARS_MAX: usize = 500;

/// `text` in one line without characters that can move a cursor, forge a line or change the order
/// of what is shown: control characters (Unicode category Cc) and line and paragraph separators
/// become spaces; marks of direction and of zero width (UTS 55, "source code handling") become
/// U+FFFD. Everything else, any script, stays.
pub fn printable(text: &str) -> String {
    text.chars().map(printable_char).collect()
}

/// The first `chars_max` characters of `text`, made printable.
pub fn printable_start(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(printable_char).collect()
}

fn printable_char(c: char) -> char {
    match c {
        '\u{2028}' | '\u{2029}' => ' ',
        c if c.is_control() => ' ',
        '\u{061C}'
        | '\u{200B}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{2069}'
        | '\u{FEFF}' => '\u{FFFD}',
        c => c,
    }
}

/// Makes every string in `value` printable.
pub fn printable_strings(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(items) => items.iter_mut().for_each(printable_strings),
        Value::Object(fields) => fields.values_mut().for_each(printable_strings),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_deceives_a_reader_is_replaced() {
        assert_eq!(printable("\u{1b}[2J\nroot: ok\r\u{9b}31m"), " [2J root: ok  31m");
        assert_eq!(printable("abc\u{202e}gpj.exe"), "abc\u{fffd}gpj.exe");
        assert_eq!(printable_start("a\u{202e}b\nc", 3), "a\u{fffd}b");
        let names = "Köln 東京 тест ½ µm";
        assert_eq!(printable(names), names);
    }
}
