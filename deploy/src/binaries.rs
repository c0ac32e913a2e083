//! The programs under launch, built once with the profile of the running executable.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::Failed;

/// Paths of the three programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The service.
    pub coordinator: PathBuf,
    /// The operator's and auditor's command line.
    pub operator: PathBuf,
    /// The site's program.
    pub client: PathBuf,
}

impl Binaries {
    /// Builds what is not up to date, beside the running executable, and names it. A terminal sees
    /// cargo's own progress.
    pub fn build() -> Result<Self, Failed> {
        let place = Place::of_this_executable()?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg("build");
        if !std::io::stderr().is_terminal() {
            cargo.arg("--quiet");
        }
        cargo
            .arg("--manifest-path")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
            // The launcher's own package too: features are unified over what is selected, and
            // another selection would build the dependencies a second time.
            .args([
                "-p",
                "tributary-deploy",
                "-p",
                "tributary-coordinator",
                "-p",
                "tributary-client",
            ])
            .args(["--bin", "tributary-coordinator", "--bin", "tributary"])
            .args(["--bin", "tributary-client"])
            .args(["--profile", &place.profile])
            .arg("--target-dir")
            .arg(&place.target)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = cargo.status().map_err(|e| Failed::io("running cargo build", &e))?;
        if !status.success() {
            return Err(Failed::new("cargo build", status.code(), "the programs do not build"));
        }
        Ok(Self::in_folder(&place.folder))
    }

    /// The programs in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        let path = |name: &str| folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        Self {
            coordinator: path("tributary-coordinator"),
            operator: path("tributary"),
            client: path("tributary-client"),
        }
    }
}

/// Where cargo put the running executable: `TARGET/PROFILE-FOLDER/[deps|examples/]EXECUTABLE`.
struct Place {
    target: PathBuf,
    folder: PathBuf,
    profile: String,
}

impl Place {
    fn of_this_executable() -> Result<Self, Failed> {
        let executable =
            std::env::current_exe().map_err(|e| Failed::io("finding this executable", &e))?;
        Self::of(&executable).ok_or_else(|| {
            let problem = format!("{} is in no target directory of cargo", executable.display());
            Failed::new("finding the programs", None, &problem)
        })
    }

    fn of(executable: &Path) -> Option<Self> {
        let mut folder = executable.parent()?;
        if matches!(folder.file_name()?.to_str()?, "deps" | "examples") {
            folder = folder.parent()?;
        }
        let profile = match folder.file_name()?.to_str()? {
            // The one profile whose folder has another name.
            "debug" => "dev",
            name => name,
        };
        Some(Self {
            target: folder.parent()?.to_path_buf(),
            folder: folder.to_path_buf(),
            profile: profile.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_read_off_the_executables_folder() {
        for (executable, folder, profile) in [
            ("/w/target/debug/demo", "/w/target/debug", "dev"),
            ("/w/target/debug/deps/federation-0af1", "/w/target/debug", "dev"),
            ("/w/target/release/demo", "/w/target/release", "release"),
        ] {
            let place = Place::of(Path::new(executable)).unwrap();
            assert_eq!(place.folder, Path::new(folder));
            assert_eq!(place.target, Path::new("/w/target"));
            assert_eq!(place.profile, profile);
        }
    }
}
