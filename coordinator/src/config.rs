//! `coordinator.toml`: where the coordinator listens and where it keeps its state. Read in two
//! steps, as written (`File`) and as meant ([`CoordinatorConfig`]); every error names the file,
//! the key and what mends it.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};
use tributary_proto::channel::Windows;
use tributary_shared::outcome::Failure;

use crate::driver::inquiries::Pace;
use crate::driver::{Keeping, Retention};

/// Largest configuration file read, bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// What begins the name of an environment variable that overrides a key.
const OVERRIDE_PREFIX: &str = "TRIBUTARY__";
/// Where every key is explained.
const SAMPLE: &str = "deploy/coordinator.toml";

/// Largest reserve that can be asked for, mebibytes: one tebibyte.
const RESERVE_MIB_MAX: u32 = 1 << 20;

/// Memory that uploads in flight share unless told, mebibytes.
const UPLOAD_MEMORY_MIB: u32 = 32;
/// Least of it, mebibytes: one upload at a time.
const UPLOAD_MEMORY_MIB_MIN: u32 = 4;

/// Where the coordinator listens unless told: this machine alone can reach it.
const LISTEN_DEFAULT: &str = "127.0.0.1:8443";

/// `coordinator.toml` as meant; every path is absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorConfig {
    /// The file it came from.
    pub file: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What startup kits say, `host:port`; where the coordinator turned out to listen when absent.
    pub address: Option<String>,
    /// Authority, database, blobs.
    pub directory: PathBuf,
    /// The SQLite file.
    pub database: PathBuf,
    /// Bytes of disk that uploads may not take; reckoned from the open runs when absent.
    pub reserve_bytes: Option<u64>,
    /// Time after a refusal until the site is asked whether it still holds.
    pub pace: Pace,
    /// The deltas that are kept.
    pub keeping: Keeping,
    /// HTTP/2 receive windows.
    pub windows: Windows,
    /// Memory that uploads in flight share, bytes.
    pub upload_memory_bytes: u64,
    /// How the log is written.
    pub log: Log,
}

/// How the log is written, to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Lines for people or for machines.
    #[serde(default)]
    pub format: LogFormat,
    /// The least severe line written.
    #[serde(default)]
    pub level: Level,
}

/// Lines for people or for machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The least severe line written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What needs somebody now.
    Error,
    /// What somebody should look at.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// How it happened.
    Debug,
    /// Everything.
    Trace,
}

/// `coordinator.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<String>,
    address: Option<String>,
    directory: PathBuf,
    #[serde(default)]
    database: Database,
    #[serde(default)]
    disk: Disk,
    #[serde(default)]
    retention: Retain,
    #[serde(default)]
    inquiries: Inquiries,
    #[serde(default)]
    transport: Transport,
    #[serde(default)]
    log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Database {
    url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    reserve_mib: Option<u32>,
    site_unsettled_mib: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retain {
    deltas: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inquiries {
    passing_s: Option<u64>,
    until_changed_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transport {
    stream_window_mib: Option<u32>,
    connection_window_mib: Option<u32>,
    upload_memory_mib: Option<u32>,
}

impl CoordinatorConfig {
    /// Reads and checks `coordinator.toml`; `environment` may override its keys.
    pub fn load(file: &Path, environment: &[(String, String)]) -> Result<Self, Failure> {
        let mend = "name it with --config, or let `tributary-coordinator init` write one";
        Self::from_toml(file, &read_text(file, FILE_BYTES_MAX, mend)?, environment)
    }

    /// Checks the text of `file`; relative paths start at the file's own folder.
    pub fn from_toml(
        file: &Path,
        text: &str,
        environment: &[(String, String)],
    ) -> Result<Self, Failure> {
        let written: File = parse_overridden(file, text, environment)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        // Collected from components, `coord/.` is `coord`.
        let directory: PathBuf = folder.join(&written.directory).components().collect();
        let listen = written.listen.as_deref().unwrap_or(LISTEN_DEFAULT);
        let listen = listen.parse().map_err(|_| {
            let mend = "write an IP address and a port, e.g. 127.0.0.1:8443 or 0.0.0.0:8443";
            invalid(file, "listen", &format!("`{listen}` is not IP:PORT"), mend)
        })?;
        if let Some(address) = &written.address
            && !is_address(address)
        {
            let mend = "write what sites can reach, e.g. coordinator.example.org:8443";
            return Err(invalid(file, "address", &format!("`{address}` is not HOST:PORT"), mend));
        }
        let database = match &written.database.url {
            None => directory.join("tributary.db"),
            Some(url) => folder.join(sqlite_path(file, url)?),
        };
        Ok(Self {
            file: file.to_path_buf(),
            listen,
            address: written.address,
            directory,
            database,
            reserve_bytes: reserve_bytes(file, &written.disk)?,
            pace: pace(file, &written.inquiries)?,
            keeping: keeping(file, &written.disk, &written.retention)?,
            windows: windows(file, &written.transport)?,
            upload_memory_bytes: upload_memory_bytes(file, &written.transport)?,
            log: written.log,
        })
    }

    /// Address that members are told before a port is found. Where a free port is asked for, any
    /// port stands for it.
    pub fn address_expected(&self) -> String {
        let port = self.listen.port().max(1);
        self.address_at(SocketAddr::new(self.listen.ip(), port))
    }

    /// What startup kits say when the coordinator listens on `bound`. Port 0 in `address` stands
    /// for the port that was found, as it does in `listen`.
    pub fn address_at(&self, bound: SocketAddr) -> String {
        match &self.address {
            None => bound.to_string(),
            Some(address) => match address.strip_suffix(":0") {
                Some(host) => format!("{host}:{}", bound.port()),
                None => address.clone(),
            },
        }
    }
}

/// Only SQLite is spoken; the URL leaves room for others.
fn sqlite_path<'u>(file: &Path, url: &'u str) -> Result<&'u str, Failure> {
    let mend = "write sqlite://FILE, or leave it out for DIRECTORY/tributary.db";
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        // The URL may hold a password and is not repeated.
        return Err(invalid(file, "database.url", "PostgreSQL is not supported yet", mend));
    }
    url.strip_prefix("sqlite://")
        .filter(|path| !path.is_empty() && !path.contains(['?', '\0']))
        .ok_or_else(|| invalid(file, "database.url", "not the URL of a SQLite file", mend))
}

fn reserve_bytes(file: &Path, disk: &Disk) -> Result<Option<u64>, Failure> {
    match disk.reserve_mib {
        None => Ok(None),
        Some(mib) if (1..=RESERVE_MIB_MAX).contains(&mib) => Ok(Some(u64::from(mib) << 20)),
        Some(mib) => {
            let problem = format!("{mib} is not between 1 and {RESERVE_MIB_MAX}");
            Err(invalid(file, "disk.reserve_mib", &problem, "write mebibytes, or leave it out"))
        }
    }
}

fn keeping(file: &Path, disk: &Disk, retain: &Retain) -> Result<Keeping, Failure> {
    let default = Keeping::default();
    let unsettled_bytes_max = match disk.site_unsettled_mib {
        None => default.unsettled_bytes_max,
        Some(mib) if (1..=RESERVE_MIB_MAX).contains(&mib) => u64::from(mib) << 20,
        Some(mib) => {
            let problem = format!("{mib} is not between 1 and {RESERVE_MIB_MAX}");
            let mend = "write mebibytes, or leave it out";
            return Err(invalid(file, "disk.site_unsettled_mib", &problem, mend));
        }
    };
    let last = |text: &str| {
        let rest = text.strip_prefix("last ")?;
        let count = rest.strip_suffix(" rounds").or_else(|| rest.strip_suffix(" round"))?;
        count.parse().ok().map(Retention::Last)
    };
    let retention = match retain.deltas.as_deref() {
        None => default.retention,
        Some("all") => Retention::All,
        Some(text) => last(text).ok_or_else(|| {
            let problem = format!("`{text}` is neither `all` nor `last N rounds`");
            let mend = "write deltas = \"all\", or for example \"last 10 rounds\"";
            invalid(file, "retention.deltas", &problem, mend)
        })?,
    };
    Ok(Keeping { retention, unsettled_bytes_max })
}

fn pace(file: &Path, inquiries: &Inquiries) -> Result<Pace, Failure> {
    let default = Pace::default();
    let seconds = |key: &str, value: Option<u64>, default: Duration| match value {
        None => Ok(default),
        Some(value) if (1..=86_400).contains(&value) => Ok(Duration::from_secs(value)),
        Some(value) => {
            let problem = format!("{value} is not between 1 and 86400");
            Err(invalid(file, key, &problem, "write seconds, or leave it out"))
        }
    };
    let until_changed = inquiries.until_changed_s;
    Ok(Pace {
        passing: seconds("inquiries.passing_s", inquiries.passing_s, default.passing)?,
        until_changed: seconds("inquiries.until_changed_s", until_changed, default.until_changed)?,
    })
}

fn windows(file: &Path, transport: &Transport) -> Result<Windows, Failure> {
    let default = Windows::default();
    let bytes = |key: &str, mib: Option<u32>, default: u32| match mib {
        None => Ok(default),
        Some(mib) if (1..=1024).contains(&mib) => Ok(mib << 20),
        Some(mib) => {
            let problem = format!("{mib} is not between 1 and 1024");
            Err(invalid(file, key, &problem, "write mebibytes, or leave it out"))
        }
    };
    let stream = bytes("transport.stream_window_mib", transport.stream_window_mib, default.stream)?;
    let key = "transport.connection_window_mib";
    let usual = default.connection.max(stream.saturating_mul(2));
    let connection = bytes(key, transport.connection_window_mib, usual)?;
    if connection <= stream {
        // Calls on the same connection would stand behind an upload that waits for its turn.
        let problem = "not larger than transport.stream_window_mib";
        return Err(invalid(file, key, problem, "write more, or leave it out"));
    }
    Ok(Windows { stream, connection })
}

fn upload_memory_bytes(file: &Path, transport: &Transport) -> Result<u64, Failure> {
    let mib = transport.upload_memory_mib.unwrap_or(UPLOAD_MEMORY_MIB);
    if (UPLOAD_MEMORY_MIB_MIN..=1 << 20).contains(&mib) {
        return Ok(u64::from(mib) << 20);
    }
    let problem = format!("{mib} is not between {UPLOAD_MEMORY_MIB_MIN} and {}", 1 << 20);
    Err(invalid(file, "transport.upload_memory_mib", &problem, "write mebibytes, or leave it out"))
}

/// Whether `text` is `host:port`, with a name, an IPv4 address or `[an IPv6 address]`.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let host_fits = bracketed || (!host.is_empty() && host.chars().all(plain));
    host_fits && port.parse::<u16>().is_ok()
}

/// A failure of configuration, exit code 4.
fn invalid(file: &Path, key: &str, problem: &str, mend: &str) -> Failure {
    Failure::invalid("configuration", format!("{}: {key}: {problem}", file.display())).hint(mend)
}

/// Reads a small text file; `mend` says what to do when it is not there.
pub fn read_text(file: &Path, bytes_max: u64, mend: &str) -> Result<String, Failure> {
    let failed = |problem: String| {
        Failure::invalid("file", format!("{}: {problem}", file.display())).hint(mend)
    };
    let open = std::fs::File::open(file).map_err(|e| failed(e.to_string()))?;
    let mut bytes = Vec::new();
    open.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(failed(format!("larger than {bytes_max} bytes; is it the right file?")));
    }
    String::from_utf8(bytes).map_err(|_| failed("not UTF-8 text; is it the right file?".to_owned()))
}

/// Parses TOML as written, with keys replaced from `TRIBUTARY__SECTION__KEY` variables.
fn parse_overridden<T: DeserializeOwned>(
    file: &Path,
    text: &str,
    environment: &[(String, String)],
) -> Result<T, Failure> {
    let mut overrides: Vec<_> =
        environment.iter().filter(|(name, _)| name.starts_with(OVERRIDE_PREFIX)).collect();
    let written = |e: &toml::de::Error| toml_failure(file, text, e, SAMPLE);
    if overrides.is_empty() {
        return toml::from_str(text).map_err(|e| written(&e));
    }
    overrides.sort();
    let mut table: Table = toml::from_str(text).map_err(|e| written(&e))?;
    for (name, value) in &overrides {
        replace(&mut table, name, value)?;
    }
    let names: Vec<_> = overrides.iter().map(|(name, _)| name.as_str()).collect();
    table.try_into().map_err(|e: toml::de::Error| {
        let message = format!("{} with {}: {}", file.display(), names.join(", "), e.message());
        Failure::invalid("configuration", message).hint(format!("{SAMPLE} explains every key"))
    })
}

/// Sets the key that `name` spells; a value that is a TOML boolean, number or array is one, and
/// everything else is text.
fn replace(table: &mut Table, name: &str, value: &str) -> Result<(), Failure> {
    let path = name.trim_start_matches(OVERRIDE_PREFIX).to_lowercase();
    let mut keys: Vec<&str> = path.split("__").collect();
    let last = keys.pop().unwrap_or_default();
    let mut section = table;
    for key in keys {
        section = section
            .entry(key)
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
    section.insert(last.to_owned(), typed);
    Ok(())
}

/// One line that names file, line and key. The value stays unprinted: it may hold a password.
pub fn toml_failure(file: &Path, text: &str, error: &toml::de::Error, sample: &str) -> Failure {
    let mut place = file.display().to_string();
    if let Some(span) = error.span() {
        let number = text.get(..span.start).unwrap_or("").matches('\n').count();
        place = format!("{place}:{}", number + 1);
        let line = text.lines().nth(number).unwrap_or("");
        if let Some((key, _)) = line.split_once('=') {
            place = format!("{place}: {}", key.trim());
        } else if line.trim_start().starts_with('[') {
            place = format!("{place}: {}", line.trim());
        }
    }
    let message: Vec<&str> = error.message().split_whitespace().collect();
    Failure::invalid("configuration", format!("{place}: {}", message.join(" ")))
        .hint(format!("{sample} explains every key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<CoordinatorConfig, String> {
        let environment: Vec<_> =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CoordinatorConfig::from_toml(Path::new("/srv/t/coordinator.toml"), text, &environment)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_least_file_means_the_safe_defaults() {
        let config = read("directory = \".\"", &[]).unwrap();
        assert_eq!(config.database.display().to_string(), "/srv/t/tributary.db");
        assert!(config.listen.ip().is_loopback(), "{}", config.listen);
        assert_eq!(config.address, None);
        assert_eq!(config.database, Path::new("/srv/t/./tributary.db"));
        assert_eq!(config.windows, Windows::default());
        assert_eq!(config.upload_memory_bytes, 32 << 20);
        assert_eq!(config.reserve_bytes, None);
        assert_eq!(config.log, Log { format: LogFormat::Text, level: Level::Info });
    }

    #[test]
    fn retention_is_all_or_a_number_of_rounds() {
        let retention = |value: &str| {
            let text = format!("directory = \".\"\n[retention]\ndeltas = \"{value}\"");
            read(&text, &[]).map(|config| config.keeping.retention)
        };
        assert_eq!(read("directory = \".\"", &[]).unwrap().keeping, Keeping::default());
        assert_eq!(retention("all"), Ok(Retention::All));
        assert_eq!(retention("last 10 rounds"), Ok(Retention::Last(10.try_into().unwrap())));
        assert_eq!(retention("last 1 round"), Ok(Retention::Last(1.try_into().unwrap())));
        for wrong in ["last 0 rounds", "last -1 rounds", "10", "none", ""] {
            let found = retention(wrong).unwrap_err();
            assert!(found.contains("retention.deltas: `"), "{found}");
        }
        let quota =
            |mib: u32| read(&format!("directory = \".\"\n[disk]\nsite_unsettled_mib = {mib}"), &[]);
        assert_eq!(quota(3).unwrap().keeping.unsettled_bytes_max, 3 << 20);
        assert!(quota(0).unwrap_err().contains("disk.site_unsettled_mib: 0 is not between 1 and"));
    }

    #[test]
    fn paths_start_at_the_files_folder() {
        let text = "directory = \"state\"\n[database]\nurl = \"sqlite://x.db\"";
        let config = read(text, &[]).unwrap();
        assert_eq!(config.directory, Path::new("/srv/t/state"));
        assert_eq!(config.database, Path::new("/srv/t/x.db"));
        let config = read("directory = \"/a\"\n[database]\nurl = \"sqlite:///b.db\"", &[]).unwrap();
        assert_eq!(config.directory, Path::new("/a"));
        assert_eq!(config.database, Path::new("/b.db"));
    }

    #[test]
    fn the_environment_overrides_and_its_errors_name_the_variable() {
        let overrides = [
            ("TRIBUTARY__LISTEN", "0.0.0.0:0"),
            ("TRIBUTARY__TRANSPORT__STREAM_WINDOW_MIB", "8"),
            ("TRIBUTARY__LOG__FORMAT", "json"),
            ("TRIBUTARY_IDENTITY", "/elsewhere"),
        ];
        let config = read("directory = \".\"\nlisten = \"127.0.0.1:1\"", &overrides).unwrap();
        assert_eq!(config.listen, "0.0.0.0:0".parse().unwrap());
        assert_eq!(config.windows.stream, 8 << 20);
        assert_eq!(config.log.format, LogFormat::Json);
        let error = read("directory = \".\"", &[("TRIBUTARY__LISTN", "x")]).unwrap_err();
        assert!(error.contains("TRIBUTARY__LISTN") && error.contains("listn"), "{error}");
        let error = read("directory = \".\"", &[("TRIBUTARY__DIRECTORY__X", "x")]).unwrap_err();
        assert!(error.contains("`directory` is not a section"), "{error}");
    }

    #[test]
    fn kits_name_the_port_that_was_found() {
        let bound = "127.0.0.1:4321".parse().unwrap();
        let address = |text: &str| {
            read(&format!("directory = \".\"\n{text}"), &[]).unwrap().address_at(bound)
        };
        assert_eq!(address(""), "127.0.0.1:4321");
        assert_eq!(address("address = \"host:0\""), "host:4321");
        assert_eq!(address("address = \"host:80\""), "host:80");
    }

    #[test]
    fn every_error_names_file_key_and_mend_in_one_line() {
        let base = "directory = \".\"\n";
        for (more, key, mend) in [
            ("listen = \"coordinator:8443\"", "listen", "127.0.0.1:8443"),
            ("address = \"coordinator\"", "address", "coordinator.example.org:8443"),
            ("address = \"a b:1\"", "address", "coordinator.example.org:8443"),
            ("port = 1", "coordinator.toml:2: port: unknown field", SAMPLE),
            ("[database]\nurl = \"postgres://u:hunter2@h/d\"", "not supported yet", "sqlite://"),
            ("[database]\nurl = \"mysql://h\"", "database.url", "sqlite://"),
            ("[transport]\nstream_window_mib = 0", "transport.stream_window_mib", "mebibytes"),
            ("[transport]\nconnection_window_mib = 2", "connection_window_mib", "write more"),
            ("[transport]\nupload_memory_mib = 1", "transport.upload_memory_mib", "mebibytes"),
            ("[inquiries]\npassing_s = 0", "inquiries.passing_s", "write seconds"),
            ("[disk]\nreserve_mib = 0", "disk.reserve_mib", "mebibytes"),
            ("[log]\nlevel = \"loud\"", "coordinator.toml:3: level", SAMPLE),
            ("[log]\ncolour = true", "coordinator.toml:3: colour", SAMPLE),
            ("log = [", "coordinator.toml:2", SAMPLE),
        ] {
            let error = read(&format!("{base}{more}"), &[]).unwrap_err();
            assert!(error.starts_with("/srv/t/coordinator.toml"), "{error}");
            assert!(error.contains(key), "{key}: {error}");
            assert!(error.contains(mend), "{mend}: {error}");
            assert!(!error.contains('\n') && !error.contains("hunter2"), "{error}");
        }
        let error = read("", &[]).unwrap_err();
        assert!(error.contains("directory"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_configuration_is_refused_before_it_is_parsed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("coordinator.toml");
        let read = || CoordinatorConfig::load(&file, &[]).unwrap_err().to_string();
        assert!(read().contains("tributary-coordinator init"), "{}", read());
        std::fs::write(&file, vec![b'#'; 300_000]).unwrap();
        assert!(read().contains("larger than"), "{}", read());
        std::fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(read().contains("not UTF-8"), "{}", read());
    }
}
