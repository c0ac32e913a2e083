//! Wire to agreement and back: the one place that knows both.

use tributary_shared::refusal::Refusal;

use crate::v1;

impl From<&Refusal> for v1::Refusal {
    fn from(refusal: &Refusal) -> Self {
        let json = serde_json::to_string(refusal).expect("a refusal is plain data");
        Self { json }
    }
}

/// Longest refusal read from the other side, bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Reads a refusal sent by the other side; what does not parse becomes `malformed`.
pub fn refusal(wire: &v1::Refusal) -> Refusal {
    if wire.json.len() > REFUSAL_BYTES_MAX {
        return Refusal::Malformed { detail: "a refusal of excessive length".to_owned() };
    }
    let read: Result<Refusal, _> = serde_json::from_str(&wire.json);
    let malformed =
        |e| Refusal::Malformed { detail: format!("a refusal that does not parse: {e}") };
    read.unwrap_or_else(malformed).printable()
}

/// `None` when the other side sent no refusal.
pub fn verdict(wire: Option<v1::Refusal>) -> Result<(), Refusal> {
    match wire {
        None => Ok(()),
        Some(wire) => Err(refusal(&wire)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A13. Failed before: a refusal of the other side carried escape sequences and lines into logs
    /// and tables.
    #[test]
    fn a_refusal_of_the_other_side_is_printable() {
        for json in [
            r#"{"code":"policy","reason":"no\u001b[2J\nok","class":"passing"}"#,
            r#"{"code":"contract","diff":["a\u001b[2J\nb"]}"#,
            r#"{"code":"un\u001b[2Jknown"}"#,
        ] {
            let told = refusal(&v1::Refusal { json: json.to_owned() }).to_string();
            assert!(!told.chars().any(char::is_control), "{told:?}");
        }
    }
}
