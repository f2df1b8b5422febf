//! Trees and configuration made to do harm.

use std::fs;
use std::process::Command;

use gitopsd::git::Repository;
use gitopsd::types::Reason;

use crate::git_server::Lab;
use crate::{config, follow};

/// Commits a tree of the given entries (mode, name, object) as `main`.
pub fn commit_tree(lab: &Lab, entries: &[(&str, &[u8], &str)]) {
    let id = raw_tree(lab, entries);
    let head = lab.git("config.git", &["commit-tree", "-m", "hostile", &id]);
    lab.git("config.git", &["update-ref", "refs/heads/main", &head]);
}

/// Writes a tree as it is given, in its order, checked by nobody.
pub fn raw_tree(lab: &Lab, entries: &[(&str, &[u8], &str)]) -> String {
    let mut tree = Vec::new();
    for (mode, name, id) in entries {
        tree.extend_from_slice(mode.as_bytes());
        tree.push(b' ');
        tree.extend_from_slice(name);
        tree.push(0);
        tree.extend((0..20).map(|n| u8::from_str_radix(&id[2 * n..2 * n + 2], 16).unwrap()));
    }
    lab.git_stdin("config.git", &["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &tree)
}

pub fn blob(lab: &Lab, data: &[u8]) -> String {
    lab.git_stdin("config.git", &["hash-object", "-w", "--stdin"], data)
}

#[test]
fn links_and_odd_names_are_refused_by_path() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let file = blob(&lab, b"image = 'x'\n");
    let link = blob(&lab, b"/etc/shadow");
    let commit = lab.git("config.git", &["rev-parse", "main"]);
    let services =
        |entries: &[(&str, &[u8], &str)]| vec![("40000", b"services".to_vec(), raw_tree(&lab, entries))];
    let top = |mode: &'static str, name: &[u8], id: &str| vec![(mode, name.to_vec(), id.to_owned())];
    let cases = [
        ("services\" is a symbolic link", top("120000", b"services", &link)),
        ("services\" is a submodule", top("160000", b"services", &commit)),
        ("hosts\" is not a directory", top("100644", b"hosts", &file)),
        ("gitopsd.toml\" is a symbolic link", top("120000", b"gitopsd.toml", &link)),
        ("..\" is not a file name", services(&[("100644", b"..", &file)])),
        (".GIT\" is not a file name", services(&[("40000", b".GIT", &raw_tree(&lab, &[]))])),
        ("a/b.toml\" is not a file name", services(&[("100644", b"a/b.toml", &file)])),
        ("\\u{1b}[31m.toml\" is not a file name", services(&[("100644", b"\x1b[31m.toml", &file)])),
        (".toml\" is not a file name", services(&[("100644", b"\xff.toml", &file)])),
        ("x.toml\" is there twice", services(&[("100644", b"x.toml", &file), ("120000", b"x.toml", &link)])),
    ];
    for (expected, entries) in cases {
        let entries: Vec<(&str, &[u8], &str)> =
            entries.iter().map(|(m, n, i)| (*m, n.as_slice(), i.as_str())).collect();
        commit_tree(&lab, &entries);
        let head = follow(&repository, None).unwrap();
        let error = repository.files(&head).unwrap_err();
        assert_eq!(error.reason, Reason::ConfigInvalid, "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    // One that is no file costs its own service, and hides no other.
    for (why, mode, id) in [
        ("symbolic link", "120000", &link),
        ("submodule", "160000", &commit),
        ("not a plain file", "40000", &raw_tree(&lab, &[])),
    ] {
        let both = raw_tree(&lab, &[("100644", b"w.toml", &file), (mode, b"x.toml", id)]);
        commit_tree(&lab, &[("40000", b"services", &both)]);
        let files = repository.files(&follow(&repository, None).unwrap()).unwrap();
        let refusal = files.refusal("services/x.toml").unwrap_or_default();
        assert!(refusal.contains(why), "{why}: {refusal}");
        assert!(files.keys().eq(["services/w.toml"]), "{files:?}");
    }
    // What is not read may be anything.
    let fine = raw_tree(
        &lab,
        &[("120000", b"LINK", &link), ("100644", b"README", &file), ("100755", b"x.toml", &file)],
    );
    commit_tree(
        &lab,
        &[("120000", b"current", &link), ("160000", b"lib", &commit), ("40000", b"services", &fine)],
    );
    let head = follow(&repository, None).unwrap();
    let names: Vec<String> = repository.files(&head).unwrap().into_keys().collect();
    assert_eq!(names, ["services/x.toml"]);
}

#[test]
fn sizes_are_limited() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let big = blob(&lab, &vec![b'#'; (1 << 20) + 1]);
    let services = raw_tree(&lab, &[("100644", b"x.toml", &big)]);
    commit_tree(&lab, &[("40000", b"services", &services)]);
    let files = repository.files(&follow(&repository, None).unwrap()).unwrap();
    assert_eq!(files.refusal("services/x.toml"), Some("is larger than 1 MiB"));

    let file = blob(&lab, b"");
    let names: Vec<Vec<u8>> = (0..10_001).map(|n| format!("{n:05}.toml").into_bytes()).collect();
    let entries: Vec<(&str, &[u8], &str)> =
        names.iter().map(|n| ("100644", n.as_slice(), file.as_str())).collect();
    let services = raw_tree(&lab, &entries);
    commit_tree(&lab, &[("40000", b"services", &services)]);
    let error = repository.files(&follow(&repository, None).unwrap()).unwrap_err();
    assert!(error.to_string().contains("10000"), "{error}");
}

#[test]
fn text_of_commits_is_tamed() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    let tree = lab.git("config.git", &["rev-parse", "main^{tree}"]);
    let raw = format!(
        "tree {tree}\nauthor A\x1b[31m <a@b> 99999999999999999 +0000\ncommitter A <a@b> 99999999999999999 +0000\n\n\
         \x1b]0;owned\x07{}\nbody",
        "x".repeat(500)
    );
    let id = lab.git_stdin(
        "config.git",
        &["hash-object", "-t", "commit", "-w", "--literally", "--stdin"],
        raw.as_bytes(),
    );
    lab.git("config.git", &["update-ref", "refs/heads/main", &id]);
    let info = repository.info(&follow(&repository, None).unwrap()).unwrap();
    assert!(!info.subject.chars().chain(info.author.chars()).any(char::is_control), "{info:?}");
    assert_eq!(info.subject.chars().count(), 200);
}

#[test]
fn the_remotes_own_configuration_and_other_refs_do_not_matter() {
    let lab = Lab::new().with_repo();
    let marker = lab.path("ran");
    let hook = lab.path("config.git/hooks/post-update");
    fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
    Command::new("chmod").arg("755").arg(&hook).status().unwrap();
    let url = lab.url();
    let config_file = lab.path("config.git/config");
    let mut text = fs::read_to_string(&config_file).unwrap();
    text.push_str(&format!(
        "[url \"/nowhere/\"]\n\tinsteadOf = {}\n[core]\n\tfsmonitor = touch {}\n\tsshCommand = false\n[include]\n\tpath = /nowhere\n",
        lab.path("").display(),
        marker.display()
    ));
    fs::write(&config_file, text).unwrap();
    fs::write(lab.path("config.git/refs/heads/broken"), "garbage\n").unwrap();
    fs::create_dir_all(lab.path("config.git/refs/tags")).unwrap();
    fs::write(lab.path("config.git/refs/tags/gone"), format!("{}\n", "1".repeat(40))).unwrap();
    let repository = Repository::open(&config(&url), &lab.cache()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let receipt = crate::notes::receipt(commit.id(), "1");
    repository.publish(None, &"web-1".parse().unwrap(), &[receipt]).unwrap();
    assert!(!marker.exists());
}

/// What `nothing_of_the_environment_matters` runs in a process of its own.
#[test]
#[ignore = "run by nothing_of_the_environment_matters"]
fn child_follows() {
    let url = std::env::var("TEST_URL").unwrap();
    let cache = std::env::var_os("TEST_CACHE").unwrap();
    // As under a unit with UMask=0077: the modes in the remote are the remote's business.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let repository = Repository::open(&config(&url), cache.as_ref()).unwrap();
    let commit = follow(&repository, None).unwrap();
    let receipt = crate::notes::receipt(commit.id(), "1");
    repository.publish(None, &"web-1".parse().unwrap(), &[receipt]).unwrap();
    println!("followed {}", commit.id());
}

#[test]
fn nothing_of_the_environment_matters() {
    let lab = Lab::new().with_repo();
    let server = crate::git_server::HttpServer::start(&lab.path(""), None);
    lab.git("config.git", &["config", "http.receivepack", "true"]);
    let nowhere = format!(
        "[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = {}\n[url \"/nowhere/\"]\n\tinsteadOf = /\n[http]\n\tproxy = http://127.0.0.1:1\n[core\n",
        server.url("")
    );
    let hostile = lab.path("hostile");
    fs::create_dir_all(hostile.join("git")).unwrap();
    fs::write(hostile.join(".gitconfig"), &nowhere).unwrap();
    fs::write(hostile.join("git/config"), &nowhere).unwrap();
    for (n, url) in [lab.url(), server.url("config.git")].into_iter().enumerate() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "hostile::child_follows", "--nocapture"])
            .env("TEST_URL", url)
            .env("TEST_CACHE", lab.path(&format!("cache{n}")))
            .env("HOME", &hostile)
            .env("XDG_CONFIG_HOME", &hostile)
            .env("GIT_CONFIG_GLOBAL", hostile.join(".gitconfig"))
            .env("GIT_CONFIG_SYSTEM", hostile.join(".gitconfig"))
            .env("GIT_DIR", "/nowhere")
            .env("GIT_OBJECT_DIRECTORY", "/nowhere")
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", "/nowhere")
            .env("GIT_NAMESPACE", "other")
            .env("GIT_AUTHOR_NAME", "Mallory")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("followed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    use std::os::unix::fs::PermissionsExt;
    let mut next = vec![lab.path("config.git")];
    while let Some(path) = next.pop() {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o044, 0o044, "{} can be read by all: {mode:o}", path.display());
        if path.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
}

#[test]
fn all_files_together_are_limited_too() {
    let lab = Lab::new().with_repo();
    let repository = lab.open();
    // One blob in the pack, and 65 MiB of files: what is unpacked counts.
    let file = blob(&lab, &vec![b'#'; 1 << 20]);
    let names: Vec<Vec<u8>> = (0..65).map(|n| format!("{n:05}.toml").into_bytes()).collect();
    let entries: Vec<(&str, &[u8], &str)> =
        names.iter().map(|n| ("100644", n.as_slice(), file.as_str())).collect();
    let services = raw_tree(&lab, &entries);
    commit_tree(&lab, &[("40000", b"services", &services)]);
    let error = repository.files(&follow(&repository, None).unwrap()).unwrap_err();
    assert!(error.to_string().contains("64 MiB"), "{error}");
}
