//! Compiles the wire format without an installed protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked when it runs: a build cache may serve checkouts in several places.
    let root = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let file = root.join("tributary/v1/tributary.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
