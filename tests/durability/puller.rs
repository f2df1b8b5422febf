//! The process that pulls: this test binary once more, so that it can be killed and its world taken away.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gitopsd::registry::{PullError, Pulled, Registry, Store};
use gitopsd::types::{ImageRef, PinnedImage};

use super::support::{plain, wait_for};

/// Tells the child its state directory and its image.
const STATE: &str = "DURABILITY_TEST_STATE";
const IMAGE: &str = "DURABILITY_TEST_IMAGE";

/// Not a test of its own: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the others of this binary run it"]
async fn child() {
    let (Ok(state), Ok(image)) = (std::env::var(STATE), std::env::var(IMAGE)) else { return };
    let _scenario = fail::FailScenario::setup();
    let image: PinnedImage = serde_json::from_str(&image).unwrap();
    println!("\nchild begins");
    match pull(Path::new(&state), &image).await {
        Ok(_) => println!("\nchild is done"),
        Err(error) => println!("\nchild failed: {} {error}", error.reason),
    }
}

/// Opens the store as an agent does at its start, and pulls.
pub async fn pull(state: &Path, image: &PinnedImage) -> Result<Pulled, PullError> {
    let ImageRef::Registry(reference) = &image.reference else { panic!("{image:?}") };
    let store = std::sync::Arc::new(Store::open(state)?);
    let hosts = [(reference.registry.clone(), plain())].into();
    Registry::new(store, hosts)?.with_program(env!("CARGO_BIN_EXE_gitopsd").into()).pull(image, &|_| {}).await
}

/// A child that pulls.
pub struct Puller {
    process: Child,
    said: Receiver<String>,
}

/// How a child ended.
#[derive(Debug, PartialEq)]
pub enum End {
    Killed,
    Done,
    /// Reason and message.
    Failed(String),
}

impl Puller {
    /// Starts it, and waits until it is about to pull.
    pub fn start(state: &Path, image: &PinnedImage, failpoints: &str) -> Self {
        let mut process = Command::new("/proc/self/exe")
            .args(["--exact", "puller::child", "--ignored", "--nocapture"])
            .env(STATE, state)
            .env(IMAGE, serde_json::to_string(image).unwrap())
            .env("FAILPOINTS", failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let begun = lines.any(|line| line.unwrap() == "child begins");
        assert!(begun, "the child did not begin");
        let (says, said) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.starts_with("child ")) {
                let _ = says.send(line);
            }
        });
        Self { process, said }
    }

    /// Whether it has said that it is done, or failed.
    pub fn is_over(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// `kill -9` of the process alone, whatever children it has.
    pub fn kill(mut self) -> End {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.end()
    }

    pub fn end(mut self) -> End {
        let status = wait_for("the child to end", || self.process.try_wait().unwrap());
        match self.said.recv_timeout(Duration::from_secs(60)) {
            Ok(line) if line == "child is done" => End::Done,
            Ok(line) => End::Failed(line.strip_prefix("child failed: ").unwrap().to_owned()),
            Err(_) => {
                assert_eq!(status.signal(), Some(9), "{status:?}");
                End::Killed
            }
        }
    }
}

/// Waits until no process is left that works for a store: children of one that was killed go with it.
pub fn wait_for_orphans(state: &Path) {
    wait_for("what the killed process started to end", || workers(state).is_empty().then_some(()));
}

/// Processes other than this one that were told of a state directory, or have files below it open.
fn workers(state: &Path) -> Vec<String> {
    let name = state.as_os_str().as_encoded_bytes();
    let me = std::process::id().to_string();
    let contains = |bytes: Vec<u8>| bytes.windows(name.len()).any(|window| window == name);
    let works = |pid: &String| {
        let of = Path::new("/proc").join(pid);
        let told = ["cmdline", "environ"].iter().any(|file| std::fs::read(of.join(file)).is_ok_and(contains));
        let links =
            std::fs::read_dir(of.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut links = links.chain([of.join("cwd"), of.join("root")]);
        told || links.any(|link| std::fs::read_link(link).is_ok_and(|to| to.starts_with(state)))
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != me).filter(works).collect()
}
