//! The files a site engineer writes: `site.toml` and `policy.toml`. Each is read in two steps, as
//! written (`*File`) and as meant; every error names the file, the key and what mends it.

pub mod cache;
mod hours;
pub mod policy;
pub mod reading;
pub mod site;

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};
use tributary_shared::outcome::Failure;

/// Largest configuration file read, bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// What begins the name of an environment variable that overrides a key of `site.toml`.
const OVERRIDE_PREFIX: &str = "TRIBUTARY__";

/// A failure of configuration, exit code 4.
pub(crate) fn invalid(file: &Path, key: &str, problem: &str, mend: &str) -> Failure {
    Failure::invalid("configuration", format!("{}: {key}: {problem}", file.display())).hint(mend)
}

/// Reads a small text file; `mend` says what to do when it is not there.
pub(crate) fn read_text(file: &Path, mend: &str) -> Result<String, Failure> {
    let failed = |problem: String| {
        Failure::invalid("configuration", format!("{}: {problem}", file.display())).hint(mend)
    };
    let open = std::fs::File::open(file).map_err(|e| failed(e.to_string()))?;
    let mut bytes = Vec::new();
    open.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("larger than {FILE_BYTES_MAX} bytes; is it the right file?")));
    }
    String::from_utf8(bytes).map_err(|_| failed("not UTF-8 text; is it the right file?".to_owned()))
}

/// Parses TOML as written; `sample` is where every key is explained.
pub(crate) fn parse<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    sample: &str,
) -> Result<T, Failure> {
    toml::from_str(text).map_err(|e| syntax(file, text, &e, sample))
}

/// As [`parse`], with keys replaced from `TRIBUTARY__SECTION__KEY` variables.
pub(crate) fn parse_overridden<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    sample: &str,
    environment: &[(String, String)],
) -> Result<T, Failure> {
    let mut overrides: Vec<_> =
        environment.iter().filter(|(name, _)| name.starts_with(OVERRIDE_PREFIX)).collect();
    if overrides.is_empty() {
        return parse(file, text, sample);
    }
    overrides.sort();
    let mut table: Table = parse(file, text, sample)?;
    for (name, value) in &overrides {
        replace(&mut table, name, value)?;
    }
    let names: Vec<_> = overrides.iter().map(|(name, _)| name.as_str()).collect();
    table.try_into().map_err(|e: toml::de::Error| {
        let place = format!("{} with {}", file.display(), names.join(", "));
        let line = e.to_string();
        Failure::invalid("configuration", format!("{place}: {}", line.trim_end()))
            .hint(format!("{sample} explains every key"))
    })
}

/// Sets the key that `name` spells; a value that is a TOML boolean, number or array is one, and
/// everything else is text.
fn replace(table: &mut Table, name: &str, value: &str) -> Result<(), Failure> {
    let path = name.trim_start_matches(OVERRIDE_PREFIX).to_lowercase();
    let keys: Vec<&str> = path.split("__").collect();
    let (last, sections) = keys.split_last().expect("split gives at least one part");
    let mut section = table;
    for key in sections {
        section = section
            .entry((*key).to_owned())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| {
                Failure::invalid("configuration", format!("{name}: `{key}` is not a section"))
                    .hint(format!("unset {name} or correct its name"))
            })?;
    }
    let typed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .filter(|parsed| parsed.len() == 1)
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    section.insert((*last).to_owned(), typed);
    Ok(())
}

/// One line that names file, line and key. The value stays unprinted: it may hold a password.
fn syntax(file: &Path, text: &str, error: &toml::de::Error, sample: &str) -> Failure {
    let mut place = file.display().to_string();
    if let Some(span) = error.span() {
        let before = text.get(..span.start).unwrap_or("");
        let number = before.matches('\n').count();
        place = format!("{place}:{}", number + 1);
        let line = text.lines().nth(number).unwrap_or("");
        if let Some((key, _)) = line.split_once('=') {
            place = format!("{place}: {}", key.trim());
        }
    }
    let message: Vec<&str> = error.message().split_whitespace().collect();
    Failure::invalid("configuration", format!("{place}: {}", message.join(" ")))
        .hint(format!("{sample} explains every key"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        device: Device,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Device {
        threads: Option<u32>,
    }

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Sample, String> {
        let environment: Vec<_> =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        parse_overridden(Path::new("a.toml"), text, "deploy/a.toml", &environment)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn an_error_names_file_line_key_and_mend_but_no_value() {
        let error = read("name = \"a\"\n[device]\nthread = \"hunter2\"\n", &[]).unwrap_err();
        assert_eq!(
            error,
            "a.toml:3: thread: unknown field `thread`, expected `threads` \
             (deploy/a.toml explains every key)"
        );
        let error = read("name = \"a\"\n[device]\nthreads = [1]\n", &[]).unwrap_err();
        assert!(error.starts_with("a.toml:3: threads: invalid type"), "{error}");
    }

    #[test]
    fn the_environment_overrides_and_its_errors_name_the_variable() {
        let both = [("TRIBUTARY__DEVICE__THREADS", "3"), ("TRIBUTARY__NAME", "b"), ("PATH", "/")];
        let sample = read("name = \"a\"", &both).unwrap();
        assert_eq!(sample, Sample { name: "b".into(), device: Device { threads: Some(3) } });
        let error = read("name = \"a\"", &[("TRIBUTARY__DEVICE__THRED", "3")]).unwrap_err();
        assert!(error.contains("TRIBUTARY__DEVICE__THRED"), "{error}");
        let error = read("name = \"a\"", &[("TRIBUTARY__NAME__X", "3")]).unwrap_err();
        assert!(error.contains("`name` is not a section"), "{error}");
    }
}
