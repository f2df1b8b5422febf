//! The config repo and the host's configuration, from files: golden findings, layers, selection, policy, and that no
//! input makes any of it panic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test says what is wrong by panicking"
)]

#[path = "config/broken.rs"]
mod broken;
#[path = "config/files.rs"]
mod files;
#[path = "config/health.rs"]
mod health;
#[path = "config/memory.rs"]
mod memory;
#[path = "config/secrets.rs"]
mod secrets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gitopsd::config::agent::HostIdentity;
use gitopsd::config::repo::{RepoFiles, RepoView, check, read, read_dir};
use gitopsd::types::{Canary, Policy, Probe, Reason, ServiceName, ShareBy, Strategy};
use proptest::prelude::*;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn host(name: &str, labels: &[&str]) -> HostIdentity {
    HostIdentity { name: name.parse().unwrap(), labels: labels.iter().map(ToString::to_string).collect() }
}

fn repo(files: &[(&str, &str)]) -> RepoFiles {
    let top = ("gitopsd.toml".to_owned(), b"format = 1\n".to_vec());
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    [top].into_iter().chain(files).collect()
}

fn view(files: &[(&str, &str)], policy: &Policy) -> RepoView {
    read(&repo(files), &host("web-1", &["role=web"]), policy)
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// Every folder of `tests/data/invalid` is a repo; `expected.txt` in it is what `gitopsd check` prints there.
#[test]
fn invalid_repos_give_all_their_errors_at_once() {
    let mut cases = 0;
    for entry in std::fs::read_dir(root().join("tests/data/invalid")).unwrap() {
        let dir = entry.unwrap().path();
        let output =
            Command::new(env!("CARGO_BIN_EXE_gitopsd")).arg("check").current_dir(&dir).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        let expected = dir.join("expected.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(&expected).unwrap(), "{}", dir.display());
        assert_eq!(output.status.code(), Some(1), "{}", dir.display());
        cases += 1;
    }
    assert!(cases >= 5);
}

#[test]
fn the_example_repo_is_clean() {
    let files = read_dir(&root().join("examples/config-repo")).unwrap();
    let report = check(&files, None);
    assert_eq!(report.diagnostics, []);
    assert_eq!(report.services, 1);
}

/// A parser that goes as deep as the text does would end the agent, and nothing could be told any more.
#[test]
fn text_nested_without_end_is_an_error_and_no_end() {
    for text in [
        "[".repeat(100_000),
        format!("x = {}", "[".repeat(200_000)),
        format!("x = {}", "{a=".repeat(100_000)),
    ] {
        let found = view(
            &[("services/shop.toml", &text), ("services/web.toml", "image = \"r.io/web:1\"\n")],
            &Policy::default(),
        );
        assert!(found.services[&name("shop")].is_err());
        assert!(found.services[&name("web")].is_ok(), "it costs that service only");
        assert!(
            check(&repo(&[("hosts/web-1.toml", &text)]), None).diagnostics.iter().any(|it| it.is_error())
        );
    }
    let keys = format!("{} = 1\n", vec!["a"; 100_000].join("."));
    assert!(view(&[("services/shop.toml", &keys)], &Policy::default()).services[&name("shop")].is_err());
}

#[test]
fn waves_and_what_is_meant_to_go() {
    let top = "format = 1\nremoved = [\"old\"]\n[[wave]]\nhosts = [\"a-*\", \"role=edge\"]\nwait = \"10m\"\nmin_healthy = \"90%\"\n[[wave]]\nhosts = [\"web-*\"]\n";
    let mut files = repo(&[("hosts/web-1.toml", "labels = [\"role=edge\"]\n")]);
    files.insert("gitopsd.toml".to_owned(), top.as_bytes().to_vec());
    let place = |host: &str, labels: &[&str]| {
        let identity = self::host(host, labels);
        let view = read(&files, &identity, &Policy::default());
        assert!(view.diagnostics.is_empty(), "{:?}", view.diagnostics);
        assert_eq!(view.removed, [name("old")].into());
        assert_eq!((view.waves[0].wait, view.waves[0].min_healthy), (Duration::from_secs(600), 90));
        assert_eq!((view.waves[1].wait, view.waves[1].min_healthy), (Duration::ZERO, 100));
        view.place
    };
    assert_eq!([place("a-1", &[]), place("web-1", &[]), place("web-2", &[])], [0, 0, 1]);
    assert_eq!([place("db-1", &["role=edge"]), place("db-1", &[])], [0, 2]);
    assert!(check(&files, None).diagnostics.is_empty());
    files.insert("hosts/db-1.toml".to_owned(), Vec::new());
    let found = check(&files, None).diagnostics;
    assert!(
        found.len() == 1 && !found[0].is_error() && found[0].message.contains("in no [[wave]]"),
        "{found:?}"
    );
}

/// The example of the contract: every key of it is taken.
#[test]
fn a_service_with_every_key() {
    let text = r#"
image = "registry.local:5000/shop:1.4.2"
fallback = ["s3://release-images/shop-{tag}.tar"]
hosts = ["web-*", "role=web"]
command = ["serve"]
environment = { LOG = "info", WORKERS = 4 }
ports = ["80:8080", "127.0.0.1:9000:9000", "53:53/udp"]
volumes = ["data:/var/lib/shop", "/srv/assets:/assets:ro"]
depends_on = ["db"]
stop_grace_period = "10s"
mem_limit = "512m"
cpus = 1.5
pids_limit = 256
[healthcheck]
http = "/healthz"
port = 8080
interval = "2s"
timeout = "1s"
start_period = "30s"
retries = 3
[deploy]
strategy = "blue-green"
drain = "30s"
bake = "60s"
timeout = "5m"
pre = ["bin/migrate", "up"]
"#;
    let policy = Policy { host_mounts: vec!["/srv/**".to_owned()], ..Policy::default() };
    let found =
        view(&[("services/shop.toml", text), ("services/db.toml", "image = \"r.io/db:1\"\n")], &policy);
    let spec = found.services[&name("shop")].as_ref().unwrap();
    assert_eq!(spec.milli_cpus, Some(1500));
    assert_eq!(spec.environment["WORKERS"], "4");
    assert_eq!(spec.strategy(), Strategy::BlueGreen);
    assert_eq!(spec.deploy.pre, ["bin/migrate", "up"]);
    let health = spec.healthcheck.as_ref().unwrap();
    assert_eq!(health.probe, Probe::http("/healthz", 8080));
    assert_eq!(health.start_period, Duration::from_secs(30));
    assert!(found.diagnostics.iter().all(|found| !found.is_error()), "{:?}", found.diagnostics);
    assert!(found.diagnostics.is_empty(), "{:?}", found.diagnostics);
}

#[test]
fn layers_are_merged_key_by_key() {
    let files: RepoFiles = [
        ("gitopsd.toml", "format = 1\n[defaults]\npids_limit = 9\nenvironment = { A = \"1\", B = \"1\" }\n[defaults.deploy]\nbake = \"9s\"\n"),
        ("services/web.toml", "image = \"r.io/web:1\"\nenvironment = { B = \"2\", C = \"2\" }\n[deploy]\ndrain = \"8s\"\n"),
        ("hosts/web-1.toml", "[services.web]\nenvironment = { C = \"3\" }\n[services.web.deploy]\nbake = \"7s\"\n"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .collect();
    let of = |host_name| {
        read(&files, &host(host_name, &[]), &Policy::default()).services[&name("web")].clone().unwrap()
    };
    let one = of("web-1");
    let expected: BTreeMap<String, String> =
        [("A", "1"), ("B", "2"), ("C", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert_eq!(one.environment, expected);
    assert_eq!((one.deploy.bake, one.deploy.drain), (Duration::from_secs(7), Duration::from_secs(8)));
    assert_eq!(one.pids_limit, Some(9));
    assert_eq!(of("web-2").deploy.bake, Duration::from_secs(9));
}

#[test]
fn hosts_are_chosen_by_name_and_by_label() {
    let service = |hosts: &str| format!("image = \"r.io/a:1\"\nhosts = {hosts}\n");
    for (hosts, labels, chosen) in [
        ("[\"web-*\"]", &[][..], true),
        ("[\"db-*\"]", &[], false),
        ("[\"role=web\"]", &["role=web"], true),
        ("[\"role=web\"]", &["role=db"], false),
        ("[]", &["role=web"], false),
    ] {
        let files = repo(&[("services/a.toml", &service(hosts))]);
        let found = read(&files, &host("web-1", labels), &Policy::default());
        assert_eq!(found.services.contains_key(&name("a")), chosen, "{hosts} {labels:?}");
        assert_eq!(found.declared_in_repo, 1);
    }
    // A label that the repo gives.
    let files = repo(&[
        ("services/a.toml", &service("[\"role=web\"]")),
        ("hosts/web-1.toml", "labels = [\"role=web\"]\n"),
    ]);
    assert!(read(&files, &host("web-1", &[]), &Policy::default()).services.contains_key(&name("a")));
}

#[test]
fn a_broken_file_stops_its_own_service_only() {
    let found = view(
        &[
            ("services/bad.toml", "image = 1\n"),
            ("services/torn.toml", "image = \"r.io/t:1\"\n[deploy\n"),
            ("services/good.toml", "image = \"r.io/g:1\"\n"),
        ],
        &Policy::default(),
    );
    assert!(found.fatal.is_none());
    for broken in ["bad", "torn"] {
        let refusal = found.services[&name(broken)].as_ref().unwrap_err();
        assert_eq!(refusal.reason, Reason::ConfigInvalid);
        assert!(refusal.message.starts_with(&format!("services/{broken}.toml:")), "{refusal}");
    }
    assert!(found.services[&name("good")].is_ok());
}

#[test]
fn a_repo_that_is_not_one_is_refused_whole() {
    for files in [
        RepoFiles::new(),
        RepoFiles::from([("gitopsd.toml".to_owned(), b"format = 2\n".to_vec())]),
        RepoFiles::from([("gitopsd.toml".to_owned(), b"\xff\xfe".to_vec())]),
        RepoFiles::from([("gitopsd.toml".to_owned(), b"format = 1\n[defaults]\nimag = 1\n".to_vec())]),
    ] {
        let found = read(&files, &host("web-1", &[]), &Policy::default());
        assert_eq!(found.fatal.unwrap().reason, Reason::ConfigInvalid);
    }
}

#[test]
fn the_policy_names_its_rule() {
    let policy = Policy {
        registries: vec!["good.io/*".to_owned()],
        host_mounts: vec!["/srv/*".to_owned()],
        ..Policy::default()
    };
    for (text, rule) in [
        ("image = \"bad.io/a:1\"\n", "policy.registries"),
        ("image = \"good.io/a:1\"\nvolumes = [\"/etc:/x\"]\n", "policy.host_mounts"),
        ("image = \"good.io/a:1\"\nvolumes = [\"/:/x\"]\n", "policy.host_mounts"),
    ] {
        let refusal = view(&[("services/a.toml", text)], &policy).services[&name("a")].clone().unwrap_err();
        assert_eq!(refusal.reason, Reason::Policy);
        assert!(refusal.message.contains(rule), "{refusal}");
    }
    // What of an archive's address a pattern matches is what is fetched; files have to be named.
    let stores = Policy {
        registries: vec!["s3://images/*".to_owned(), "file:///srv/images/*".to_owned()],
        ..Policy::default()
    };
    let open = Policy::default();
    for (text, policy, part) in [
        ("image = \"s3://images/a.tar\"\n", &stores, None),
        (
            "image = \"s3://other/a.tar\"\n",
            &stores,
            Some("policy.registries does not allow s3://other/a.tar"),
        ),
        ("image = \"s3://images/../other/a.tar\"\n", &stores, Some("leads elsewhere")),
        ("image = \"file:///srv/images/%2e%2e/a.tar\"\n", &stores, Some("behind a %")),
        ("image = \"file:///srv/images/a.tar\"\n", &stores, None),
        (
            "image = \"file:///srv/images/a.tar\"\n",
            &open,
            Some("policy.registries does not name file:///srv"),
        ),
        ("image = \"s3://any/a.tar\"\n", &open, None),
        (
            "image = \"r.io/a:1\"\nfallback = [\"file:///a-{tag}.tar\"]\n",
            &open,
            Some("does not name file:///a-"),
        ),
        ("image = \"r.io/a:1\"\nfallback = [\"s3://images/{tag}/../x\"]\n", &open, Some("leads elsewhere")),
        ("image = \"r.io/a:1\"\nfallback = [\"https://{tag}.io/x\"]\n", &open, Some("belongs into the path")),
        ("image = \"r.io/a:1\"\nfallback = [\"r.io/a:2\"]\n", &open, Some("is not an s3://")),
    ] {
        let view = view(&[("services/a.toml", text)], policy);
        let refusal = view.services[&name("a")].as_ref().err().map(ToString::to_string);
        match part {
            Some(part) => {
                assert!(refusal.as_ref().is_some_and(|why| why.contains(part)), "{text}: {refusal:?}")
            }
            None => assert_eq!(refusal, None, "{text}"),
        }
    }
    let pinned = Policy { require_digest: true, ..Policy::default() };
    let refusal =
        view(&[("services/a.toml", "image = \"good.io/a:1\"\n")], &pinned).services[&name("a")].clone();
    assert!(refusal.unwrap_err().message.contains("require_digest"));
}

#[test]
fn the_host_configuration_gives_all_errors_and_merges_drop_ins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitopsd.toml");
    let load = || gitopsd::config::load(&path);
    assert!(load().unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(&path, "[repo]\nurl = \"/srv/config.git\"\n[host]\nname = \"web-1\"\n").unwrap();
    let config = load().unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/gitopsd"));
    assert_eq!(config.repo.poll, Duration::from_secs(30));
    assert!(config.report.push);
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(
        dir.path().join("conf.d/10-host.toml"),
        "[repo]\npoll = \"5s\"\n[host]\nlabels = [\"a=b\"]\n",
    )
    .unwrap();
    let config = load().unwrap();
    assert_eq!((config.repo.poll, config.host.labels.len()), (Duration::from_secs(5), 1));
    assert_eq!(config.repo.url.as_str(), "/srv/config.git");
    let bad = "instance = \"Bad\"\nstate_dir = \"rel\"\n[repo]\nurl = \"/x\"\nverify = \"x509\"\npassword = \"hunter2\"\n[engine]\nkind = \"docker\"\nsubnet = \"10.0.0.1/16\"\n[webhook]\n";
    std::fs::write(&path, bad).unwrap();
    let text = load().unwrap_err().to_string();
    for part in ["instance", "state_dir", "verify", "password_file", "kind", "subnet"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(text.matches("error:").count(), 6, "{text}");
    let output = Command::new(env!("CARGO_BIN_EXE_gitopsd"))
        .arg("--config")
        .arg(&path)
        .arg("status")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn sections_about_forges_are_read_whole_or_not_at_all() {
    use gitopsd::config::agent::{Forge, Listen};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitopsd.toml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        gitopsd::config::load(&path)
    };
    let repo = "[repo]\nurl = \"https://git.example.org/ops/config.git\"\n";
    let plain = load(repo).unwrap();
    assert!(plain.webhook.is_none() && plain.status.is_none() && plain.report.access.is_none());
    let config = load(&format!(
        "{repo}credential_helper = [\"/usr/bin/helper\", \"-v\"]\n[webhook]\nlisten = \"127.0.0.1:9000\"\nsecret_file = \"credential:hook\"\n\
         [status]\nforge = \"forgejo\"\ntoken_file = \"/t\"\n\
         [report]\nremote = \"https://git.example.org/ops/audit.git\"\ntoken_file = \"/a\"\n"
    ))
    .unwrap();
    assert_eq!(config.repo.credential_helper, ["/usr/bin/helper", "-v"]);
    let webhook = config.webhook.unwrap();
    assert_eq!(webhook.listen, Listen::Address("127.0.0.1:9000".parse().unwrap()));
    assert!(webhook.secret_file.ends_with("hook"));
    let status = config.status.unwrap();
    assert_eq!((status.forge, status.url.as_str()), (Forge::Gitea, "https://git.example.org/ops/config.git"));
    assert_eq!(config.report.access.unwrap().token_file.as_deref(), Some(Path::new("/a")));
    let systemd = load(&format!("{repo}[webhook]\nlisten = \"systemd\"\nsecret_file = \"/s\"\n")).unwrap();
    assert_eq!(systemd.webhook.unwrap().listen, Listen::Systemd);

    let ssh = "[repo]\nurl = \"git@git.example.org:ops/config.git\"\n";
    for (text, part) in [
        (format!("{repo}[webhook]\nlisten = \"127.0.0.1:9000\"\n"), "secret_file"),
        (format!("{repo}[webhook]\nsecret_file = \"/s\"\n"), "listen"),
        (format!("{repo}[webhook]\nlisten = \"9000\"\nsecret_file = \"/s\"\n"), "address with a port"),
        (format!("{repo}[webhook]\nlisten = \"systemd\"\nsecret = \"hunter2\"\n"), "secret_file"),
        (format!("{repo}[status]\nforge = \"svn\"\ntoken_file = \"/t\"\n"), "github"),
        (format!("{repo}[status]\ntoken_file = \"/t\"\n"), "status.forge"),
        (format!("{repo}[status]\nforge = \"github\"\n"), "status.token_file"),
        (format!("{ssh}[status]\nforge = \"github\"\ntoken_file = \"/t\"\n"), "status.url"),
        (format!("{repo}[status]\nforge = \"github\"\ntoken = \"hunter2\"\n"), "token_file"),
        (
            format!(
                "{repo}[status]\nforge = \"github\"\nurl = \"https://github.com\"\ntoken_file = \"/t\"\n"
            ),
            "url",
        ),
        (format!("{repo}[report]\ntoken_file = \"/a\"\n"), "remote"),
        (format!("{repo}credential_helper = [\"store\"]\n"), "absolute path"),
    ] {
        let error = load(&text).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn signers_that_nothing_is_checked_by_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitopsd.toml");
    let load = |keys: &str| {
        std::fs::write(&path, format!("[repo]\nurl = \"/x\"\n{keys}\n")).unwrap();
        gitopsd::config::load(&path)
    };
    for keys in [
        "allowed_signers = \"/a\"",
        "verify = \"off\"\nrevoked_signers = \"/a\"",
        "verify_commits = \"head\"",
    ] {
        let text = load(keys).unwrap_err().to_string();
        assert!(text.contains("`repo.verify` is not \"ssh\""), "{keys}: {text}");
    }
    let trust = load(
        "verify = \"ssh\"\nfirst_commit = \"0123456789012345678901234567890123456789\"\nmin_commit_time = \"2026-01-01T00:00:00Z\"",
    );
    let trust = trust.unwrap().repo.trust;
    let signatures = trust.signatures.unwrap();
    assert_eq!(signatures.allowed_signers.as_deref(), Some(Path::new("/etc/gitopsd/allowed_signers")));
    assert_eq!(signatures.trusted_keys, None);
    assert!(!signatures.head_only && trust.first_commit.is_some() && trust.min_commit_time.is_some());
    let both =
        load("verify = [\"openpgp\", \"ssh\"]\ntrusted_keys = \"/a\"\n[report]\nkey = \"/k\"").unwrap();
    let signatures = both.repo.trust.signatures.unwrap();
    assert_eq!(signatures.trusted_keys.as_deref(), Some(Path::new("/a")));
    assert!(signatures.allowed_signers.is_some());
    assert_eq!(both.report.key.as_deref(), Some(Path::new("/k")));
    let only =
        load("verify = \"openpgp\"\nverify_commits = \"head\"").unwrap().repo.trust.signatures.unwrap();
    assert_eq!(only.trusted_keys.as_deref(), Some(Path::new("/etc/gitopsd/trusted_keys")));
    assert!(only.allowed_signers.is_none() && only.head_only);
    assert!(load("verify = \"off\"").unwrap().repo.trust.signatures.is_none());
    for (keys, why) in [
        ("verify = \"ssh\"\ntrusted_keys = \"/a\"", "`repo.verify` is not \"openpgp\""),
        ("verify = \"openpgp\"\nallowed_signers = \"/a\"", "`repo.verify` is not \"ssh\""),
        ("verify = \"x509\"", "X.509"),
        ("verify = []", "is an empty list"),
        ("verify = [\"ssh\", \"off\"]", "`verify` takes"),
        ("verify = 1", "takes a string"),
    ] {
        let text = load(keys).unwrap_err().to_string();
        assert!(text.contains(why), "{keys}: {text}");
    }
    for keys in [
        "verify = \"yes\"",
        "verify = \"ssh\"\nverify_commits = \"all\"",
        "first_commit = \"abc\"",
        "min_commit_time = \"soon\"",
        "max_age = \"0s\"",
        "max_age = 3",
    ] {
        assert!(load(keys).is_err(), "{keys}");
    }
}

#[test]
fn a_registrys_section_says_nothing_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitopsd.toml");
    let load = |section: &str| {
        let text = format!("[repo]\nurl = \"/srv/config.git\"\n[registry.\"r.io\"]\n{section}\n");
        std::fs::write(&path, text).unwrap();
        gitopsd::config::load(&path).map_err(|error| error.to_string())
    };
    let fine = [
        "username = \"a\"\npassword_file = \"/p\"",
        "token_file = \"/t\"",
        "client_cert = \"/c\"\nclient_key = \"/k\"",
        "mirrors = [\"https://m/prefix\", \"http://m:5000\"]",
    ];
    for section in fine {
        let config = load(section).unwrap();
        assert_eq!(config.registries.len(), 1, "{section}");
    }
    let refused: &[(&str, &[&str])] = &[
        ("username = \"a\"", &["`username`", "`password_file`"]),
        ("password_file = \"/p\"", &["`username`", "`password_file`"]),
        ("client_cert = \"/c\"", &["`client_cert`", "`client_key`"]),
        ("client_key = \"/c\"", &["`client_cert`", "`client_key`"]),
        (
            "token_file = \"/t\"\nusername = \"a\"\npassword_file = \"/p\"",
            &["`token_file`", "`password_file`", "`username`", "exclude"],
        ),
        ("token_file = \"/t\"\npassword_file = \"/p\"", &["`token_file` and `password_file`"]),
        ("password = \"hunter2\"", &["`password_file`"]),
        ("token = \"hunter2\"", &["`token_file`"]),
        ("mirrors = [\"m.example\"]", &["`mirrors`", "http://"]),
        ("mirrors = [\"ftp://m.example\"]", &["`mirrors`", "http://"]),
        ("mirrors = [\"https://\"]", &["`mirrors`", "http://"]),
        ("mirrors = [\"https://bob:hunter2@m.example/p\"]", &["https://m.example/p", "section of its own"]),
        ("mirrors = [\"https://m.example/p?token=hunter2\"]", &["https://m.example/p", "`?`"]),
    ];
    for (section, words) in refused {
        let text = load(section).unwrap_err();
        for word in *words {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("gitopsd.toml:"), "{text}");
    }
}

/// What the page says and what the parser takes are the same keys.
#[test]
fn the_page_and_the_parser_know_the_same_keys() {
    let page = std::fs::read_to_string(root().join("docs/config.md")).unwrap();
    let documented: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split(','))
        .map(|cell| cell.trim().trim_matches('`'))
        .collect();
    let mut taken = Vec::new();
    for file in [
        "service",
        "memory",
        "blkio",
        "canary",
        "replicas",
        "health_read",
        "options",
        "network",
        "repo",
        "load",
        "engine",
        "images",
        "registry",
        "configs",
        "secrets",
        "volume",
        "trust",
        "depends",
        "times",
        "report",
        "webhook",
        "forge",
        "waves",
    ] {
        let source = std::fs::read_to_string(root().join(format!("src/config/{file}.rs"))).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap().to_owned();
        let calls = [
            ".get(\"",
            ".string(\"",
            ".strings(\"",
            ".parsed(\"",
            ".duration(\"",
            ".boolean(\"",
            ".integer(\"",
            ".number(\"",
            ".table(\"",
        ];
        for call in calls {
            taken.extend(source.match_indices(call).map(|(at, _)| {
                let rest = &source[at + call.len()..];
                rest[..rest.find('"').unwrap()].to_owned()
            }));
        }
        let calls = [
            "path(&section, \"",
            "path(repo, \"",
            "secret(repo, \"",
            "secret(&report, \"",
            "path(section, \"",
            "secret(section, \"",
            "command(section, \"",
            "globs(policy, \"",
            "positive(\"",
            "port_of(section, \"",
            " path(\"",
            "on(\"",
            "count(\"",
            "list(section, \"",
            "each(section, \"",
            "one(section, \"",
            "size(section, \"",
            "map(section, \"",
            "mode(section, \"",
            "program(section, \"",
            "program(repo, \"",
            "flag(\"",
            "rates(\"",
            "size(&options, \"",
            "one(&options, \"",
            "one(&entry, \"",
            "options(\"",
            "one_of(bind, \"",
            "number(entry, \"",
            "mode(entry, \"",
            "mode(tmpfs, \"",
        ];
        for call in calls {
            taken.extend(source.match_indices(call).map(|(at, _)| {
                let rest = &source[at + call.len()..];
                rest[..rest.find('"').unwrap()].to_owned()
            }));
        }
    }
    taken.sort();
    taken.dedup();
    // Sections have headings of their own.
    let sections = [
        "repo", "host", "engine", "registry", "s3", "images", "policy", "report", "webhook", "status",
        "defaults",
    ];
    for key in taken.iter().filter(|key| !sections.contains(&key.as_str())) {
        assert!(documented.contains(&key.as_str()), "docs/config.md does not have `{key}`");
    }
    for key in &documented {
        let known = taken.iter().any(|taken| taken == key) || *key == "privileged";
        assert!(known, "docs/config.md has `{key}`, which nobody reads");
    }
}

/// `depends_on` in both syntaxes, times, and what is wrong with them.
#[test]
fn order_schedules_and_windows() {
    let policy = Policy { registries: vec!["*".to_owned()], ..Policy::default() };
    let view = |text: &str| {
        let file = |text: &str| format!("image = \"r.io/x:1\"\n{text}\n").into_bytes();
        let files = RepoFiles::from([
            ("gitopsd.toml".to_owned(), b"format = 1\n".to_vec()),
            ("services/x.toml".to_owned(), file(text)),
            ("services/y.toml".to_owned(), file("depends_on = [\"z\"]")),
            ("services/z.toml".to_owned(), file("")),
        ]);
        let host = HostIdentity { name: "h".parse().unwrap(), labels: Vec::new() };
        read(&files, &host, &policy).services.remove(&"x".parse().unwrap()).unwrap()
    };
    let spec = view(
        "schedule = { calendar = \"Mon..Fri 03:00 Europe/Berlin\", persistent = false, timeout = \"10m\" }\n\
         [deploy]\npost = \"warm up\"\nreversible = false\nwindow = [\"09:00-17:00\", \"Sat 22:00-04:00 UTC\"]\n\
         [depends_on]\ny = { condition = \"service_healthy\" }\nz = { required = false, restart = false }",
    );
    let spec = spec.unwrap();
    let text = serde_json::to_value(&spec.depends_on).unwrap();
    let long = |service: &str, condition: &str, required| serde_json::json!({ "service": service, "condition": condition, "required": required });
    assert_eq!(text[0], long("y", "service_healthy", true));
    assert_eq!(text[1], long("z", "service_started", false));
    assert_eq!(spec.deploy.post, ["warm", "up"]);
    assert!(!spec.deploy.reversible && spec.deploy.window.len() == 2);
    let schedule = spec.schedule.unwrap();
    assert_eq!((schedule.calendar.zone(), schedule.persistent), (Some("Europe/Berlin"), false));
    assert_eq!(serde_json::to_value(view("depends_on = [\"y\"]").unwrap().depends_on).unwrap()[0], "y");
    for (text, why) in [
        ("schedule = \"25:00\"", "is no calendar time"),
        ("schedule = \"03:00 Europe/Nowhere\"", "`Europe/Nowhere` is not a time zone"),
        ("schedule = {}", "`schedule` has no `calendar`"),
        ("schedule = \"daily\"\nports = [\"80:80\"]", "`ports` does not go with `schedule`"),
        ("schedule = \"daily\"\nrestart = \"always\"", "`restart` does not go with `schedule`"),
        ("[deploy]\nwindow = \"9-17\"", "is no window"),
        ("[deploy]\nwindow = 9", "`window` takes a string"),
        ("[depends_on]\ny = \"service_healthy\"", "`y` takes a table"),
        ("[depends_on]\ny = { condition = \"healthy\" }", "`healthy` is none of `service_started`"),
        ("[depends_on]\ny = { restart = true }", "`restart` is not supported"),
        ("[depends_on]\ny = { conditon = \"x\" }", "unknown key `conditon`"),
        ("depends_on = [\"x\"]", "x depends on itself"),
    ] {
        let refusal = view(text).unwrap_err();
        assert!(refusal.message.contains(why), "{text}: {refusal}");
    }
}

/// What the repo says of a service's network, and what it must not say.
#[test]
fn networks_and_network_modes() {
    let policy = Policy { host_network: true, registries: vec!["*".to_owned()], ..Policy::default() };
    let image = "image = \"r.io/a:1\"\n";
    let found = |files: &[(&str, &str)]| {
        let mut files: RepoFiles = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), format!("{image}{text}").into_bytes()))
            .collect();
        let top = "format = 1\n[networks.back]\ninternal = true\n[networks.front]\nenable_ipv6 = false\n";
        files.insert("gitopsd.toml".to_owned(), top.as_bytes().to_vec());
        read(&files, &host("web-1", &[]), &policy)
    };
    let view = found(&[
        ("services/a.toml", "networks = { back = { aliases = [\"sql\"] }, front = {} }"),
        ("services/b.toml", "network_mode = \"service:a\""),
        ("services/c.toml", "network_mode = \"host\""),
        ("services/d.toml", "networks = [\"default\"]"),
        ("services/e.toml", "network_mode = \"bridge\""),
    ]);
    assert!(view.diagnostics.is_empty(), "{:?}", view.diagnostics);
    let spec = |name: &str| view.services[&self::name(name)].as_ref().unwrap();
    let links = spec("a").options.networks.as_ref().unwrap();
    let link = |name: &str| &links[&name.parse().unwrap()];
    assert_eq!((link("back").internal, link("back").aliases.as_slice()), (true, &["sql".to_owned()][..]));
    assert!(link("front").ipv4_only && !link("front").internal);
    assert_eq!(spec("b").joins(), Some(&name("a")));
    assert_eq!((spec("b").strategy(), spec("c").strategy()), (Strategy::Recreate, Strategy::Recreate));
    // What everybody has is spelled one way, so that a service that says it is no other service.
    assert!(spec("d").options.is_default() && spec("e").options.is_default());

    let refusal = |file: &str, others: &[(&str, &str)]| {
        let files: Vec<_> = [("services/x.toml", file)].into_iter().chain(others.iter().copied()).collect();
        let view = found(&files);
        view.services[&name("x")].as_ref().unwrap_err().message.clone()
    };
    let other = |text: &'static str| [("services/y.toml", text)];
    for (file, others, said) in [
        ("network_mode = \"service:x\"", &other("")[..], "cannot share its own network"),
        ("network_mode = \"service:z\"", &other("")[..], "there is no services/z.toml"),
        ("network_mode = \"service:y\"", &other("hosts = [\"db-*\"]")[..], "not for this host"),
        ("network_mode = \"service:y\"", &other("network_mode = \"host\"")[..], "no network of its own"),
        ("network_mode = \"service:y\"", &other("network_mode = \"service:x\"")[..], "no network of its own"),
        ("network_mode = \"service:y\"", &other("depends_on = [\"x\"]")[..], "depends on x in turn"),
        ("network_mode = \"host\"\nports = [\"80:80\"]", &[][..], "its ports are the host's already"),
        ("network_mode = \"service:y\"\nports = [\"80:80\"]", &other("")[..], "of the other service"),
        ("network_mode = \"none\"\n[healthcheck]\ntcp = 80", &[][..], "nobody outside reaches"),
        ("network_mode = \"host\"\nsysctls = { \"net.core.somaxconn\" = 9 }", &[][..], "net.core.somaxconn"),
        ("network_mode = \"host\"\nnetworks = [\"back\"]", &[][..], "exclude each other"),
        (
            "network_mode = \"host\"\nhealthcheck.tcp = 80\ndeploy.strategy = \"blue-green\"",
            &[][..],
            "of two generations answers",
        ),
        (
            "network_mode = \"service:y\"\nhealthcheck.tcp = 80\ndeploy.strategy = \"blue-green\"",
            &other("")[..],
            "of two generations answers",
        ),
        ("networks = [\"bakc\"]", &[][..], "bakc is not defined"),
    ] {
        let message = refusal(file, others);
        assert!(message.contains(said), "{file}: {message}");
    }
    let warned = found(&[("services/a.toml", "networks = [\"back\"]\nports = [\"80:80\"]")]);
    assert!(warned.services[&name("a")].is_ok() && warned.diagnostics[0].message.contains("internal"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the files, reading them is an answer and never a panic.
    #[test]
    fn no_text_makes_it_panic(at in any::<prop::sample::Index>(), cut in 0usize..40, put in "[ -~\n\t\u{e9}\u{1f600}]{0,12}") {
        let text = "image = \"r.io/a:1\"\nports = [\"80:80\"]\ncpus = 1.5\nmem_limit = 9999999\nenvironment = { A = 1 }\nvolumes = [\"d:/d\", { type = \"tmpfs\", target = \"/t\", tmpfs = { size = 9, mode = 0o7 } }]\nenv_file = [\"a.env\"]\nconfigs = [{ file = \"a.env\", target = \"/x\", mode = 0o444 }]\nsecrets = [\"s\", { source = \"s\", target = \"t\", mode = 0o444 }]\n[healthcheck]\nhttp = \"/x\"\nretries = 3\n[deploy]\nbake = \"1s\"\n";
        let mut chars: Vec<char> = text.chars().collect();
        let from = at.index(chars.len());
        let to = (from + cut).min(chars.len());
        chars.splice(from..to, put.chars());
        let text: String = chars.into_iter().collect();
        // Each is also what the others take from: variables, contents.
        let files = repo(&[("services/a.toml", &text), ("hosts/web-1.toml", &text), ("services/a.env", &text)]);
        for found in check(&files, None).diagnostics {
            prop_assert!(!found.to_string().is_empty());
        }
        let _ = view(&[("services/a.toml", &text)], &Policy::default());
        let values = format!("A='{put}\nB=\"{put}\nC={put}\n{text}");
        let _ = view(&[("services/a.toml", "image = \"r.io/a:1\"\nenv_file = \"e\"\n"), ("services/e", &values)], &Policy::default());
        let top = RepoFiles::from([("gitopsd.toml".to_owned(), text.clone().into_bytes())]);
        let _ = read(&top, &host("web-1", &[]), &Policy::default());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, &text).unwrap();
        let _ = gitopsd::config::load(&path).map_err(|error| error.to_string());
    }
}

/// A part of new connections: from its layers, and refused where two generations cannot be at once.
#[test]
fn canaries() {
    let found = |top: &str, web: &str| {
        let files: RepoFiles = [
            ("gitopsd.toml", format!("format = 1\n{top}")),
            ("services/web.toml", format!("image = \"r.io/web:1\"\n{web}")),
        ]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
        .collect();
        let policy = Policy { host_network: true, ..Policy::default() };
        read(&files, &host("web-1", &[]), &policy).services[&name("web")].clone()
    };
    let canary = |top: &str, web: &str| found(top, web).unwrap().deploy.canary;
    let defaults = "[defaults.deploy]\ncanary = \"5%\"\ncanary_by = \"client\"\n";
    assert_eq!(canary("", "[deploy]\ncanary_time = \"1m\"\n"), None, "a time without a share is none");
    let Canary { share, time, by } = canary("", "[deploy]\ncanary = \"12.5%\"\n").unwrap();
    assert_eq!((share.thousandths(), time, by), (125, Duration::from_secs(300), ShareBy::Connection));
    let Canary { share, time, by } = canary(defaults, "[deploy]\ncanary_time = \"1m\"\n").unwrap();
    assert_eq!((share.thousandths(), time, by), (50, Duration::from_secs(60), ShareBy::Client));
    assert_eq!(canary(defaults, "[deploy]\ncanary = \"0%\"\n"), None);
    assert_eq!(canary(defaults, "volumes = [\"data:/d\"]\n[deploy]\ncanary = \"0%\"\n"), None);
    assert!(canary(defaults, "volumes = [\"data:/d:ro\"]\n").is_some());
    for (web, why) in [
        ("volumes = [\"data:/d\"]\n", "as it writes to a volume"),
        ("network_mode = \"host\"\n", "its network is not its own"),
        ("[deploy]\nstrategy = \"recreate\"\n", "its `strategy` is \"recreate\""),
    ] {
        let message = found(defaults, web).unwrap_err().message;
        assert!(message.contains(why), "{web}: {message}");
    }
    // What is not said is not written: the services of a version before this one are as they were.
    let spec = found("", "").unwrap();
    assert!(!serde_json::to_string(&spec).unwrap().contains("canary"));
}

/// Several containers: from its layers, and refused where there can be one only.
#[test]
fn replicas() {
    let found = |top: &str, web: &str, more: &[(&str, &str)]| {
        let own = [
            ("gitopsd.toml", format!("format = 1\n{top}")),
            ("services/web.toml", format!("image = \"r.io/web:1\"\n{web}")),
        ];
        let more = more.iter().map(|(name, text)| (*name, (*text).to_owned()));
        let files: RepoFiles =
            own.into_iter().chain(more).map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
        let policy = Policy { host_network: true, ..Policy::default() };
        read(&files, &host("web-1", &[]), &policy).services
    };
    let count = |top: &str, web: &str| found(top, web, &[])[&name("web")].clone().unwrap().deploy.replicas;
    let defaults = "[defaults.deploy]\nreplicas = 3\n";
    assert_eq!((count("", ""), count(defaults, ""), count(defaults, "[deploy]\nreplicas = 2\n")), (1, 3, 2));
    for (web, why) in [
        ("volumes = [\"data:/d\"]\n", "it writes to /d"),
        ("network_mode = \"host\"\n", "its network is not its own"),
        ("restart = \"on-failure\"\n", "`restart = \"on-failure\"` lets it end"),
        ("schedule = \"minutely\"\n", "it runs at times"),
        ("[deploy]\nstrategy = \"recreate\"\n", "its `strategy` is \"recreate\""),
        ("[deploy]\nreversible = false\n", "`reversible = false` keeps a version"),
    ] {
        let message = found(defaults, web, &[])[&name("web")].clone().unwrap_err().message;
        assert!(
            message.contains("`replicas` is more than this service can have") && message.contains(why),
            "{message}"
        );
    }
    assert_eq!(count(defaults, "volumes = [\"data:/d:ro\"]\n"), 3);
    for wrong in ["0", "65", "-1", "\"2\""] {
        let web = format!("[deploy]\nreplicas = {wrong}\n");
        assert!(found("", &web, &[])[&name("web")].is_err(), "{wrong}");
    }
    let guest = [(
        "services/side.toml",
        "image = \"r.io/s:1\"\nnetwork_mode = \"service:web\"\n[deploy]\nreplicas = 1\n",
    )];
    let message = found(defaults, "", &guest)[&name("side")].clone().unwrap_err().message;
    assert!(message.contains("web has several containers (`deploy.replicas`)"), "{message}");
    // A part first, of one of them.
    let spec = found(defaults, "[deploy]\ncanary = \"10%\"\n", &[])[&name("web")].clone().unwrap();
    assert!(spec.deploy.replicas == 3 && spec.deploy.canary.is_some());
    // What is not said is not written: the services of a version before this one are as they were.
    let spec = found("", "", &[])[&name("web")].clone().unwrap();
    assert!(!serde_json::to_string(&spec).unwrap().contains("replicas"));
}

/// So many at a time: from its layers, and nothing where that is all of them.
#[test]
fn parallelism() {
    let files = |top: &str, web: &str, own: &str| {
        let top = format!("format = 1\n{top}");
        let web = format!("image = \"r.io/web:1\"\n{web}");
        let mut files = repo(&[("services/web.toml", &web), ("hosts/web-1.toml", own)]);
        files.insert("gitopsd.toml".to_owned(), top.into_bytes());
        files
    };
    let of = |top: &str, web: &str, own: &str| {
        let view = read(&files(top, web, own), &host("web-1", &[]), &Policy::default());
        let spec = view.services[&name("web")].clone().unwrap();
        let written = serde_json::to_string(&spec).unwrap().contains("parallelism");
        assert_eq!(written, spec.deploy.parallelism.is_some());
        spec.deploy.parallelism
    };
    let defaults = "[defaults.deploy]\nreplicas = 4\nparallelism = 1\n";
    assert_eq!(of("", "[deploy]\nreplicas = 4\n", ""), None);
    assert_eq!((of(defaults, "", ""), of(defaults, "[deploy]\nparallelism = 3\n", "")), (Some(1), Some(3)));
    // As many as there are, or more: all at once. So a default of the repo changes nothing of what has one container.
    assert_eq!(of(defaults, "[deploy]\nparallelism = 4\n", ""), None);
    assert_eq!(of(defaults, "[deploy]\nparallelism = 64\n", ""), None);
    assert_eq!(of(defaults, "[deploy]\nreplicas = 1\n", ""), None);
    let over = "[services.web.deploy]\nparallelism = 2\nreplicas = 3\n";
    assert_eq!(of(defaults, "", over), Some(2));

    let warned = |top: &str, web: &str, own: &str| check(&files(top, web, own), None).diagnostics;
    let own = "\n[deploy]\nparallelism = 1\n";
    let [found] = &warned("", own, "")[..] else { panic!("{:?}", warned("", own, "")) };
    assert!(!found.is_error() && found.message.contains("no effect"), "{found}");
    assert_eq!((found.file.as_str(), found.line), ("services/web.toml", 4));
    // Neither a default for all, nor where one host has several.
    assert_eq!(warned("[defaults.deploy]\nparallelism = 1\n", "", ""), []);
    assert_eq!(warned("", own, over), []);
    assert_eq!(warned("[defaults.deploy]\nreplicas = 2\n", own, ""), []);
}
