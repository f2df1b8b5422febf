//! `secrets` of services, and `[secrets]` of the host's own configuration.

use gitopsd::types::{Declared, SecretFile};

use super::*;

const IMAGE: &str = "image = \"r.io/a:1\"\n";

fn with(lines: &str) -> RepoView {
    view(&[("services/a.toml", &format!("{IMAGE}{lines}\n"))], &Policy::default())
}

fn spec(lines: &str) -> Declared {
    let mut view = with(lines);
    assert!(view.diagnostics.is_empty(), "{lines}: {:?}", view.diagnostics);
    view.services.remove(&name("a")).unwrap().unwrap()
}

fn secret(source: &str, target: &str) -> SecretFile {
    let (source, target) = (source.to_owned(), target.into());
    SecretFile { source, target, content: None, uid: None, gid: None, mode: 0o444 }
}

#[test]
fn secrets_are_written_as_in_compose() {
    let found = |lines: &str| spec(&format!("secrets = {lines}")).secrets;
    assert_eq!(found("[]"), []);
    let two = [secret("db-password", "/run/secrets/db-password"), secret("b.c_d", "/run/secrets/b.c_d")];
    assert_eq!(found("[\"db-password\", \"b.c_d\"]"), two);
    assert_eq!(found("[{ source = \"a\" }]"), [secret("a", "/run/secrets/a")]);
    assert_eq!(
        found("[{ source = \"a\", target = \"server.cert\" }]"),
        [secret("a", "/run/secrets/server.cert")]
    );
    assert_eq!(found("[{ source = \"a\", target = \"tls/cert\" }]"), [secret("a", "/run/secrets/tls/cert")]);
    assert_eq!(found("[{ source = \"a\", target = \"/etc/cert\" }]"), [secret("a", "/etc/cert")]);
    let whose = SecretFile { uid: Some(103), gid: Some(104), mode: 0o440, ..secret("a", "/run/secrets/a") };
    let long =
        |mode: &str| found(&format!("[{{ source = \"a\", uid = \"103\", gid = 104, mode = {mode} }}]"));
    // Nobody writes to it, as Compose has it; a program it may be.
    for mode in ["0o440", "\"0440\"", "0o660"] {
        assert_eq!(long(mode)[0], whose, "{mode}");
    }
    assert_eq!(long("0o755"), [SecretFile { mode: 0o555, ..whose }]);
    // One may be at two places.
    assert_eq!(found("[\"a\", { source = \"a\", target = \"b\" }]").len(), 2);
    // A layer takes the place of the one below it.
    let files = [
        ("gitopsd.toml", "format = 1\n[defaults]\nsecrets = [\"all\"]\n"),
        ("services/a.toml", IMAGE),
        ("services/b.toml", "image = \"r.io/b:1\"\nsecrets = [\"own\"]\n"),
        ("hosts/web-1.toml", "[services.b]\nsecrets = []\n"),
    ];
    let files: RepoFiles = files.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
    let of = |host_name: &str, service: &str| {
        let view = read(&files, &host(host_name, &[]), &Policy::default());
        let spec = view.services[&name(service)].clone().unwrap();
        spec.secrets.into_iter().map(|secret| secret.source).collect::<Vec<_>>()
    };
    assert_eq!((of("db-1", "a"), of("db-1", "b")), (vec!["all".to_owned()], vec!["own".to_owned()]));
    assert!(of("web-1", "b").is_empty());
}

#[test]
fn what_is_wrong_with_secrets_is_told_by_its_place_and_not_by_what_it_may_hold() {
    for (lines, said) in [
        ("secrets = \"a\"", "takes an array of names and tables"),
        ("secrets = [1]", "takes names and tables"),
        ("secrets = [\"correct horse battery\"]", "not the name of a secret"),
        ("secrets = [\"../battery\"]", "not the name of a secret"),
        ("secrets = [{ target = \"/x\" }]", "`source` is missing"),
        ("secrets = [{ source = \"a\", target = \"../b\" }]", "`target` takes a name"),
        ("secrets = [{ source = \"a\", target = \"\" }]", "`target` takes a name"),
        ("secrets = [{ source = \"a\", target = \"/etc/../b\" }]", "`target` takes a name"),
        ("secrets = [{ source = \"a\", target = \"/proc/b\" }]", "belongs to the kernel"),
        ("secrets = [{ source = \"a\", content = \"battery\" }]", "`content`: what a secret holds"),
        ("secrets = [{ source = \"a\", file = \"battery\" }]", "`file`: what a secret holds"),
        ("secrets = [{ source = \"a\", environment = \"B\" }]", "`environment`: what a secret holds"),
        ("secrets = [{ source = \"a\", external = true }]", "`external`: what a secret holds"),
        ("secrets = [{ source = \"a\", uid = \"root\" }]", "number of a user or group"),
        ("secrets = [{ source = \"a\", mode = 440 }]", "permissions in octal"),
        ("secrets = [{ source = \"a\", sourc = \"b\" }]", "unknown key `sourc`"),
        ("secrets = [\"a\", \"a\"]", "/run/secrets/a is there twice"),
        (
            "secrets = [\"a\"]\nconfigs = [{ content = \"\", target = \"/run/secrets/a\" }]",
            "two of `volumes`, `configs`, `secrets` and `tmpfs` go to /run/secrets/a",
        ),
    ] {
        let view = with(lines);
        assert!(view.services[&name("a")].is_err(), "{lines}: it is taken");
        let all: Vec<String> = view.diagnostics.iter().map(ToString::to_string).collect();
        assert!(all.iter().any(|found| found.contains(said)), "{lines}: {all:?}");
        assert!(!all.concat().contains("battery"), "{all:?}");
        // What only both keys together do wrong has no place of its own.
        let line = if said.starts_with("two of") { 1 } else { 2 };
        assert!(all[0].starts_with(&format!("services/a.toml:{line}:")), "{all:?}");
    }
    let many: Vec<String> = (0..101).map(|number| format!("\"s{number}\"")).collect();
    assert!(with(&format!("secrets = [{}]", many.join(","))).services[&name("a")].is_err());
    let top = [("gitopsd.toml", "format = 1\n[secrets.a]\nfile = \"a\"\n"), ("services/a.toml", IMAGE)];
    let files: RepoFiles = top.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
    let fatal = read(&files, &host("web-1", &[]), &Policy::default()).fatal.unwrap().message;
    assert!(fatal.contains("[secrets] of the host's own configuration"), "{fatal}");
}

/// What a host grants is for the host to say.
#[test]
fn a_repo_is_checked_without_a_word_of_what_hosts_grant() {
    let files = repo(&[("services/a.toml", &format!("{IMAGE}secrets = [\"db-password\"]\n"))]);
    assert_eq!(check(&files, None).diagnostics, []);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("services")).unwrap();
    for (name, bytes) in files.iter() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let run = |verb: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        let output = command.args(["--config", "/none", verb]).arg(dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run("check").0, Some(0));
    let (code, said) = run("plan");
    assert!(code == Some(2) && said.contains("create   "), "{said}");
}

#[test]
fn the_host_says_which_file_a_secret_is_and_its_drop_ins_add_to_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitopsd.toml");
    let load = |lines: &str| {
        std::fs::write(&path, format!("[repo]\nurl = \"/x\"\n[secrets]\n{lines}\n")).unwrap();
        gitopsd::config::load(&path)
    };
    let found =
        load("db-password = \"/etc/gitopsd/secrets/db-password\"\ntoken = \"credential:token\"").unwrap();
    assert_eq!(found.secrets["db-password"], Path::new("/etc/gitopsd/secrets/db-password"));
    // Where systemd puts it for the service, where this is run by hand.
    assert!(found.secrets["token"].ends_with("token") && found.secrets["token"].is_absolute());
    for lines in [
        "password = \"battery\"",
        "password = \"../battery\"",
        "password = \"credential:../battery\"",
        "password = \"credential:\"",
        "password = [\"battery\"]",
        "password = { file = \"/battery\" }",
        "\"a battery\" = \"/x\"",
        "\"../battery\" = \"/x\"",
    ] {
        let said = load(lines).unwrap_err().to_string();
        assert!(said.contains("[secrets]") && said.contains("gitopsd.toml:4:"), "{lines}: {said}");
        assert!(!said.contains("battery"), "{said}");
    }
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(dir.path().join("conf.d/more.toml"), "[secrets]\nb = \"/other\"\nc = \"/c\"\n").unwrap();
    let found = load("a = \"/a\"\nb = \"/b\"").unwrap().secrets;
    let found: Vec<(&str, &str)> =
        found.iter().map(|(name, path)| (name.as_str(), path.to_str().unwrap())).collect();
    assert_eq!(found, [("a", "/a"), ("b", "/other"), ("c", "/c")]);
}
