//! `gitopsd pull` as a process of its own, with an environment of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A host, and what its configuration says of registries.
pub struct Machine {
    pub dir: tempfile::TempDir,
}

impl Machine {
    /// `registries`: sections, as they are written.
    pub fn new(registries: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-command-").tempdir().unwrap();
        let machine = Self { dir };
        machine.configure(registries);
        machine
    }

    pub fn configure(&self, registries: &str) {
        let root = self.dir.path().display();
        let text = format!(
            "state_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\n[repo]\nurl = \"{root}/repo.git\"\n\
             [host]\nname = \"lab\"\n{registries}"
        );
        std::fs::write(self.path("gitopsd.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pulls; whether it came, and all that was said, with everything logged that can be.
    pub fn pull(&self, reference: &str, environment: &[(&str, &str)]) -> (bool, String) {
        let output = self.command(reference, environment).output().unwrap();
        (output.status.success(), said(&output))
    }

    pub fn command(&self, reference: &str, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        command.args(["pull", reference, "--config"]).arg(self.path("gitopsd.toml"));
        // Of the tests' own nothing: it may hold proxies.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.dir.path());
        command.env("GITOPSD_LOG", "trace").envs(environment.iter().copied());
        command
    }

    /// Makes the store as it was, so that the next pull has to fetch all.
    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(self.path("state"));
    }

    /// Writes a program.
    pub fn program(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
