//! Compiles the wire format without an installed protoc, and names its calls.

use std::fmt::Write as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked when it runs: a build cache may serve checkouts in several places.
    let root = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let file = root.join("tributary/v1/tributary.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&root])?;
    let mut calls = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let (service, method) = (service.name(), method.name());
                let path = format!("/{}.{service}/{method}", file.package());
                calls.push((format!("{service}{method}"), path));
            }
        }
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("calls.rs");
    std::fs::write(out, source(&calls)?)?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

/// The enum of all calls, given by name and path.
fn source(calls: &[(String, String)]) -> Result<String, std::fmt::Error> {
    let (mut variants, mut all, mut paths) = (String::new(), String::new(), String::new());
    for (name, path) in calls {
        writeln!(variants, "    /// `{path}`.\n    {name},")?;
        write!(all, "Self::{name}, ")?;
        writeln!(paths, "            Self::{name} => {path:?},")?;
    }
    Ok(format!(
        "/// A call of the wire.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\n\
         pub enum Call {{\n{variants}}}\n\n\
         impl Call {{\n    /// Every call, in the order of the proto.\n    \
         pub const ALL: [Self; {}] = [{all}];\n\n    /// The path of its HTTP/2 request.\n    \
         pub const fn path(self) -> &'static str {{\n        match self {{\n{paths}        }}\n    }}\n}}\n",
        calls.len()
    ))
}
