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
    serde_json::from_str(&wire.json).unwrap_or_else(|e| Refusal::Malformed {
        detail: format!("a refusal that does not parse: {e}"),
    })
}

/// `None` when the other side sent no refusal.
pub fn verdict(wire: Option<v1::Refusal>) -> Result<(), Refusal> {
    match wire {
        None => Ok(()),
        Some(wire) => Err(refusal(&wire)),
    }
}
