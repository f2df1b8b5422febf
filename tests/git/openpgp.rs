//! Commits signed with OpenPGP by the real gpg, judged beside the real `git verify-commit`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use gitopsd::config::agent::{SignatureConfig, TrustConfig};
use gitopsd::git::Repository;
use gitopsd::types::CommitId;

use super::signatures::{key, public, refused, trusting};
use crate::git_server::{Lab, scrub};
use crate::{follow, id};

/// Before every commit of these tests.
const MADE: &str = "20250101T000000";
const JUNE: &str = "2025-06-01T12:00:00Z";

/// A gpg with a home of its own in a lab. Its agent goes with it.
struct Gpg<'a> {
    lab: &'a Lab,
    home: PathBuf,
}

impl<'a> Gpg<'a> {
    fn new(lab: &'a Lab) -> Self {
        let home = lab.path("gpg");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        // What git calls: the time is that of the variable.
        let script = format!(
            "#!/bin/sh\nexec gpg --homedir {} --batch --no-tty --faked-system-time \"$GPG_TIME\" $GPG_MORE \"$@\"\n",
            home.display()
        );
        fs::write(lab.path("gpg.sh"), script).unwrap();
        fs::set_permissions(lab.path("gpg.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { lab, home }
    }

    fn run(&self, time: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        // It stands still: a key that took a second to make would come from the future for the next call.
        let time = format!("{time}!");
        let mut child = Command::new("gpg")
            .args(["--homedir", self.home.to_str().unwrap(), "--batch", "--no-tty", "--yes"])
            .args(["--pinentry-mode", "loopback", "--passphrase", "", "--faked-system-time", &time])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// A new key; gives its fingerprint.
    fn key(&self, user: &str, kind: &str, usage: &str, expires: &str) -> String {
        self.run(MADE, &["--quick-gen-key", user, kind, usage, expires], b"");
        self.fingerprint(user)
    }

    fn fingerprint(&self, user: &str) -> String {
        let listed = self.run(MADE, &["--list-keys", "--with-colons", user], b"");
        let listed = String::from_utf8(listed).unwrap();
        let line = listed.lines().find_map(|line| line.strip_prefix("fpr:")).unwrap();
        line.trim_matches(':').to_owned()
    }

    /// Writes the file of trusted keys.
    fn trust(&self, armored: bool, users: &[&str]) {
        let mut args = if armored { vec!["--armor", "--export"] } else { vec!["--export"] };
        args.extend(users);
        fs::write(self.lab.path("trusted"), self.run(MADE, &args, b"")).unwrap();
    }

    /// A detached signature of a text.
    fn sign(&self, time: &str, users: &[&str], more: &[&str], text: &str) -> String {
        let mut args = vec!["-bao", "-"];
        args.extend(users.iter().flat_map(|user| ["-u", user]));
        args.extend(more);
        String::from_utf8(self.run(time, &args, text.as_bytes())).unwrap()
    }
}

impl Drop for Gpg<'_> {
    fn drop(&mut self) {
        let home = self.home.to_str().unwrap();
        let _ = Command::new("gpgconf").args(["--homedir", home, "--kill", "all"]).status();
    }
}

/// A commit as git makes it, signed by a user of that gpg at its own time; pushed.
fn commit(lab: &Lab, subject: &str, by: &str, date: &str) -> CommitId {
    commit_at(lab, subject, by, date, date)
}

/// The same with a clock of gpg that says something else.
fn commit_at(lab: &Lab, subject: &str, by: &str, date: &str, clock: &str) -> CommitId {
    fs::write(lab.path("work/services/shop.toml"), format!("# {subject}\nimage = \"r.io/shop:1\"\n"))
        .unwrap();
    lab.git("work", &["add", "-A"]);
    let mut command = Command::new("git");
    command.current_dir(lab.path("work"));
    scrub(&mut command, &lab.path(""));
    let clock: String = clock.chars().filter(|c| !"-:Z".contains(*c)).collect();
    command.env("GIT_COMMITTER_DATE", date).env("GIT_AUTHOR_DATE", date).env("GPG_TIME", clock);
    command.args(["-c", &format!("gpg.program={}", lab.path("gpg.sh").display())]);
    command.args(["commit", "-q", "--allow-empty", "-m", subject, &format!("-S{by}")]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.git("work", &["push", "-q", "--force", "origin", "HEAD:main"]);
    id(&lab.git("work", &["rev-parse", "HEAD"]))
}

/// Believes what is signed by the keys of the lab's file.
fn believing(lab: &Lab) -> Repository {
    fs::write(lab.path("revoked"), "").unwrap();
    let signatures = SignatureConfig {
        trusted_keys: Some(lab.path("trusted")),
        revoked_signers: Some(lab.path("revoked")),
        ..SignatureConfig::default()
    };
    trusting(lab, TrustConfig { signatures: Some(signatures), ..TrustConfig::default() })
}

/// What `git verify-commit` says where a gpg has the same keys and no others.
fn git_takes(lab: &Lab, commit: &str) -> bool {
    let home = lab.path("judge");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut gpg = Command::new("gpg");
    gpg.args(["--homedir", home.to_str().unwrap(), "--batch", "-q", "--no-autostart", "--import"]);
    let imported = gpg.arg(lab.path("trusted")).stderr(Stdio::null()).status().unwrap();
    assert!(imported.success());
    let mut command = Command::new("git");
    command.current_dir(lab.path("work"));
    scrub(&mut command, &lab.path(""));
    command.env("GNUPGHOME", &home).args(["verify-commit", commit]);
    command.output().unwrap().status.success()
}

#[test]
fn every_kind_of_key_that_people_have() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    let mut prints = Vec::new();
    for (user, kind) in [("ed", "ed25519"), ("p256", "nistp256"), ("p384", "nistp384"), ("rsa", "rsa2048")] {
        prints.push((user, gpg.key(user, kind, "sign", "0")));
    }
    // One that signs with a key below its own one, as most do.
    let below = gpg.key("below", "ed25519", "cert", "0");
    gpg.run(MADE, &["--quick-add-key", &below, "ed25519", "sign", "0"], b"");
    prints.push(("below", below));
    for armored in [true, false] {
        gpg.trust(armored, &[]);
        let repository = believing(&lab);
        for (user, print) in &prints {
            let made = commit(&lab, user, user, JUNE);
            let trusted = follow(&repository, None).unwrap();
            let signer = trusted.signer().unwrap();
            assert_eq!((trusted.id(), signer.principal.as_str()), (&made, *user));
            assert_eq!(&signer.fingerprint, print);
            assert!(git_takes(&lab, made.as_str()));
        }
    }
    // Several armored blocks beneath each other, with remarks, as people put files together.
    let block = |user: &str| String::from_utf8(gpg.run(MADE, &["--armor", "--export", user], b"")).unwrap();
    fs::write(lab.path("trusted"), format!("# who may sign\n{}\n{}", block("ed"), block("below"))).unwrap();
    follow(&believing(&lab), None).unwrap();
    // What nobody should sign with any more.
    for (user, kind) in [("short", "rsa1024"), ("dsa", "dsa2048")] {
        gpg.key(user, kind, "sign", "0");
        gpg.trust(false, &[user]);
        commit(&lab, user, user, JUNE);
        let error = refused(follow(&believing(&lab), None));
        assert!(error.contains("counts for nothing"), "{error}");
    }
}

#[test]
fn keys_that_do_not_count_are_refused_as_git_refuses_them() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    let ann = gpg.key("ann", "ed25519", "sign", "0");
    gpg.key("eve", "ed25519", "sign", "0");
    gpg.trust(true, &["ann"]);
    let repository = believing(&lab);
    let judged = |commit: &CommitId| {
        let answer = follow(&repository, None);
        assert_eq!(answer.is_ok(), git_takes(&lab, commit.as_str()), "{answer:?}");
        answer
    };
    let by_eve = commit(&lab, "eve's", "eve", JUNE);
    let error = refused(judged(&by_eve));
    assert!(error.contains(&format!("{}, which is no trusted key", gpg.fingerprint("eve"))), "{error}");
    let by_ann = commit(&lab, "ann's", "ann", JUNE);
    judged(&by_ann).unwrap();
    // Not trusted any more, by our own list.
    fs::write(lab.path("revoked"), format!("# left\n{} ann, 2025\n", ann.to_lowercase())).unwrap();
    assert!(refused(follow(&repository, None)).contains(&format!("{ann}, which is revoked")));
    fs::write(lab.path("revoked"), "").unwrap();
    // By the key's own word.
    let revocation = fs::read_to_string(gpg.home.join(format!("openpgp-revocs.d/{ann}.rev"))).unwrap();
    gpg.run(MADE, &["--import"], revocation.replace("\n:-----", "\n-----").as_bytes());
    gpg.trust(true, &["ann"]);
    assert!(refused(judged(&by_ann)).contains(&format!("{ann}, which is revoked")));
    // A subkey alone.
    let below = gpg.key("below", "ed25519", "cert", "0");
    gpg.run(MADE, &["--quick-add-key", &below, "ed25519", "sign", "0"], b"");
    let made = commit(&lab, "below's", "below", JUNE);
    gpg.trust(false, &["below"]);
    judged(&made).unwrap();
    let edit = b"key 1\nrevkey\ny\n0\n\ny\nsave\n";
    gpg.run(MADE, &["--command-fd", "0", "--edit-key", &below], edit);
    gpg.trust(false, &["below"]);
    assert!(refused(judged(&made)).contains("which is revoked"));
}

#[test]
fn a_key_counts_as_of_the_commits_time() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    gpg.key("new", "ed25519", "sign", "0");
    let old = gpg.key("old", "ed25519", "sign", "1y");
    let below = gpg.key("below", "ed25519", "cert", "1y");
    gpg.run(MADE, &["--quick-add-key", &below, "ed25519", "sign", "5y"], b"");
    gpg.trust(true, &[]);
    let repository = believing(&lab);
    for user in ["old", "below"] {
        let made = commit(&lab, user, user, JUNE);
        assert_eq!(follow(&repository, None).unwrap().id(), &made, "in its time");
        assert!(!git_takes(&lab, made.as_str()), "git looks at the clock alone");
    }
    let mark = commit(&lab, "after it", "new", "2026-02-01T00:00:00Z");
    follow(&repository, None).unwrap();
    // Dated back, the commit and the signature.
    commit(&lab, "yesterday's", "old", "2025-12-01T00:00:00Z");
    let error = refused(follow(&repository, Some(&mark)));
    assert!(error.contains(&format!("{old} may not sign any more at 2026-02-01T00:00:00Z")), "{error}");
    // Either one says that it is later than the key.
    lab.git("work", &["reset", "-q", "--hard", "HEAD~2"]);
    commit_at(&lab, "late", "old", "2026-03-01T00:00:00Z", "2025-12-01T00:00:00Z");
    assert!(refused(follow(&repository, None)).contains("may not sign any more at 2026-03-01"));
    lab.git("work", &["reset", "-q", "--hard", "HEAD~1"]);
    commit(&lab, "of a cert that is over", "below", "2025-12-31T00:00:00Z");
    follow(&repository, None).unwrap();
    commit_at(&lab, "later", "below", "2026-03-01T00:00:00Z", "2025-12-31T00:00:00Z");
    assert!(refused(follow(&repository, None)).contains("it has expired"));
}

/// gpgv says of such a key that it has expired, and no more.
#[test]
fn a_key_that_is_revoked_and_expired_is_revoked() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    let gone = gpg.key("gone", "ed25519", "sign", "1y");
    gpg.trust(true, &[]);
    let repository = believing(&lab);
    commit(&lab, "of its time", "gone", JUNE);
    follow(&repository, None).unwrap();
    let revocation = fs::read_to_string(gpg.home.join(format!("openpgp-revocs.d/{gone}.rev"))).unwrap();
    gpg.run(MADE, &["--import"], revocation.replace("\n:-----", "\n-----").as_bytes());
    gpg.trust(true, &["gone"]);
    assert!(refused(follow(&repository, None)).contains(&format!("{gone}, which is revoked")));
}

#[test]
fn signatures_that_are_none_of_this_commit() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    for user in ["ann", "bob"] {
        gpg.key(user, "ed25519", "sign", "0");
    }
    gpg.key("rsa", "rsa2048", "sign", "0");
    gpg.trust(true, &[]);
    let repository = believing(&lab);
    let signed = commit(&lab, "signed", "ann", JUNE);
    let raw = lab.git("work", &["cat-file", "commit", signed.as_str()]) + "\n";
    let unsigned: String = raw
        .lines()
        .filter(|line| !line.starts_with("gpgsig") && !line.starts_with(' '))
        .map(|line| format!("{line}\n"))
        .collect();
    let with = |signature: &str| {
        let (head, body) = unsigned.split_once("\n\n").unwrap();
        let folded = signature.trim_end().replace('\n', "\n ");
        format!("{head}\ngpgsig {folded}\n\n{body}")
    };
    let store = |text: &str| {
        let made = lab.git_stdin("work", &["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
        lab.git("work", &["push", "-q", "--force", "origin", &format!("{made}:refs/heads/main")]);
        (follow(&repository, None), git_takes(&lab, &made))
    };
    let time = "20250601T120000";
    // The same as git's own, made by hand.
    let (answer, git) = store(&with(&gpg.sign(time, &["ann"], &[], &unsigned)));
    assert!(answer.is_ok() && git, "{answer:?}");
    let armored = gpg.sign(time, &["ann"], &[], &unsigned);
    let elsewhere = gpg.sign(time, &["ann"], &[], &unsigned.replace("signed", "other"));
    for (text, why) in [
        (raw.replace("\n\nsigned", "\n\nforged"), "is not that of its content"),
        (with(&elsewhere), "is not that of its content"),
        (with(&gpg.sign(time, &["ann", "bob"], &[], &unsigned)), "two signatures"),
        (with(&format!("{armored}{armored}")), "two signatures"),
        (with(&format!("{}{armored}", elsewhere)), "two signatures"),
        (unsigned.clone(), "it is not signed"),
        (with(&armored[..armored.len() / 2]), "cut off"),
    ] {
        let (answer, git) = store(&text);
        let error = refused(answer);
        assert!(error.contains(why) && !git, "{why}: {error} {git}");
    }
    // Stricter than git: a hash that was broken, line ends that may change, what stands beside the signature, an expiry.
    let old_hash =
        gpg.sign(time, &["rsa"], &["--digest-algo", "SHA1", "--allow-weak-digest-algos"], &unsigned);
    let lines = gpg.sign(time, &["ann"], &["--textmode"], &unsigned);
    let short = gpg.sign(time, &["ann"], &["--default-sig-expire", "1d"], &unsigned);
    for (signature, why) in [
        (old_hash, "hash that counts for nothing"),
        (lines, "of another kind than that of a commit"),
        (format!("rubbish\n{armored}"), "of no known kind"),
        (armored.replace("SIGNATURE", "MESSAGE"), "of no known kind"),
        (format!("{armored}rubbish\n"), "something else than armored blocks"),
        (short, "has expired"),
    ] {
        let error = refused(store(&with(&signature)).0);
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn files_of_keys_are_read_strictly() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    let ann = gpg.key("ann <ann@example.org>", "ed25519", "sign", "0");
    commit(&lab, "ann's", "ann", JUNE);
    gpg.trust(true, &[]);
    let repository = believing(&lab);
    follow(&repository, None).unwrap();
    let whole = fs::read(lab.path("trusted")).unwrap();
    let secret = gpg.run(MADE, &["--armor", "--export-secret-keys", "ann"], b"");
    let secret_binary = gpg.run(MADE, &["--export-secret-keys", "ann"], b"");
    let keybox = fs::read(gpg.home.join("pubring.kbx")).unwrap();
    for (content, why) in [
        (&b""[..], "nobody may sign: it has no key"),
        (b"ann", "something else than armored blocks"),
        (&whole[..whole.len() / 2], "cut off"),
        (&secret, "something else than armored blocks"),
        (&secret_binary, "it holds a secret key"),
        (&keybox, "`gpg --export` writes"),
        (&[0xff, 0xff], "it is cut off"),
    ] {
        fs::write(lab.path("trusted"), content).unwrap();
        let error = refused(follow(&repository, None));
        let file = lab.path("trusted").display().to_string();
        assert!(error.contains(why) && error.contains(&file), "{why}: {error}");
    }
    fs::remove_file(lab.path("trusted")).unwrap();
    assert!(refused(follow(&repository, None)).contains("trusted cannot be read"));
    // For people.
    fs::write(lab.path("trusted"), &whole).unwrap();
    let config = SignatureConfig { trusted_keys: Some(lab.path("trusted")), ..SignatureConfig::default() };
    let listed = gitopsd::git::trusted_signers(&config).unwrap().signers;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].principals.as_str(), &listed[0].fingerprint), ("ann <ann@example.org>", &ann));
}

#[test]
fn both_kinds_at_once_and_never_one_for_the_other() {
    let lab = Lab::new().with_repo();
    let gpg = Gpg::new(&lab);
    gpg.key("ann", "ed25519", "sign", "0");
    gpg.trust(true, &[]);
    key(&lab, "bob", &["ed25519"]);
    fs::write(lab.path("allowed"), format!("bob {}\n", public(&lab, "bob"))).unwrap();
    let only_gpg = SignatureConfig { trusted_keys: Some(lab.path("trusted")), ..SignatureConfig::default() };
    let only_ssh =
        SignatureConfig { allowed_signers: Some(lab.path("allowed")), ..SignatureConfig::default() };
    let both = SignatureConfig { trusted_keys: Some(lab.path("trusted")), ..only_ssh.clone() };
    let asks = |config: &SignatureConfig| {
        trusting(&lab, TrustConfig { signatures: Some(config.clone()), ..TrustConfig::default() })
    };
    commit(&lab, "ann's", "ann", JUNE);
    assert_eq!(follow(&asks(&both), None).unwrap().signer().unwrap().principal, "ann");
    follow(&asks(&only_gpg), None).unwrap();
    assert!(refused(follow(&asks(&only_ssh), None)).contains("signed with OpenPGP, and by `repo.verify`"));
    super::signatures::commit(&lab, "bob's", Some("bob"), None);
    assert_eq!(follow(&asks(&both), None).unwrap().signer().unwrap().principal, "bob");
    follow(&asks(&only_ssh), None).unwrap();
    assert!(refused(follow(&asks(&only_gpg), None)).contains("signed with an SSH key, and by `repo.verify`"));
}
