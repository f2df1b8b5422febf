//! Secrets of registries stay where they are: nothing of them is in the journal, the state, or what anybody is shown. Those
//! of services are in the state, and in the containers that ask for them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sha2::{Digest as _, Sha256};

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};
use super::load::get;

/// `htpasswd -nbB ada secret`
const HTPASSWD: &str = "ada:$2y$05$byOg03/riZXHRM.PiACP9.L3YKNy0qr3XiiuKOmZn0Sg8MaACHLTq\n";

/// How they are written: plainly, and in what goes over the wire.
const SECRETS: [&str; 3] = ["hidden-secret", "YWRhOnNlY3JldA", "YWRhOmhpZGRlbi1zZWNyZXQ"];

/// Ends with its test.
struct Closed(Child);

impl Drop for Closed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn assert_unseen(lab: &Lab) {
    let mut texts = vec![("journal", std::fs::read_to_string(lab.path("agent.log")).unwrap())];
    for verb in [&["status", "--json"][..], &["why", "web"], &["events"], &["history", "--json"]] {
        let output = lab.run(verb);
        let text = [output.stdout, output.stderr].concat();
        texts.push((verb[0], String::from_utf8_lossy(&text).into_owned()));
    }
    let state =
        Command::new("grep").args(["-rlaE", &SECRETS.join("|")]).arg(lab.path("state")).output().unwrap();
    texts.push(("state", String::from_utf8_lossy(&state.stdout).into_owned()));
    for (what, text) in texts {
        assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{what}: {text}");
        assert!(what != "state" || text.is_empty(), "{text}");
    }
}

#[test]
fn a_password_is_corrected_and_never_seen() {
    let mut lab = Lab::new();
    let reference = lab.image("1", Kind::Good);
    // The same images, for ada alone.
    let closed = free_port();
    let (users, config) = (lab.path("users"), lab.path("closed.yml"));
    std::fs::write(&users, HTPASSWD).unwrap();
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         auth: {{htpasswd: {{realm: lab, path: {}}}}}\nhttp: {{addr: '127.0.0.1:{closed}'}}\n",
        lab.path("registry").display(),
        users.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut registry = Command::new("docker-registry");
    registry.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _closed = Closed(registry.spawn().unwrap());
    wait_for("the registry", || std::net::TcpStream::connect(("127.0.0.1", closed)).ok());
    let login = lab.path("login.json");
    lab.configure(&format!(
        "[registry.\"127.0.0.1:{closed}\"]\nplain_http = true\ndocker_config = \"{}\"\n",
        login.display()
    ));
    let logged_in = |auth: &str| {
        let entry = serde_json::json!({ "auths": { format!("127.0.0.1:{closed}"): { "auth": auth } } });
        std::fs::write(&login, entry.to_string()).unwrap();
    };
    // `ada:hidden-secret`
    logged_in("YWRhOmhpZGRlbi1zZWNyZXQ=");
    let wanted = format!("127.0.0.1:{closed}/web:1");
    assert_ne!(wanted, reference);
    lab.deploy("web", &web(&wanted, free_port(), ""), "web 1");
    lab.start_agent();
    lab.wait_agent();
    let wait_auth = |lab: &Lab, word: &str| {
        wait_for(&format!("{word}; {}", lab.agent_log()), || {
            let service = lab.service("web");
            let message = service.to_string();
            (service["reason"] == "auth" && message.contains(word)).then_some(())
        });
    };
    wait_auth(&lab, "login.json");
    assert_unseen(&lab);
    // What is broken is told without it.
    logged_in("hidden-secret");
    lab.run(&["sync"]);
    wait_auth(&lab, "is not base64");
    assert_unseen(&lab);
    logged_in("YWRhOnNlY3JldA==");
    lab.run(&["sync"]);
    lab.wait_serving("web", &wanted);
    assert_unseen(&lab);
}

/// What the secrets of services hold here.
const CONTENTS: [&str; 2] = ["canary-1\n", "canary-2\n"];

/// As they are written, as others might write them, and their plain digests, by which a short one is soon guessed.
fn canaries() -> Vec<String> {
    let digest = |text: &str| {
        let bytes = Sha256::digest(text.as_bytes());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let digests = CONTENTS.iter().flat_map(|text| [digest(text), digest(text.trim())]);
    ["canary-", "Y2FuYXJ5L", "63616e6172792d"].map(str::to_owned).into_iter().chain(digests).collect()
}

impl Lab {
    fn secret(&self, name: &str, text: &str) {
        let (folder, path) = (self.path("secrets"), self.path("secrets").join(name));
        std::fs::create_dir_all(&folder).unwrap();
        // As one is best replaced.
        let new = folder.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o400)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// The secrets of the host's configuration.
    fn grant(&self, names: &[&str]) {
        let lines =
            names.iter().map(|name| format!("{name} = \"{}\"\n", self.path("secrets").join(name).display()));
        self.configure(&format!("[secrets]\n{}", lines.collect::<String>()));
    }

    fn inside(&self, service: &str, script: &str) -> String {
        self.ok(&["exec", service, "--", "/bin/sh", "-c", script])
    }
}

/// Nothing of a secret is in what anybody is shown, in git, in an environment, or on disk but where it is kept.
#[track_caller]
fn assert_kept_secret(lab: &Lab) {
    let work = lab.path("work");
    let mut texts = vec![("journal".to_owned(), std::fs::read(lab.path("agent.log")).unwrap())];
    for verb in [
        &["status"][..],
        &["status", "--json"],
        &["why", "web"],
        &["why", "web", "--json"],
        &["events"],
        &["history", "--json"],
        &["history", "web"],
        &["logs", "web"],
        &["plan", work.to_str().unwrap()],
        &["plan", work.to_str().unwrap(), "--json"],
        &["fleet", "--json"],
    ] {
        let output = lab.run(verb);
        texts.push((verb.join(" "), [output.stdout, output.stderr].concat()));
    }
    // Receipts lie in notes, which are a ref as any.
    texts.push(("git".to_owned(), lab.git(&lab.path("repo.git"), &["log", "--all", "-p"]).into_bytes()));
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        texts.push((process.path().display().to_string(), environment));
    }
    for (what, text) in texts {
        let text = String::from_utf8_lossy(&text);
        assert!(canaries().iter().all(|canary| !text.contains(canary)), "{what}: {text}");
    }
    let files = Command::new("grep")
        .args(["-rlaE", &canaries().join("|")])
        .args([lab.path("state"), lab.path("run")])
        .output()
        .unwrap();
    let (files, kept) = (String::from_utf8(files.stdout).unwrap(), lab.path("state/secrets"));
    assert!(!files.is_empty() && files.lines().all(|file| Path::new(file).starts_with(&kept)), "{files}");
}

const ASKS: &str = "secrets = [\"db-password\", { source = \"db-password\", target = \"/etc/app/password\", uid = 7, gid = \"8\", mode = 0o640 }]";

/// What the container that serves has of it.
fn password(lab: &Lab) -> String {
    lab.inside("web", "cat /run/secrets/db-password")
}

#[test]
fn another_content_of_a_secret_is_another_generation_and_the_former_one_keeps_its_own() {
    let mut lab = Lab::new();
    let (image, port) = (lab.image("1", Kind::Good), free_port());
    lab.secret("db-password", CONTENTS[0]);
    lab.grant(&["db-password"]);
    lab.deploy("web", &web(&image, port, ASKS), "with a secret");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_receipt("deployed");
    let script = "cat /run/secrets/db-password /etc/app/password
        stat -c '%a %u:%g' /run/secrets/db-password /etc/app/password";
    assert_eq!(lab.inside("web", script), "canary-1\ncanary-1\n444 0:0\n440 7:8\n");
    lab.ok(&["sync", "--wait"]);
    assert_eq!(lab.service("web")["generation"], 1, "what stays as it is changes nothing");
    assert_kept_secret(&lab);

    lab.secret("db-password", CONTENTS[1]);
    let plan = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(2), "{plan:?}");
    let said = String::from_utf8_lossy(&plan.stdout);
    assert!(said.contains("new generation: secret `db-password` changed"), "{said}");
    // No commit, and nobody who says so.
    wait_for("the new generation", || (lab.service("web")["generation"] == 2).then_some(()));
    let receipt =
        wait_for("its receipt", || lab.history().pop().filter(|receipt| receipt["to"]["generation"] == 2));
    assert!(receipt["message"].to_string().contains("secret `db-password` changed"), "{receipt}");
    assert!(lab.agent_log().contains("is begun (secret `db-password` changed)"), "{}", lab.agent_log());
    assert_eq!(password(&lab), CONTENTS[1]);
    assert!(lab.run(&["plan", lab.path("work").to_str().unwrap()]).status.success());
    wait_for("git to have it", || (lab.status()["outbox"] == 0).then_some(()));
    assert_kept_secret(&lab);

    // Back to the former generation, whose content the host has no more; it stays that through restarts and a boot.
    lab.ok(&["rollback", "web"]);
    wait_for("the end of it", || {
        let web = lab.service("web");
        (web["generation"] == 3 && web["rollout"].is_null()).then_some(())
    });
    assert_eq!(password(&lab), CONTENTS[0]);
    lab.kill_agent();
    lab.start_agent();
    lab.wait_agent();
    assert_eq!(password(&lab), CONTENTS[0]);
    lab.kill_agent();
    lab.cut_power();
    std::fs::remove_file(lab.path("secrets/db-password")).unwrap();
    lab.start_agent();
    wait_for("the service after the boot", || get(port, "/").is_ok().then_some(()));
    assert_eq!(password(&lab), CONTENTS[0]);
    lab.secret("db-password", CONTENTS[1]);
    lab.wait_agent();
    lab.ok(&["resume", "web"]);
    lab.ok(&["sync", "--wait"]);
    assert_eq!(password(&lab), CONTENTS[1]);
    assert_kept_secret(&lab);

    // What nothing needs goes.
    lab.secret("db-password", "canary-3\n");
    lab.ok(&["sync", "--wait"]);
    lab.ok(&["gc"]);
    let mut kept: Vec<String> = std::fs::read_dir(lab.path("state/secrets"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "key")
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["canary-2\n", "canary-3\n"], "current and previous");
}

#[test]
fn a_secret_that_cannot_be_had_costs_who_asks_for_it_and_what_runs_goes_on() {
    let mut lab = Lab::new();
    let (image, port) = (lab.image("1", Kind::Good), free_port());
    lab.secret("db-password", CONTENTS[0]);
    lab.grant(&["db-password", "gone"]);
    lab.deploy("web", &web(&image, port, ASKS), "with a secret");
    lab.start_agent();
    lab.wait_agent();
    lab.wait_receipt("deployed");
    let refused = |service: &str, reason: &str, words: &[&str]| {
        wait_for(&format!("{service}: {reason}; {}", lab.agent_log()), || {
            let seen = lab.service(service);
            let message = seen["message"].to_string();
            (seen["reason"] == reason && words.iter().all(|word| message.contains(word))).then_some(())
        });
    };

    // Two that cannot be had, beside one that can: the host does not name the one, and has not the other.
    for (name, secret) in [("other", "other"), ("gone", "gone")] {
        lab.write(
            &format!("services/{name}.toml"),
            &web(&image, free_port(), &format!("secrets = [\"{secret}\"]")),
        );
    }
    lab.deploy("web", &web(&image, port, &format!("{ASKS}\nenvironment = {{ A = \"1\" }}")), "three");
    refused("other", "policy", &["secret `other`: [secrets] of the host's configuration does not name it"]);
    refused("gone", "secret", &["secret `gone`", "secrets/gone cannot be read"]);
    wait_for("the other one", || (lab.service("web")["generation"] == 2).then_some(()));
    let plan = lab.run(&["plan", lab.path("work").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("refuse ").count(), 2, "{said}");
    // It comes, and that is all that it takes.
    lab.secret("gone", CONTENTS[0]);
    wait_for("it", || (lab.service("gone")["state"] == "running").then_some(()));

    // What becomes of the file is nothing to what runs, nor to its next start.
    let path = lab.path("secrets/db-password");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    refused("web", "secret", &["secret `db-password`", "has mode 0444"]);
    std::fs::remove_file(&path).unwrap();
    refused("web", "secret", &["secret `db-password`", "cannot be read"]);
    assert_eq!((get(port, "/").is_ok(), password(&lab).as_str()), (true, CONTENTS[0]));
    lab.run(&["exec", "web", "--", "/bin/sh", "-c", "kill -TERM 1"]);
    wait_for("a start", || (lab.service("web")["restarts"] == 1).then_some(()));
    wait_for("the service", || get(port, "/").is_ok().then_some(()));
    assert_eq!(password(&lab), CONTENTS[0]);
    lab.secret("db-password", CONTENTS[0]);
    wait_for("it to be as it should", || {
        let web = lab.service("web");
        (web["state"] == "running" && web["reason"].is_null()).then_some(())
    });
    assert_eq!(lab.service("web")["generation"], 2, "the same content is the same");
    assert_kept_secret(&lab);

    // A revert is known by what the repo says, and needs no registry.
    lab.stop_registry();
    lab.deploy("web", &web(&image, port, ASKS), "as before");
    wait_for("what was before", || (lab.service("web")["generation"] == 3).then_some(()));
}
