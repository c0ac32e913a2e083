//! A consortium of real processes: founded, enrolled, started, killed and restarted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tributary_client::data::HoldoutSalt;
use tributary_client::site::salt;

use crate::binaries::Binaries;
use crate::command::{self, Failed, Outcome};
use crate::events::Follow;
use crate::guard::Guard;
use crate::process::Process;

/// The consortium's name.
const CONSORTIUM: &str = "example";
/// Longest wait for a process to say that it is ready.
const READY_MAX: Duration = Duration::from_secs(60);

/// What a site's `site.toml` says beside its directory.
#[derive(Clone, Debug, Default)]
pub struct SiteOptions {
    /// A folder with a manifest, or a `.npz` file.
    pub data: Option<PathBuf>,
    /// Lines of `[data.reading]`: how files become pictures; the usual way when absent.
    pub reading: Option<String>,
    /// The frozen backbone.
    pub backbone: Option<PathBuf>,
    /// Threads for training; every core when absent.
    pub threads: Option<usize>,
    /// What it adds in a rehearsal.
    pub rehearsal: Option<Rehearsal>,
}

/// What a site adds in a rehearsal, and the weight it declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rehearsal {
    /// The constant.
    pub add: f32,
    /// The cases.
    pub cases: u64,
    /// The one element it is added to; every element when absent.
    pub coordinate: Option<u64>,
}

/// One enrolled site.
#[derive(Debug)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Its folder: `site.toml`, `policy.toml`, identity, ledger, outbox.
    pub directory: PathBuf,
    process: Option<Process>,
}

impl Site {
    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("site.toml")
    }

    /// Its policy.
    pub fn policy(&self) -> PathBuf {
        self.directory.join("policy.toml")
    }

    /// Its process, when started.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }
}

/// A consortium on this machine. Its processes end when it is dropped or the launcher dies.
#[derive(Debug)]
pub struct Federation {
    binaries: Binaries,
    root: PathBuf,
    // In the order they should end: the guard last.
    coordinator: Option<Process>,
    sites: Vec<Site>,
    address: String,
    followers: usize,
    guard: Arc<Guard>,
}

impl Federation {
    /// Founds a consortium in the folder `root`, which must not hold one, and starts nothing.
    pub fn found(binaries: &Binaries, root: &Path) -> Result<Self, Failed> {
        let logs = root.join("logs");
        fs::create_dir_all(&logs).map_err(|e| Failed::file(&logs, &e))?;
        let root = root.canonicalize().map_err(|e| Failed::file(root, &e))?;
        let federation = Self {
            binaries: binaries.clone(),
            root,
            coordinator: None,
            sites: Vec::new(),
            address: String::new(),
            followers: 0,
            guard: Arc::new(Guard::post()?),
        };
        let mut init = federation.program(&federation.binaries.coordinator);
        init.args(["init", "--address", "127.0.0.1:0", "--consortium", CONSORTIUM, "--directory"])
            .arg(federation.coordinator_directory());
        command::run(&mut init)?;
        Ok(federation)
    }

    /// The folder that holds everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The programs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The coordinator's folder.
    pub fn coordinator_directory(&self) -> PathBuf {
        self.root.join("coordinator")
    }

    /// The operator's identity.
    pub fn operator_identity(&self) -> PathBuf {
        self.coordinator_directory().join("operator")
    }

    /// Where the coordinator listens, once started.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The coordinator's process, when started.
    pub fn coordinator(&self) -> Option<&Process> {
        self.coordinator.as_ref()
    }

    /// The enrolled sites, in the order of enrolment.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// What ends everything with the launcher; for further processes of the caller.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Starts the coordinator and waits until it listens: on a free port the first time, on the
    /// same port afterwards, where the sites look for it.
    pub fn start_coordinator(&mut self) -> Result<(), Failed> {
        self.start_coordinator_with(&[])
    }

    /// As [`Self::start_coordinator`], with further environment variables.
    pub fn start_coordinator_with(&mut self, environment: &[(&str, &str)]) -> Result<(), Failed> {
        let mut serve = self.program(&self.binaries.coordinator);
        serve.arg("serve").arg("--config");
        serve.arg(self.coordinator_directory().join("coordinator.toml"));
        if !self.address.is_empty() {
            serve.env("TRIBUTARY__LISTEN", &self.address);
        }
        serve.envs(environment.iter().copied());
        let log = self.root.join("logs/coordinator.log");
        let process = Process::start(&mut serve, &self.guard, &log)?;
        process.wait_stdout(READY_MAX, |line| line.contains("listening on"))?;
        let file = self.coordinator_directory().join("address");
        let address = fs::read_to_string(&file).map_err(|e| Failed::file(&file, &e))?;
        self.address = address.trim().to_owned();
        self.coordinator = Some(process);
        Ok(())
    }

    /// `kill -9` of the coordinator; nothing when it is not running.
    pub fn kill_coordinator(&mut self) {
        if let Some(process) = self.coordinator.take() {
            process.kill();
        }
    }

    /// Invites the site `name`: the path of its startup kit.
    pub fn invite(&self, name: &str) -> Result<PathBuf, Failed> {
        let kits = self.root.join("kits");
        fs::create_dir_all(&kits).map_err(|e| Failed::file(&kits, &e))?;
        let kit = kits.join(format!("{name}.kit"));
        self.operator(["site", "invite", name, "--out", &kit.to_string_lossy()])?;
        Ok(kit)
    }

    /// Invites and enrols the site `name` with its own folder, configuration and policy, which
    /// agrees to everything; returns its index.
    pub fn enroll(&mut self, name: &str, options: &SiteOptions) -> Result<usize, Failed> {
        let kit = self.invite(name)?;
        self.enroll_with(&kit, name, options)
    }

    /// Enrols the site `name` with a kit at hand.
    pub fn enroll_with(
        &mut self,
        kit: &Path,
        name: &str,
        options: &SiteOptions,
    ) -> Result<usize, Failed> {
        let directory = self.root.join("sites").join(name);
        fs::create_dir_all(&directory).map_err(|e| Failed::file(&directory, &e))?;
        let kit = kit.to_string_lossy().into_owned();
        self.client(["enroll", &kit, "--directory", &directory.to_string_lossy()])?;
        let site = Site { name: name.to_owned(), directory, process: None };
        write(&site.config(), &site_toml(options))?;
        write(&site.policy(), POLICY)?;
        // The same patients are held out each time, and by commands without a site's directory.
        let salt = salt::salt_of(&site.directory);
        salt::write(&salt, &HoldoutSalt::public()).map_err(|e| Failed::file(&salt, &e))?;
        self.sites.push(site);
        Ok(self.sites.len() - 1)
    }

    /// Starts the program of a site.
    pub fn start_site(&mut self, index: usize) -> Result<(), Failed> {
        self.start_site_with(index, &[])
    }

    /// Starts the program of a site with further environment variables.
    pub fn start_site_with(
        &mut self,
        index: usize,
        environment: &[(&str, &str)],
    ) -> Result<(), Failed> {
        let mut run = self.program(&self.binaries.client);
        run.arg("run").arg("--config").arg(self.sites[index].config());
        run.envs(environment.iter().copied());
        let log = self.root.join("logs").join(format!("{}.log", self.sites[index].name));
        self.sites[index].process = Some(Process::start(&mut run, &self.guard, &log)?);
        Ok(())
    }

    /// Waits until every started site is connected.
    pub fn wait_connected(&self) -> Result<(), Failed> {
        let connected = |line: &str| line.contains(" connected");
        let mut processes = self.sites.iter().filter_map(Site::process);
        processes.try_for_each(|p| p.wait_stderr(READY_MAX, connected).map(drop))
    }

    /// `kill -9` of a site's program; nothing when it is not running.
    pub fn kill_site(&mut self, index: usize) {
        if let Some(process) = self.sites[index].process.take() {
            process.kill();
        }
    }

    /// Kills everything.
    pub fn kill_all(&mut self) {
        self.kill_coordinator();
        (0..self.sites.len()).for_each(|index| self.kill_site(index));
    }

    /// Fails with the end of its log when a started process is gone.
    pub fn check_alive(&mut self) -> Result<(), Failed> {
        let processes = self.sites.iter_mut().filter_map(|site| site.process.as_mut());
        for process in processes.chain(self.coordinator.as_mut()) {
            if !process.is_alive() {
                process.stderr().wait_closed();
                return Err(process.failed("it ended early"));
            }
        }
        Ok(())
    }

    /// `tributary ARGUMENTS --format json` as the operator.
    pub fn operator<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Outcome, Failed> {
        command::run(&mut self.operator_command(arguments))
    }

    /// `tributary-client ARGUMENTS --format json`.
    pub fn client<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Outcome, Failed> {
        command::run(&mut self.client_command(arguments))
    }

    /// The command of [`Self::operator`], not started.
    pub fn operator_command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut operator = self.program(&self.binaries.operator);
        operator.args(arguments).args(["--format", "json", "--identity"]);
        operator.arg(self.operator_identity());
        if !self.address.is_empty() {
            // The identity was made before the free port was known.
            operator.args(["--address", &self.address]);
        }
        operator
    }

    /// The command of [`Self::client`], not started.
    pub fn client_command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut client = self.program(&self.binaries.client);
        client.args(arguments).args(["--format", "json"]);
        client
    }

    /// Follows the history of `run` from its first event.
    pub fn follow(&mut self, run: &str) -> Result<Follow, Failed> {
        let mut command = self.operator_command(["run", "log", run, "--follow"]);
        self.followers += 1;
        let log = self.root.join("logs").join(format!("follow-{}.log", self.followers));
        Ok(Follow::new(Process::start(&mut command, &self.guard, &log)?))
    }

    /// A program in the folder of the federation, without what the caller's environment would
    /// change about it.
    fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("TRIBUTARY") || text.to_lowercase().ends_with("_proxy") {
                command.env_remove(&name);
            }
        }
        command
    }
}

/// A policy that agrees to everything, for federations on one machine.
const POLICY: &str = "\
# What this site will never agree to; deploy/policy.toml in the source explains every key.
backbones = \"any\"
strategies = [\"fedavg\"]
allow_rehearsal = true
cohort_min = 1
cases_min = 1
holdout_cases_min = 1
epochs_max = 10000
adapter_bytes_max = 4_294_967_296
delta_norm_max = 1e12
";

fn site_toml(options: &SiteOptions) -> String {
    let mut text = "# deploy/site.toml in the source explains every key.\n\
        directory = \".\"\npolicy = \"policy.toml\"\n"
        .to_owned();
    let quoted = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned()).to_string();
    if let Some(data) = &options.data {
        text += &format!("\n[data]\npath = {}\n", quoted(data));
        if let Some(reading) = &options.reading {
            text += &format!("[data.reading]\n{reading}\n");
        }
    }
    if let Some(backbone) = &options.backbone {
        text += &format!("\n[backbone]\npath = {}\n", quoted(backbone));
    }
    if let Some(threads) = options.threads {
        text += &format!("\n[device]\nthreads = {threads}\n");
    }
    if let Some(Rehearsal { add, cases, coordinate }) = options.rehearsal {
        text += &format!("\n[rehearsal]\nadd = {add:?}\ncases = {cases}\n");
        text += &coordinate.map_or(String::new(), |at| format!("coordinate = {at}\n"));
    }
    text
}

fn write(path: &Path, text: &str) -> Result<(), Failed> {
    fs::write(path, text).map_err(|e| Failed::file(path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_site_toml_parses_whatever_a_path_holds() {
        let options = SiteOptions {
            data: Some("/a \"b\"/images".into()),
            reading: Some("frames = \"middle\"".to_owned()),
            backbone: Some("/b.safetensors".into()),
            threads: Some(1),
            rehearsal: Some(Rehearsal { add: 2.0, cases: 3, coordinate: Some(5) }),
        };
        let table: toml::Table = toml::from_str(&site_toml(&options)).unwrap();
        assert_eq!(table["data"]["path"].as_str(), Some("/a \"b\"/images"));
        assert_eq!(table["data"]["reading"]["frames"].as_str(), Some("middle"));
        assert_eq!(table["rehearsal"]["add"].as_float(), Some(2.0));
        assert_eq!(table["rehearsal"]["coordinate"].as_integer(), Some(5));
        assert!(toml::from_str::<toml::Table>(POLICY).is_ok());
    }
}
