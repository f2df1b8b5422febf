//! What the agent shows to servers: git's own credential helpers over TLS; ssh keys of each kind, with certificates, and
//! by way of an ssh agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gitopsd::config::agent::RepoConfig;
use gitopsd::git::{GitError, Repository};
use gitopsd::types::Reason;

use crate::git_server::{HttpServer, Lab, SshServer, tls};
use crate::{config, follow};

fn fetch(settings: &RepoConfig, cache: &Path) -> Result<(), GitError> {
    follow(&Repository::open(settings, cache)?, None).map(drop)
}

#[test]
fn credential_helpers_of_git() {
    let lab = Lab::new().with_repo();
    let (certificate, authority) = tls(&lab.path(""));
    let server = HttpServer::start(&lab.path(""), Some(certificate));
    server.behaviour.lock().unwrap().credentials = Some("deploy:hunter2".to_owned());
    let mut settings = config(&server.url("config.git"));
    settings.ca_file = Some(authority);
    let program = Path::new("/usr/lib/git-core/git-credential-store");
    let store = lab.path("credentials").display().to_string();
    settings.credential_helper = vec![program.display().to_string(), "--file".to_owned(), store.clone()];
    let place = server.url("").trim_start_matches("https://").trim_end_matches('/').to_owned();
    fs::write(&store, format!("https://deploy:hunter2@{place}\nhttps://other:no@git.example.org\n")).unwrap();
    fetch(&settings, &lab.cache()).unwrap();

    let fails = |settings: &RepoConfig, part: &str| {
        let error = fetch(settings, &lab.path("cache2")).unwrap_err();
        assert_eq!(error.reason, Reason::Auth, "{error}");
        assert!(error.to_string().contains(part) && !error.to_string().contains("hunter"), "{error}");
    };
    // Refused, and still there afterwards: nothing is ever erased.
    fs::write(&store, format!("https://deploy:hunter1@{place}\n")).unwrap();
    fails(&settings, "refused the git credentials");
    assert!(fs::read_to_string(&store).unwrap().contains("hunter1"));
    fs::write(&store, "").unwrap();
    fails(&settings, "knows of none");
    let script = |text: &str| {
        let path = lab.path("helper");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        vec![path.display().to_string()]
    };
    settings.credential_helper = script("exit 3");
    fails(&settings, "exit status: 3");
    settings.credential_helper = vec!["/none/at-all".to_owned()];
    fails(&settings, "/none/at-all");
    // What it is asked, and that the name it gives is the one that is shown.
    settings.credential_helper =
        script(&format!("cat >{}\necho username=deploy; echo password=hunter2", lab.path("asked").display()));
    fetch(&settings, &lab.path("cache3")).unwrap();
    let asked = fs::read_to_string(lab.path("asked")).unwrap();
    assert_eq!(asked, format!("protocol=https\nhost={place}\n\n"));
    // One that hangs is ended, with what it has started.
    settings.credential_helper = script(&format!("sleep 600 & echo $! >{}; wait", lab.path("pid").display()));
    let since = Instant::now();
    fails(&settings, "no answer within");
    assert!(since.elapsed() < Duration::from_secs(25));
    let pid = fs::read_to_string(lab.path("pid")).unwrap();
    // Killed, it takes a moment to be gone.
    let gone = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    while !gone() {
        assert!(since.elapsed() < Duration::from_secs(30), "{pid} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn keygen(args: &[&str], dir: &Path) {
    let output = Command::new("ssh-keygen").arg("-q").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A server, and settings without a key.
fn ssh(lab: &Lab) -> (SshServer, RepoConfig) {
    let server = SshServer::start(&lab.path("sshd"));
    let mut settings =
        config(&format!("ssh://root@127.0.0.1:{}{}", server.port, lab.path("config.git").display()));
    let known = format!("[127.0.0.1]:{} {}\n", server.port, server.host_key("host_ed25519"));
    fs::write(lab.path("known_hosts"), known).unwrap();
    settings.known_hosts = Some(lab.path("known_hosts"));
    (server, settings)
}

const KINDS: [(&str, &[&str]); 5] = [
    ("ed25519", &[]),
    ("ecdsa-256", &["-b", "256"]),
    ("ecdsa-384", &["-b", "384"]),
    ("ecdsa-521", &["-b", "521"]),
    ("rsa", &["-b", "3072"]),
];

#[test]
fn keys_of_each_kind_with_and_without_certificates() {
    let lab = Lab::new().with_repo();
    let (server, mut settings) = ssh(&lab);
    let sshd = lab.path("sshd");
    let mut authorized = fs::read_to_string(sshd.join("authorized_keys")).unwrap();
    for (name, more) in KINDS {
        let kind = name.split('-').next().unwrap();
        keygen(&[&["-N", "", "-t", kind, "-f", name], more].concat(), &sshd);
        settings.ssh_key = Some(sshd.join(name));
        let error = fetch(&settings, &lab.cache()).unwrap_err();
        assert_eq!(error.reason, Reason::Auth, "{name}: {error}");

        // By its certificate alone: the key itself is not known there.
        let public = format!("{name}.pub");
        keygen(&["-s", "user_ca", "-I", "web-1", "-n", "root", "-V", "-1h:+1h", &public], &sshd);
        fetch(&settings, &lab.path(&format!("cache-cert-{name}")))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.log()));
        assert!(server.log().contains("CERT"), "{}", server.log());
        // One that has run out.
        keygen(&["-s", "user_ca", "-I", "web-1", "-n", "root", "-V", "-2h:-1h", &public], &sshd);
        let error = fetch(&settings, &lab.cache()).unwrap_err();
        assert!(error.reason == Reason::Auth && error.to_string().contains("certificate"), "{error}");
        fs::remove_file(sshd.join(format!("{name}-cert.pub"))).unwrap();

        // By itself.
        authorized.push_str(&fs::read_to_string(sshd.join(&public)).unwrap());
        fs::write(sshd.join("authorized_keys"), &authorized).unwrap();
        fetch(&settings, &lab.path(&format!("cache-{name}")))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.log()));
    }
}

/// `@cert-authority` lines: a host is known by its certificate, and by nothing less.
#[test]
fn hosts_with_certificates() {
    let lab = Lab::new().with_repo();
    let (mut server, mut settings) = ssh(&lab);
    settings.ssh_key = Some(server.client_key.clone());
    let sshd = lab.path("sshd");
    let place = format!("[127.0.0.1]:{}", server.port);
    let authority = server.host_key("host_ca");
    let known = |text: &str| fs::write(lab.path("known_hosts"), text).unwrap();
    let fails = |server: &SshServer, settings: &RepoConfig, part: &str| {
        let error = fetch(settings, &lab.path("cache-no")).unwrap_err();
        assert!(error.reason == Reason::HostKey, "{part}: {error}\n{}", server.log());
        assert!(error.to_string().contains(part), "{part}: {error}");
    };
    // Without a certificate an authority says nothing of a host.
    known(&format!("@cert-authority {place} {authority}\n"));
    fails(&server, &settings, "without a certificate");

    let sign = |arguments: &[&str], name: &str| {
        let public = format!("{name}.pub");
        keygen(&[arguments, &[public.as_str()]].concat(), &sshd);
        format!("HostCertificate {}\n", sshd.join(format!("{name}-cert.pub")).display())
    };
    let good = ["-s", "host_ca", "-h", "-I", "git", "-n", "127.0.0.1,localhost", "-V", "-1h:+1h"];
    for (n, name) in ["host_ed25519", "host_ecdsa", "host_rsa"].into_iter().enumerate() {
        let line = sign(&good, name);
        server = server.restarted_with(&line);
        known(&format!("@cert-authority [127.*]:{},other.lan {authority}\n", server.port));
        fetch(&settings, &lab.path(&format!("cache-{n}")))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.log()));
        // By its name too, in letters of either case.
        known(&format!("@cert-authority [localhost]:{} {authority}\n", server.port));
        let mut by_name = settings.clone();
        let url = by_name.url.as_str().replace("127.0.0.1", "LocalHost");
        assert!(url.contains("LocalHost"), "{url}");
        by_name.url = url.parse().unwrap();
        fetch(&by_name, &lab.path(&format!("cache-name-{n}"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        // The host's own line counts before.
        let own = server.host_key(name);
        known(&format!("@cert-authority * {authority}\n{place} {own}\n"));
        fetch(&settings, &lab.path(&format!("cache-own-{n}"))).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Revoked: the key, or who vouches for it.
        for revoked in [&own, &authority] {
            known(&format!("@cert-authority * {authority}\n@revoked * {revoked}\n"));
            fails(&server, &settings, "revoked");
        }
        // An authority of other hosts, and another authority of this one.
        known(&format!("@cert-authority *.lan {authority}\n"));
        fails(&server, &settings, "no host key of");
        known(&format!("@cert-authority * {}\n", server.host_key("user_ca")));
        fails(&server, &settings, "another authority");
        // The key of the authority is no key of a host.
        known(&format!("{place} {authority}\n"));
        fails(&server, &settings, "is not the one in");
        known(&format!("@cert-authority * {authority}\n"));
        for (arguments, part) in [
            (["-s", "host_ca", "-h", "-I", "x", "-n", "git.example.org", "-V", "-1h:+1h"], "for other hosts"),
            (["-s", "host_ca", "-h", "-I", "x", "-n", "127.0.0.1", "-V", "-2h:-1h"], "not valid"),
            (["-s", "host_ca", "-h", "-I", "x", "-n", "127.0.0.1", "-V", "+1h:+2h"], "not valid"),
        ] {
            server = server.restarted_with(&sign(&arguments, name));
            fails(&server, &settings, part);
        }
        fs::remove_file(sshd.join(format!("{name}-cert.pub"))).unwrap();
        server = server.restarted_with("");
    }
}

/// An ssh agent that ends with its value.
struct Keyring(Child);

impl Drop for Keyring {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The place of the agent is a variable of the process: the fetch is made by [`in_a_process_of_its_own`].
#[test]
fn keys_of_an_ssh_agent() {
    let lab = Lab::new().with_repo();
    let (server, settings) = ssh(&lab);
    let socket = lab.path("agent.sock");
    let agent =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let _agent = Keyring(agent);
    let until = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        assert!(Instant::now() < until, "no ssh agent");
        std::thread::sleep(Duration::from_millis(10));
    }
    let add = |key: &Path| {
        let output =
            Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let fetch = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "access::in_a_process_of_its_own", "--ignored", "--nocapture"])
            .env("SSH_AUTH_SOCK", &socket)
            .env("GITOPSD_TEST_URL", settings.url.as_str())
            .env("GITOPSD_TEST_KNOWN_HOSTS", settings.known_hosts.as_ref().unwrap())
            .env("GITOPSD_TEST_CACHE", lab.cache())
            .output()
            .unwrap()
    };
    keygen(&["-N", "", "-t", "ecdsa", "-f", "stranger"], &lab.path("sshd"));
    add(&lab.path("sshd/stranger"));
    let refused = fetch();
    let said =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("ssh agent"), "{said}");
    add(&server.client_key);
    let output = fetch();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), server.log());
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it has been run");
}

#[test]
#[ignore = "the other half of keys_of_an_ssh_agent, which starts it"]
fn in_a_process_of_its_own() {
    let Some(url) = std::env::var_os("GITOPSD_TEST_URL") else { return };
    let mut settings = config(url.to_str().unwrap());
    settings.known_hosts = std::env::var_os("GITOPSD_TEST_KNOWN_HOSTS").map(Into::into);
    fetch(&settings, Path::new(&std::env::var_os("GITOPSD_TEST_CACHE").unwrap())).unwrap();
}
