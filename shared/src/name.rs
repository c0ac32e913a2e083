//! Names that people give to sites and runs, in one alphabet that is safe everywhere they appear:
//! URIs, file names, tables, log lines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const LENGTH_MAX: usize = 63;

/// A text that is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name; use 1 to {LENGTH_MAX} of a-z, 0-9 and `-`, beginning and ending with a letter or digit"
)]
pub struct InvalidName(String);

fn check(text: &str) -> Result<(), InvalidName> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let well_formed = !text.is_empty()
        && text.len() <= LENGTH_MAX
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if well_formed { Ok(()) } else { Err(InvalidName(text.chars().take(80).collect())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A hospital site, as its certificate names it.
    SiteName
}
name! {
    /// A run: one manifest, many rounds. Unique at one coordinator.
    RunName
}

name! {
    /// The consortium whose certificates, coordinator and sites belong together.
    ConsortiumName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_safe_alphabet_is_a_name() {
        for good in ["a", "charite-berlin", "site-2", "0"] {
            assert!(good.parse::<SiteName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "é", &"a".repeat(64)] {
            assert!(bad.parse::<RunName>().is_err(), "{bad}");
        }
    }
}
