//! Secrets of registries stay where they are: nothing of them is in the journal, the state, or what anybody is shown.

use std::process::{Child, Command, Stdio};

use super::image::Kind;
use super::lab::{Lab, free_port, wait_for, web};

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
