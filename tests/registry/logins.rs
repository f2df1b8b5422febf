//! Docker's `config.json` and credential helpers, by the program itself: what they give, how they fail, what is not said.

use serde_json::{Value, json};

use super::support::command::Machine;
use super::support::image::{Layer, noise};
use super::support::proxy::{Answer, Proxy};
use super::support::server::{Face, Server};
use super::support::wait_for;

/// `htpasswd -nbB ada secret`
const HTPASSWD: &str = "ada:$2y$05$byOg03/riZXHRM.PiACP9.L3YKNy0qr3XiiuKOmZn0Sg8MaACHLTq";

/// A registry whose user is ada, and a machine that has helpers.
struct Lab {
    _server: Server,
    closed: Server,
    machine: Machine,
}

impl Lab {
    async fn new() -> Self {
        let server = Server::new();
        server.push("1", &[Layer::default().file("file", &noise(1, 10_000)).gzip()]).await;
        let closed = server.face(&Face { htpasswd: Some(HTPASSWD), ..Face::default() });
        let machine = Machine::new(&format!("[registry.\"{}\"]\nplain_http = true\n", closed.address()));
        Self { _server: server, closed, machine }
    }

    /// Root's own `config.json`.
    fn config(&self, config: &Value) {
        std::fs::create_dir_all(self.machine.path(".docker")).unwrap();
        std::fs::write(self.machine.path(".docker/config.json"), config.to_string()).unwrap();
    }

    /// `docker-credential-lab`, a shell script.
    fn helper(&self, script: &str) {
        self.machine.program(
            "bin/docker-credential-lab",
            &format!("#!/bin/sh\ncat > {}\n{script}\n", self.asked().display()),
        );
    }

    fn asked(&self) -> std::path::PathBuf {
        self.machine.path("asked")
    }

    /// Pulls all of it; nothing that is secret may be said.
    #[track_caller]
    fn pull(&self) -> (bool, String) {
        self.machine.forget();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.machine.path("bin").display());
        let reference = format!("{}/app:1", self.closed.address());
        let (came, said) = self.machine.pull(&reference, &[("PATH", &path)]);
        for secret in ["secret", "YWRhOnNlY3JldA", "c2VjcmV0"] {
            assert!(!said.contains(secret), "{said}");
        }
        (came, said)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_and_helpers_in_all_their_forms() {
    let lab = Lab::new().await;
    let address = lab.closed.address();
    let login = json!({ "auth": "YWRhOnNlY3JldA==" });
    let nobody = json!({ "auth": "bm9ib2R5OnNlY3JldA==" });
    let knows = r#"echo '{"ServerURL": "x", "Username": "ada", "Secret": "secret"}'"#;
    let knows_nothing = "echo 'credentials not found in native keychain'; exit 1";
    let wrong = r#"echo '{"Username": "nobody", "Secret": "secret"}'"#;
    let auths = |key: &str| json!({ "auths": { key: login } });
    let fine: Vec<(&str, Value, &str)> = vec![
        ("host", auths(&address), "exit 9"),
        ("https://host/", auths(&format!("https://{address}/")), "exit 9"),
        ("https://host/v1/", auths(&format!("https://{address}/v1/")), "exit 9"),
        ("host/path", auths(&format!("{address}/app")), "exit 9"),
        ("the longest", json!({ "auths": { &address: nobody, format!("{address}/app"): login } }), "exit 9"),
        ("credHelpers", json!({ "credHelpers": { &address: "lab" } }), knows),
        ("credHelpers, by URL", json!({ "credHelpers": { format!("https://{address}/v2/"): "lab" } }), knows),
        ("before auths", json!({ "credHelpers": { &address: "lab" }, "auths": { &address: nobody } }), knows),
        ("before credsStore", json!({ "credHelpers": { &address: "lab" }, "credsStore": "none" }), knows),
        ("credsStore", json!({ "credsStore": "lab", "auths": { &address: {} } }), knows),
        (
            "one that knows nothing",
            json!({ "credsStore": "lab", "auths": { &address: login } }),
            knows_nothing,
        ),
        ("one for another", json!({ "credHelpers": { "r.io": "lab" }, "auths": { &address: login } }), wrong),
        (
            "none for this one",
            json!({ "credHelpers": { &address: "" }, "credsStore": "lab", "auths": { &address: login } }),
            wrong,
        ),
    ];
    for (what, config, helper) in fine {
        let _ = std::fs::remove_file(lab.asked());
        lab.config(&config);
        lab.helper(helper);
        let (came, said) = lab.pull();
        assert!(came, "{what}: {said}");
        if helper == knows {
            assert_eq!(std::fs::read_to_string(lab.asked()).unwrap(), address, "{what}");
        }
        if helper == wrong || helper == "exit 9" {
            assert!(!lab.asked().exists(), "{what}: it is not asked");
        }
    }
    // `docker_config` in the section: another file.
    lab.config(&json!({}));
    let file = lab.machine.path("other.json");
    std::fs::write(&file, json!({ "auths": { &address: login } }).to_string()).unwrap();
    let section =
        format!("[registry.\"{address}\"]\nplain_http = true\ndocker_config = \"{}\"\n", file.display());
    lab.machine.configure(&section);
    let (came, said) = lab.pull();
    assert!(came, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn helpers_that_fail_say_nothing_secret() {
    let lab = Lab::new().await;
    let address = lab.closed.address();
    lab.config(&json!({ "credHelpers": { &address: "lab" } }));
    let rows = [
        ("echo secret; echo secret >&2; exit 3", "exit status: 3"),
        ("kill -9 $$", "signal: 9"),
        ("echo '{\"Username\": \"ada\", \"Secret\": \"secret\"'", "not of its protocol"),
        ("echo 'ada:secret'", "not of its protocol"),
        ("echo '{\"Username\": 7, \"Secret\": \"secret\"}'", "not of its protocol"),
        ("while echo secretsecretsecretsecretsecret; do :; done", "longer than 1048576 bytes"),
        (
            "echo '{\"Username\": \"nobody\", \"Secret\": \"secret\"}'",
            "the credential helper docker-credential-lab",
        ),
    ];
    for (script, word) in rows {
        lab.helper(script);
        let (came, said) = lab.pull();
        assert!(!came && said.contains(word) && said.contains("(auth)"), "{script}: {said}");
        assert!(said.contains("docker-credential-lab"), "{script}: {said}");
    }
    lab.config(&json!({ "credsStore": "nobody-has-it" }));
    let (came, said) = lab.pull();
    assert!(!came && said.contains("docker-credential-nobody-has-it") && said.contains("PATH"), "{said}");
    lab.config(&json!({ "auths": { &address: { "auth": "!secret!" } } }));
    let (came, said) = lab.pull();
    assert!(!came && said.contains("base64") && said.contains("config.json"), "{said}");
    lab.config(&json!({ "auths": "secret" }));
    let (came, said) = lab.pull();
    assert!(!came && said.contains("config.json") && said.contains("line 1"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_hangs_goes_with_its_children() {
    let lab = Lab::new().await;
    lab.config(&json!({ "credHelpers": { lab.closed.address(): "lab" } }));
    let children = lab.machine.path("children");
    lab.helper(&format!(
        "(trap '' TERM HUP; sleep 1000) & echo $! >> {0}; echo $$ >> {0}; wait",
        children.display()
    ));
    let (came, said) = lab.pull();
    assert!(!came && said.contains("no answer within 10 s"), "{said}");
    let left: Vec<String> =
        std::fs::read_to_string(children).unwrap().lines().map(|pid| format!("/proc/{pid}/stat")).collect();
    assert_eq!(left.len(), 2, "one time-out, not one for each request");
    // Gone, or dead and waiting for whoever takes it in.
    let is_gone = |stat: &String| std::fs::read_to_string(stat).map_or(true, |text| text.contains(") Z "));
    wait_for("its processes to go", || left.iter().all(is_gone).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_may_have_an_identity_token() {
    let server = Server::new();
    server.push("1", &[Layer::default().file("file", &noise(1, 10_000)).gzip()]).await;
    let proxy = Proxy::new(&server, |request, upstream| {
        let own = request.header("host").unwrap();
        match (request.method.as_str(), request.header("authorization")) {
            ("POST", None)
                if request.body.contains("refresh_token=secret&")
                    || request.body.ends_with("refresh_token=secret") =>
            {
                Answer::new(200, br#"{"access_token":"t"}"#)
            }
            (_, Some("Bearer t")) => upstream.get(&request.clone().without("authorization")),
            _ => Answer::challenge(&format!("Bearer realm=\"http://{own}/token\"")),
        }
    });
    let machine = Machine::new(&format!("[registry.\"{}\"]\nplain_http = true\n", proxy.address()));
    std::fs::create_dir_all(machine.path(".docker")).unwrap();
    std::fs::write(machine.path(".docker/config.json"), r#"{"credsStore": "lab"}"#).unwrap();
    machine.program(
        "bin/docker-credential-lab",
        "#!/bin/sh\necho '{\"Username\": \"<token>\", \"Secret\": \"secret\"}'\n",
    );
    let path = format!("{}:/usr/bin:/bin", machine.path("bin").display());
    let (came, said) = machine.pull(&format!("{}/app:1", proxy.address()), &[("PATH", &path)]);
    assert!(came && !said.contains("secret"), "{said}");
}
