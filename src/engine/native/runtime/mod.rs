//! Containers by an OCI runtime of the host (crun, runc) instead of the library: the same shim around it, the same
//! records, outputs, configuration and cgroup. For hosts that want their distribution's runtime, and as the way out
//! when the library has a hole.
//!
//! What runs under a runtime says so in its `launch.json`: a host's configuration that changes concerns new containers.

mod calls;
mod cli;
mod started;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::exec::Streams;
use super::exec_process::Process;
use super::launch::Launch;
use super::layout::RunFiles;
use super::null;
use super::rights;
use crate::engine::EngineError;
use crate::types::{InstanceId, Options, Reason};
use cli::{Cli, explain};

/// Where programs of the system are; the agent's own `PATH` is nobody's promise.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Finds a runtime by its name or absolute path.
///
/// # Errors
/// It is not there.
pub(super) fn find(name: &str) -> Result<PathBuf, EngineError> {
    let path = Path::new(name);
    let mut places: Vec<PathBuf> = PLACES.iter().map(|place| Path::new(place).join(name)).collect();
    if path.is_absolute() {
        places = vec![path.to_owned()];
    }
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        let what = format!("the container runtime `{name}` of `engine.runtime` is not on this host");
        EngineError::plain(Reason::StartFailed, what)
    })
}

/// The runtime of a new container under `engine.runtime`. What only the built-in one does it goes on to do: a service
/// that runs under it may not be lost by a change of the host's configuration.
///
/// # Errors
/// It is not there.
pub(super) fn choose(id: &InstanceId, options: &Options, name: &str) -> Result<Option<PathBuf>, EngineError> {
    let Some(key) = built_in_only(options) else { return find(name).map(Some) };
    tracing::warn!(
        instance = %id,
        "`{key}` is done by the built-in runtime only: it runs under that one, not under `{name}` of `engine.runtime`"
    );
    Ok(None)
}

/// The first key of a service that no runtime of the host does.
fn built_in_only(options: &Options) -> Option<&'static str> {
    let keys = [("init", options.init), ("userns_mode", options.user_namespace)];
    keys.into_iter().find(|(_, wanted)| *wanted == Some(true)).map(|(key, _)| key)
}

/// What the runtime has to be told that the library is told otherwise.
///
/// # Errors
/// A line for people.
pub(super) fn complete(launch: &Launch, config: &mut Value) -> Result<(), String> {
    if let Some(name) = &launch.options.domainname {
        // Runtimes older than version 1.1 of the specification ignore its key.
        config["linux"]["sysctl"]["kernel.domainname"] = name.as_str().into();
    }
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let file = mount["source"].as_str().is_some_and(|source| Path::new(source).is_file());
        if mount["type"] == "bind" && file {
            plain(mount);
        }
    }
    let filter = rights::filter(&launch.options);
    if !filter.is_empty() {
        config["linux"]["seccomp"] = calls::profile(&filter)?;
    }
    Ok(())
}

/// Options of a bind mount without what concerns mounts below it: there are none below a file, and crun looks for them.
fn plain(mount: &mut Value) {
    for option in mount["options"].as_array_mut().into_iter().flatten() {
        let simple = match option.as_str() {
            Some("rbind") => "bind",
            Some("rnodev") => "nodev",
            Some("rro") => "ro",
            _ => continue,
        };
        *option = simple.into();
    }
}

/// Makes the container and lets its program run; gives back the first process, a child of ours. What was begun by a
/// start that fails is ended.
///
/// # Errors
/// The runtime's own words, or that the program could not be executed.
pub(super) fn run(
    run: &RunFiles,
    launch: &Launch,
    program: &Path,
    outputs: [File; 2],
) -> Result<i32, EngineError> {
    let cli = Cli::new(program, run, &launch.id);
    let failed = |error: io::Error| {
        let what = format!("{}: {}", launch.id, program.display());
        EngineError::new(Reason::StartFailed, what, error)
    };
    // The container's first process is the runtime's child until that ends, and then ours.
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| failed(error.into()))?;
    let begun = begin(&cli, run, launch, outputs);
    let _ = nix::sys::prctl::set_child_subreaper(false);
    begun.map_err(|error| {
        let message = error.to_string();
        let what = cli::explain(launch.args.first().map_or("", String::as_str), &message);
        EngineError::plain(Reason::StartFailed, format!("{}: {what}", launch.id))
    })
}

fn begin(cli: &Cli<'_>, run: &RunFiles, launch: &Launch, outputs: [File; 2]) -> io::Result<i32> {
    let [stdout, stderr] = outputs;
    let pid_file = run.dir.join("init.pid");
    let mut create = cli.command("create");
    create.arg("--bundle").arg(run.bundle()).arg("--pid-file").arg(&pid_file);
    create.arg(launch.id.to_string()).stdin(null::open()?).stdout(stdout).stderr(stderr);
    cli.run(create)?;
    let pid = cli::read_pid(&pid_file)?;
    let before = started::Before::of(pid)?;
    let mut start = cli.command("start");
    start.arg(launch.id.to_string());
    let result = cli.run(start).and_then(|()| before.wait());
    if result.is_err() {
        cli.delete();
    }
    result.map(|()| pid)
}

/// Starts a command in the container; gives back its process, a child of ours.
///
/// # Errors
/// A line for people.
pub(super) fn exec(
    run: &RunFiles,
    launch: &Launch,
    program: &Path,
    mut process: Process,
    streams: Streams,
) -> Result<i32, String> {
    let cli = Cli::new(program, run, &launch.id);
    let pid_file = run.dir.join(format!("exec-{}.pid", std::process::id()));
    if let Some(window) = streams.window {
        process.oci["consoleSize"] = json!({ "height": window.ws_row, "width": window.ws_col });
    }
    let described = process.in_memory()?;
    let begin = || -> io::Result<i32> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut exec = cli.command("exec");
        exec.arg("--process").arg(format!("/proc/{}/fd/{}", std::process::id(), described.as_raw_fd()));
        exec.arg("--detach").arg("--pid-file").arg(&pid_file);
        match &streams.console {
            Some(console) => drop(exec.arg("--tty").arg("--console-socket").arg(console)),
            None => {
                let theirs = |stream: Option<File>| stream.map_or_else(Stdio::inherit, Stdio::from);
                exec.stdin(theirs(streams.stdin));
                exec.stdout(theirs(streams.stdout)).stderr(theirs(streams.stderr));
            }
        }
        exec.arg(launch.id.to_string());
        cli.run(exec)?;
        cli::read_pid(&pid_file)
    };
    let begun = begin();
    let _ = std::fs::remove_file(&pid_file);
    let name = process.oci["args"][0].as_str().unwrap_or_default();
    begun.map_err(|error| explain(name, &error.to_string()))
}

/// Takes away what the runtime knows of a container that has ended.
pub(super) fn forget(run: &RunFiles, launch: &Launch) {
    if let Some(program) = &launch.runtime {
        Cli::new(program, run, &launch.id).delete();
    }
}
