//! A small disk: a file system of its own in memory, to be filled and freed. Mounting one takes
//! rights that not every machine gives.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, gone when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `bytes` bytes at `path`, whose folder is made; `None`, with a line that says
    /// so, where that is not allowed. Under `CI=true` that is a failure.
    pub fn mount(path: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(path).expect("the mount point is made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(path);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            let skipped = "SKIPPED: this machine does not let this user mount a tmpfs";
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{skipped}");
            let _ = writeln!(std::io::stderr(), "{skipped}");
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Leaves no byte free.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("the filler is made");
        let block = [0xa5; 4096];
        loop {
            match filler.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("filling {}: {error}", self.path.display()),
            }
        }
    }

    /// Takes back what [`Self::fill`] did.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("the filler is there");
    }

    /// Takes the disk away. Lazily: a process that ends just now may still hold a file.
    pub fn unmount(&self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}
