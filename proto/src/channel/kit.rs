//! The startup kit: the one small file by which an invited member finds its coordinator, knows
//! it for the right one, and proves that it was invited.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tributary_shared::digest::Digest;
use tributary_shared::name::{ConsortiumName, SiteName};
use tributary_shared::timestamp::Timestamp;

use super::member::{Member, Role};

/// Largest kit file read.
pub const KIT_BYTES_MAX: u64 = 16 * 1024;

/// A startup kit. `Debug` shows no token.
#[derive(Clone, PartialEq, Eq)]
pub struct StartupKit {
    /// The consortium that invites.
    pub consortium: ConsortiumName,
    /// Where the coordinator is, `host:port`.
    pub address: String,
    /// SHA-256 of the authority's certificate (DER).
    pub root_fingerprint: Digest,
    /// The one-time token.
    pub token: String,
    /// Who is invited.
    pub member: Member,
    /// When the token ends.
    pub expires: Timestamp,
}

/// Why a kit cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The file cannot be read.
    #[error("startup kit {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Larger than any kit.
    #[error("startup kit {}: more than {KIT_BYTES_MAX} bytes; this is another file", .0.display())]
    TooLarge(PathBuf),
    /// Not the TOML we know.
    #[error("startup kit: {0}")]
    Malformed(String),
}

/// The line of a fault and the parser's words, without the line itself, which may be that of the token.
fn place(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("line {line}: {}; ask for the kit again", error.message())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    schema: u32,
    consortium: ConsortiumName,
    address: String,
    root_fingerprint: Digest,
    token: String,
    role: Role,
    name: SiteName,
    expires: String,
}

impl StartupKit {
    /// Reads the kit file at `path`.
    pub fn load(path: &Path) -> Result<Self, KitError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(KIT_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|source| KitError::File { path: path.to_owned(), source })?;
        if text.len() as u64 > KIT_BYTES_MAX {
            return Err(KitError::TooLarge(path.to_owned()));
        }
        Self::parse(&text)
    }

    /// Parses a kit's text; unknown keys are refused.
    pub fn parse(text: &str) -> Result<Self, KitError> {
        let written: Written =
            toml::from_str(text).map_err(|e| KitError::Malformed(place(text, &e)))?;
        if written.schema != 1 {
            let detail = format!("schema {} is not 1; use a newer program", written.schema);
            return Err(KitError::Malformed(detail));
        }
        let expires = OffsetDateTime::parse(&written.expires, &Rfc3339).map_err(|_| {
            KitError::Malformed(format!("expires: `{}` is no RFC 3339 time", written.expires))
        })?;
        let millis = expires.unix_timestamp_nanos() / 1_000_000;
        Ok(Self {
            consortium: written.consortium,
            address: written.address,
            root_fingerprint: written.root_fingerprint,
            token: written.token,
            member: Member { role: written.role, name: written.name },
            expires: Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX)),
        })
    }

    /// The kit as a TOML file's text.
    pub fn to_toml(&self) -> Result<String, KitError> {
        let written = Written {
            schema: 1,
            consortium: self.consortium.clone(),
            address: self.address.clone(),
            root_fingerprint: self.root_fingerprint,
            token: self.token.clone(),
            role: self.member.role,
            name: self.member.name.clone(),
            expires: self.expires.to_string(),
        };
        let body = toml::to_string(&written).map_err(|e| KitError::Malformed(e.to_string()))?;
        Ok(format!(
            "# Tributary startup kit for {}. The token in it works once; hand it over in private.\n\
             {body}",
            self.member
        ))
    }
}

impl fmt::Debug for StartupKit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartupKit({} at {})", self.member.uri(&self.consortium), self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A13d. Failed before: the line with the fault was printed, and it may be that of the token.
    #[test]
    fn the_error_of_a_broken_kit_names_the_line_and_not_the_token() {
        let refused = StartupKit::parse("schema = 1\ntoken = \"secret\u{1b}[2J\n").unwrap_err();
        let told = refused.to_string();
        assert!(told.contains("line 2") && !told.contains("secret"), "{told}");
    }
}
