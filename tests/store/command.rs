//! `gitopsd pull` and `gitopsd fsck` without an agent: what they print, and how they end.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::damage::{other, rich};
use super::support::server::{Server, free_port};

pub struct Machine {
    pub dir: tempfile::TempDir,
    pub server: Server,
}

impl Machine {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gitopsd-store-").tempdir().unwrap();
        let server = Server::new();
        let machine = Self { dir, server };
        machine.configure("");
        machine
    }

    /// Writes the host's configuration.
    pub fn configure(&self, more: &str) {
        let (root, address) = (self.dir.path().display(), self.server.address());
        let text = format!(
            "state_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\n[repo]\nurl = \"{root}/repo.git\"\n\
             [registry.\"{address}\"]\nplain_http = true\n{more}"
        );
        fs::write(self.path("gitopsd.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gitopsd"))
            .args(args)
            .arg("--config")
            .arg(self.path("gitopsd.toml"))
            .output()
            .unwrap()
    }

    /// Runs a verb that kills itself at a point.
    pub fn killed_at(&self, point: &str, args: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        command.args(args).arg("--config").arg(self.path("gitopsd.toml"));
        let output = command.env("FAILPOINTS", format!("{point}=return")).output().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&output.status),
            Some(9),
            "{point}: {output:?}"
        );
    }

    /// What it printed, and its exit code.
    pub fn say(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text + &String::from_utf8(output.stderr).unwrap())
    }

    pub fn json(&self, args: &[&str]) -> (i32, Vec<Value>) {
        let output = self.run(&[args, &["--json"]].concat());
        let stream = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        (output.status.code().unwrap(), stream.map(Result::unwrap).collect())
    }

    pub fn image(&self, tag: &str) -> String {
        format!("{}/app:{tag}", self.server.address())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_says_what_came() {
    let machine = Machine::new();
    let blobs = [other(1), rich(1)];
    let descriptor = machine.server.push("1", &blobs).await;
    machine.server.push("2", &[other(1), rich(1), other(2)]).await;
    let image = machine.image("1");
    let (code, lines) = machine.json(&["pull", &image]);
    assert_eq!(code, 0, "{lines:?}");
    let (result, progress) = lines.split_last().unwrap();
    let last = &progress.last().unwrap()["progress"];
    let bytes: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
    assert_eq!((&last["bytes"], &last["total"]), (&bytes.into(), &bytes.into()), "{last}");
    assert_eq!(
        (&last["layers"], &last["layers_here"], &last["layers_done"]),
        (&2.into(), &0.into(), &2.into())
    );
    assert_eq!(result["ok"], true, "{result}");
    let entry = &result["images"][0];
    assert_eq!((&entry["reference"], &entry["digest"]), (&image.as_str().into(), &descriptor["digest"]));
    assert!(entry["pulled_bytes"].as_u64().unwrap() >= bytes as u64, "{entry}");
    // For people; what is here is not fetched again.
    let (code, text) = machine.say(&["pull", &image, &machine.image("2")]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("{image}: ")) && text.contains("2 of 2 layers were here"), "{text}");
    assert!(text.contains("3 of 3 layers here"), "a line for the one that came: {text}");
    assert!(text.contains("2 of 3 layers were here"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_fails_as_it_should() {
    let machine = Machine::new();
    machine.server.push("1", &[other(1)]).await;
    let (good, lost) = (machine.image("1"), machine.image("none"));
    // One that cannot be had does not keep the others from coming.
    let (code, lines) = machine.json(&["pull", &lost, &good]);
    assert_eq!(code, 1);
    let result = lines.last().unwrap();
    assert_eq!(result["ok"], false);
    assert_eq!(
        (&result["images"][0]["ok"], &result["images"][0]["reason"], &result["images"][1]["ok"]),
        (&false.into(), &"image-not-found".into(), &true.into()),
        "{result}"
    );
    for usage in [&["pull"][..], &["pull", "no-tag"], &["pull", "--all", &good]] {
        assert_eq!(machine.say(usage).0, 64, "{usage:?}");
    }
    let unreachable = format!("127.0.0.1:{}/app:1", free_port());
    let (code, text) = machine.say(&["pull", &unreachable]);
    assert!(code == 1 && text.contains("registry-unreachable"), "{code} {text}");
    fs::write(machine.path("gitopsd.toml"), "[repo]\n").unwrap();
    assert_eq!(machine.say(&["pull", &good]).0, 78);
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_finds_tells_and_repairs() {
    let machine = Machine::new();
    let (code, text) = machine.say(&["fsck"]);
    assert!(code == 0 && text.contains("0 layers, 0 images"), "before the first pull: {code} {text}");
    machine.server.push("1", &[other(1), rich(1)]).await;
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    for args in [&["fsck"][..], &["fsck", "--full"], &["fsck", "--full", "--repair"]] {
        let (code, text) = machine.say(args);
        assert!(code == 0 && text.contains("2 layers, 1 image, ") && text.contains("all sound"), "{text}");
    }
    let layer = rich(1).diff_id["sha256:".len()..].to_owned();
    let file = machine.path("state/store/layers").join(&layer).join("fs/data/small");
    let times = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "jello\n").unwrap();
    fs::File::open(&file).unwrap().set_modified(times).unwrap();
    assert_eq!(machine.say(&["fsck"]).0, 0, "a quick look does not read");
    let (code, text) = machine.say(&["fsck", "--full"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&layer[..12]) && text.contains("fs/data/small has content"), "{text}");
    assert!(text.contains("1 damaged") && text.contains("hint: `gitopsd fsck --full --repair`"), "{text}");
    let (code, found) = machine.json(&["fsck", "--full"]);
    assert_eq!((code, &found[0]["ok"], &found[0]["repaired"]), (1, &false.into(), &Value::Null));
    let (code, found) = machine.json(&["fsck", "--full", "--repair"]);
    let repaired = &found[0]["repaired"][0];
    assert_eq!(
        (code, &found[0]["ok"], &repaired["remedy"]),
        (0, &true.into(), &"rebuilt".into()),
        "{found:?}"
    );
    assert_eq!(repaired["pulled_bytes"], rich(1).bytes.len());
    assert_eq!(machine.say(&["fsck", "--full"]).0, 0);
    assert_eq!(fs::read(&file).unwrap(), b"hello\n");
}

/// What people get wrong is answered with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_have_hints() {
    let machine = Machine::new();
    machine.server.push("1", &[other(1)]).await;
    let path = machine.path("app.tar").display().to_string();
    for (image, code, part) in [
        (path.as_str(), 64, format!("an archive on this host is file://{path}")),
        ("./app.tar", 64, "an archive on this host is file:///path".to_owned()),
        ("s3:/bucket/app.tar", 64, "s3://bucket/key".to_owned()),
        (&machine.image("none"), 1, "hint: push it, or correct name and tag".to_owned()),
        (&format!("127.0.0.1:{}/app:1", free_port()), 1, "hint: is the address right".to_owned()),
    ] {
        let (found, text) = machine.say(&["pull", image]);
        assert!(found == code && text.contains(&part), "{image}: {found} {text}");
    }
    fs::write(&path, "<html>").unwrap();
    let (_, text) = machine.say(&["pull", &format!("file://{path}")]);
    assert!(text.contains("hint: write or copy it again"), "{text}");
    assert_eq!(text.matches("app.tar").count(), 1, "named once: {text}");
    // Nothing was admitted, and nothing is to be removed.
    assert!(machine.say(&["pull", "--all"]).1.contains("no image: "));
    let (_, text) = machine.say(&["gc", "--dry-run"]);
    assert!(text.contains("for 7d after its last use") && text.contains("the newest 3"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told() {
    let mut machine = Machine::new();
    machine.server.push("1", &[other(1), rich(1)]).await;
    assert_eq!(machine.say(&["pull", &machine.image("1")]).0, 0);
    assert!(!machine.say(&["images"]).1.contains("hint"));
    machine.server.stop();
    let layer = rich(1).diff_id;
    let file = machine.path("state/store/layers").join(&layer["sha256:".len()..]).join("fs/data/small");
    fs::write(&file, "jello\n").unwrap();
    let (code, text) = machine.say(&["fsck", "--repair"]);
    assert!(code == 1 && text.contains("taken out of use"), "{text}");
    let (_, text) = machine.say(&["images"]);
    assert!(text.contains("1 of 2") && text.contains("hint: layers that are not here"), "{text}");
    let (_, found) = machine.json(&["images"]);
    assert_eq!(found[0]["images"][0]["missing"], serde_json::json!([layer]), "{found:?}");
}
