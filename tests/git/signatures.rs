//! Signed commits, made by the real git and judged beside the real `ssh-keygen -Y verify`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use gitopsd::config::agent::{RepoConfig, SignatureConfig, TrustConfig};
use gitopsd::git::{GitError, Repository, TrustedCommit};
use gitopsd::types::{CommitId, Reason};

use crate::git_server::Lab;
use crate::{config, follow, id};

/// A new key below the lab: the path of its private half. Its public half has `.pub`.
pub fn key(lab: &Lab, name: &str, kind: &[&str]) -> PathBuf {
    let path = lab.path(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", name, "-f"])
        .arg(&path)
        .arg("-t")
        .args(kind)
        .status()
        .unwrap();
    assert!(made.success(), "{kind:?}");
    path
}

pub fn public(lab: &Lab, name: &str) -> String {
    fs::read_to_string(lab.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
}

/// A commit, signed with a key of the lab or not at all, made at a time; pushed.
pub fn commit(lab: &Lab, subject: &str, with: Option<&str>, date: Option<&str>) -> CommitId {
    fs::write(lab.path("work/services/shop.toml"), format!("# {subject}\nimage = \"r.io/shop:1\"\n"))
        .unwrap();
    lab.git("work", &["add", "-A"]);
    let date = date.unwrap_or("2026-06-01T12:00:00Z");
    let mut command = Command::new("git");
    command.current_dir(lab.path("work"));
    crate::git_server::scrub(&mut command, &lab.path(""));
    command.env("GIT_COMMITTER_DATE", date).env("GIT_AUTHOR_DATE", date);
    if let Some(with) = with {
        let key = lab.path(&format!("{with}.pub")).display().to_string();
        command.args(["-c", "gpg.format=ssh", "-c", &format!("user.signingkey={key}")]);
    }
    command.args(["commit", "-q", "--allow-empty", "-m", subject]);
    command.args(with.map(|_| "-S"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.git("work", &["push", "-q", "--force", "origin", "HEAD:main"]);
    id(&lab.git("work", &["rev-parse", "HEAD"]))
}

pub fn trusting(lab: &Lab, trust: TrustConfig) -> Repository {
    let config = RepoConfig { trust, ..config(&lab.url()) };
    Repository::open(&config, &lab.cache()).unwrap()
}

/// Believes what is signed by these lines.
fn signed_by(lab: &Lab, lines: &str) -> Repository {
    fs::write(lab.path("allowed"), lines).unwrap();
    fs::write(lab.path("revoked"), "").unwrap();
    let signatures = SignatureConfig {
        allowed_signers: Some(lab.path("allowed")),
        revoked_signers: Some(lab.path("revoked")),
        ..SignatureConfig::default()
    };
    trusting(lab, TrustConfig { signatures: Some(signatures), ..TrustConfig::default() })
}

pub fn refused(result: Result<TrustedCommit, GitError>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.reason, Reason::Signature, "{error}");
    error.to_string()
}

/// What `git verify-commit` says with the same files.
fn git_takes(lab: &Lab, commit: &CommitId) -> bool {
    let mut command = Command::new("git");
    command.current_dir(lab.path("work"));
    crate::git_server::scrub(&mut command, &lab.path(""));
    let allowed = lab.path("allowed").display().to_string();
    let revoked = lab.path("revoked").display().to_string();
    command.args(["-c", &format!("gpg.ssh.allowedSignersFile={allowed}")]);
    command.args(["-c", &format!("gpg.ssh.revocationFile={revoked}")]);
    command.args(["verify-commit", commit.as_str()]);
    command.output().unwrap().status.success()
}

#[test]
fn every_kind_of_key_that_git_signs_with() {
    let lab = Lab::new().with_repo();
    let kinds: [(&str, &[&str]); 6] = [
        ("ed", &["ed25519"]),
        ("p256", &["ecdsa", "-b", "256"]),
        ("p384", &["ecdsa", "-b", "384"]),
        ("rsa2048", &["rsa", "-b", "2048"]),
        ("rsa3072", &["rsa", "-b", "3072"]),
        ("rsa4096", &["rsa", "-b", "4096"]),
    ];
    let mut lines = String::from("# who may sign\n\n");
    for (name, kind) in kinds {
        key(&lab, name, kind);
        lines.push_str(&format!("{name}@example.org {}\n", public(&lab, name)));
    }
    let repository = signed_by(&lab, &lines);
    for (name, _) in kinds {
        let made = commit(&lab, name, Some(name), None);
        let trusted = follow(&repository, None).unwrap();
        let signer = trusted.signer().unwrap();
        assert_eq!(
            (trusted.id(), signer.principal.as_str()),
            (&made, format!("{name}@example.org").as_str())
        );
        let shown =
            Command::new("ssh-keygen").arg("-lf").arg(lab.path(&format!("{name}.pub"))).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!(" {} ", signer.fingerprint)), "{shown}");
        assert!(git_takes(&lab, &made));
    }
    // A curve that is not there is refused with its name, not taken for another one.
    key(&lab, "p521", &["ecdsa", "-b", "521"]);
    fs::write(lab.path("allowed"), format!("{lines}p521 {}\n", public(&lab, "p521"))).unwrap();
    let error = refused(follow(&repository, None));
    assert!(error.contains("allowed:9: its key: keys of the kind `ecdsa-sha2-nistp521`"), "{error}");
}

#[test]
fn who_may_not_sign_is_refused_as_git_refuses_it() {
    let lab = Lab::new().with_repo();
    for name in ["ann", "eve"] {
        key(&lab, name, &["ed25519"]);
    }
    let (ann, eve) = (public(&lab, "ann"), public(&lab, "eve"));
    let good = format!("ann@example.org,root namespaces=\"git\" {ann}\n");
    let repository = signed_by(&lab, &good);
    let by_ann = commit(&lab, "ann's", Some("ann"), None);
    follow(&repository, None).unwrap();
    let at = |lines: String| {
        fs::write(lab.path("allowed"), lines).unwrap();
        let answer = follow(&repository, None);
        assert_eq!(answer.is_ok(), git_takes(&lab, &by_ann), "{answer:?}");
        answer
    };
    for (lines, why) in [
        (format!("eve {eve}\n"), "which is no allowed signer"),
        (format!("ann namespaces=\"file,mail\" {ann}\n"), "may not sign commits (line 1: namespaces)"),
        (format!("ann namespaces=\"*,!git\" {ann}\n"), "may not sign commits"),
        (format!("ann valid-before=\"20260101Z\" {ann}\n"), "may not sign any more at 2026-06-01T12:00:00Z"),
        (format!("ann valid-after=\"20270101Z\" {ann}\n"), "may not sign yet"),
        (format!("ann cert-authority {ann}\n"), "which is no allowed signer"),
    ] {
        let error = refused(at(lines.clone()));
        assert!(error.contains(why) && error.contains(by_ann.as_str()), "{lines}: {error}");
    }
    for lines in [
        format!("ann namespaces=\"file,git\" {ann}\n"),
        format!(
            "\"ann@example.org\" namespaces=\"g*\",valid-after=\"20260101Z\",valid-before=\"20270101Z\" {ann}\n"
        ),
        format!("eve {eve}\n# ann\nann {ann}\n"),
        format!("ann valid-before=\"20260101Z\" {ann}\nann {ann}\n"),
    ] {
        at(lines).unwrap();
    }
    // Revoked by its key, and by its fingerprint.
    fs::write(lab.path("allowed"), &good).unwrap();
    fs::write(lab.path("revoked"), format!("# gone\n{ann}\n")).unwrap();
    let error = refused(follow(&repository, None));
    assert!(error.contains("which is revoked"), "{error}");
    assert!(!git_takes(&lab, &by_ann));
    let print = error.split("signed with ").nth(1).unwrap().split(',').next().unwrap();
    fs::write(lab.path("revoked"), format!("{print} ann, 2026\n")).unwrap();
    assert!(refused(follow(&repository, None)).contains("which is revoked"));
    fs::write(lab.path("revoked"), "SHA256:abcd\n").unwrap();
    assert!(refused(follow(&repository, None)).contains("revoked:1: `SHA256:abcd` is no fingerprint"));
    // Not readable as what it is: nobody's signature counts.
    fs::write(lab.path("revoked"), b"SSHKRL\n\0rest").unwrap();
    assert!(refused(follow(&repository, None)).contains("binary revocation list"));
    fs::write(lab.path("revoked"), "").unwrap();
    for (lines, why) in [
        ("", "nobody may sign"),
        ("ann\n", "allowed:1: a key is missing"),
        ("\nann ssh-ed25519 AAAA\n", "allowed:2: its key: it is cut off"),
        ("ann ssh-ed25519 ?\n", "its base64 is broken"),
        ("ann touch-required ssh-ed25519 AAAA\n", "its key: it is cut off"),
        (&format!("ann no-touch {ann}\n"), "`no-touch` is not an option"),
        (&format!("ann namespaces=\"git {ann}\n"), "a key is missing"),
    ] {
        fs::write(lab.path("allowed"), lines).unwrap();
        let error = refused(follow(&repository, None));
        assert!(error.contains(why), "{lines}: {error}");
    }
    fs::remove_file(lab.path("allowed")).unwrap();
    assert!(refused(follow(&repository, None)).contains("allowed cannot be read"));
}

#[test]
fn what_is_not_signed_or_signed_for_something_else() {
    let lab = Lab::new().with_repo();
    key(&lab, "ann", &["ed25519"]);
    let repository = signed_by(&lab, &format!("ann {}\n", public(&lab, "ann")));
    let plain = commit(&lab, "plain", None, None);
    let error = refused(follow(&repository, None));
    assert_eq!(error, format!("commit {plain} by Ann Admin: it is not signed"));

    let signed = commit(&lab, "signed", Some("ann"), None);
    let raw = lab.git("work", &["cat-file", "commit", signed.as_str()]);
    let store = |text: &str| {
        let made = lab.git_stdin("work", &["hash-object", "-t", "commit", "-w", "--stdin"], text.as_bytes());
        lab.git("work", &["push", "-q", "--force", "origin", &format!("{made}:refs/heads/main")]);
        refused(follow(&repository, None))
    };
    // Something else under the same signature.
    let error = store(&format!("{raw}\n").replace("\n\nsigned", "\n\nforged"));
    assert!(error.contains("its signature is not that of its content"), "{error}");
    // Signed by the right one, for another purpose.
    let unsigned: String = raw
        .lines()
        .filter(|line| !line.starts_with("gpgsig") && !line.starts_with(' '))
        .map(|line| format!("{line}\n"))
        .collect();
    let sign = |namespace: &str, message: &str| {
        let mut child = Command::new("ssh-keygen")
            .args(["-Y", "sign", "-n", namespace, "-f"])
            .arg(lab.path("ann"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), message.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let with = |signature: &str| {
        let (head, body) = unsigned.split_once("\n\n").unwrap();
        let folded = signature.trim_end().replace('\n', "\n ");
        format!("{head}\ngpgsig {folded}\n\n{body}")
    };
    let error = store(&with(&sign("file", &unsigned)));
    assert!(error.contains("its signature is for `file`"), "{error}");
    for (signature, why) in [
        ("-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----", "OpenPGP"),
        ("-----BEGIN SIGNED MESSAGE-----\nAAAA\n-----END SIGNED MESSAGE-----", "X.509"),
        ("-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQ==\n-----END SSH SIGNATURE-----", "it is cut off"),
        ("-----BEGIN SSH SIGNATURE-----\n!\n-----END SSH SIGNATURE-----", "base64"),
        ("rubbish", "of no known kind"),
    ] {
        let error = store(&with(signature));
        assert!(error.contains(why), "{signature}: {error}");
    }
    // A signature in the message is none of the header: what stands beside it there would go unsigned.
    let (head, body) = unsigned.split_once("\n\n").unwrap();
    let folded = sign("git", &unsigned).trim_end().replace('\n', "\n ");
    assert!(store(&format!("{head}\n\n{body}gpgsig {folded}\n")).ends_with("it is not signed"));
    let twice = with(&sign("git", &unsigned)).replacen("\ngpgsig ", "\ngpgsig\ngpgsig ", 1);
    assert!(store(&twice).contains("of another kind"));
    let twice =
        with(&sign("git", &unsigned)).replacen("\ngpgsig ", &format!("\ngpgsig {folded}\ngpgsig "), 1);
    assert!(store(&twice).contains("two signatures"));
    // The same, done right, is taken.
    let made = lab.git_stdin(
        "work",
        &["hash-object", "-t", "commit", "-w", "--stdin"],
        with(&sign("git", &unsigned)).as_bytes(),
    );
    lab.git("work", &["push", "-q", "--force", "origin", &format!("{made}:refs/heads/main")]);
    assert_eq!(follow(&repository, None).unwrap().id().as_str(), made);
}

#[test]
fn nothing_unsigned_hides_under_a_signed_head() {
    let lab = Lab::new().with_repo();
    key(&lab, "ann", &["ed25519"]);
    let repository = signed_by(&lab, &format!("ann {}\n", public(&lab, "ann")));
    let mark = commit(&lab, "1", Some("ann"), None);
    follow(&repository, None).unwrap();
    let hidden = commit(&lab, "2", None, None);
    let head = commit(&lab, "3", Some("ann"), None);
    let error = refused(follow(&repository, Some(&mark)));
    assert_eq!(error, format!("commit {hidden} by Ann Admin, on the way to {head}: it is not signed"));
    // Whoever asks for less gets it.
    let signatures = SignatureConfig {
        allowed_signers: Some(lab.path("allowed")),
        head_only: true,
        ..SignatureConfig::default()
    };
    let lenient = trusting(&lab, TrustConfig { signatures: Some(signatures), ..TrustConfig::default() });
    assert_eq!(follow(&lenient, Some(&mark)).unwrap().id(), &head);
    // What a signed merge brings in is vouched for by who signed the merge.
    lab.git("work", &["reset", "-q", "--hard", mark.as_str()]);
    lab.git("work", &["checkout", "-q", "-b", "topic"]);
    commit(&lab, "topic", None, None);
    lab.git("work", &["checkout", "-q", "main"]);
    let key = lab.path("ann.pub").display().to_string();
    lab.git(
        "work",
        &[
            "-c",
            "gpg.format=ssh",
            "-c",
            &format!("user.signingkey={key}"),
            "merge",
            "-q",
            "-S",
            "--no-ff",
            "-m",
            "merge",
            "topic",
        ],
    );
    lab.git("work", &["push", "-q", "--force", "origin", "HEAD:main"]);
    follow(&repository, Some(&mark)).unwrap();
}

#[test]
fn a_signed_head_is_no_leave_to_begin_with_an_unsigned_commit() {
    let lab = Lab::new().with_repo();
    key(&lab, "ann", &["ed25519"]);
    let repository = signed_by(&lab, &format!("ann {}\n", public(&lab, "ann")));
    let first = commit(&lab, "1", Some("ann"), None);
    commit(&lab, "2", None, None);
    commit(&lab, "3", Some("ann"), None);
    // A first contact asks for the head's signature alone.
    let head = follow(&repository, None).unwrap();
    let before = repository.before(&head, 10).unwrap();
    assert!(refused(repository.may_begin(&before[0], None)).ends_with("it is not signed"));
    let begun = repository.may_begin(&before[1], None).unwrap();
    assert_eq!((begun.id(), &*begun.signer().unwrap().principal), (&first, "ann"));
    // Nor with one from before the mark.
    assert_eq!(repository.may_begin(&before[1], Some(&first)).unwrap().id(), &first);
    let error = repository.may_begin(&before[2], Some(&first)).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward, "{error}");
}

#[test]
fn an_expired_key_cannot_sign_with_yesterdays_date() {
    let lab = Lab::new().with_repo();
    for name in ["old", "new"] {
        key(&lab, name, &["ed25519"]);
    }
    let lines =
        format!("old valid-before=\"20260101Z\" {}\nnew {}\n", public(&lab, "old"), public(&lab, "new"));
    let repository = signed_by(&lab, &lines);
    let first = commit(&lab, "in its time", Some("old"), Some("2025-12-01T00:00:00Z"));
    follow(&repository, None).unwrap();
    let mark = commit(&lab, "after it", Some("new"), Some("2026-02-01T00:00:00Z"));
    follow(&repository, Some(&first)).unwrap();
    let late = commit(&lab, "dated back", Some("old"), Some("2025-12-02T00:00:00Z"));
    let error = refused(follow(&repository, Some(&mark)));
    assert!(error.contains("may not sign any more at 2026-02-01T00:00:00Z"), "{error}");
    assert!(git_takes(&lab, &late), "git looks at the commit alone");
}

#[test]
fn an_authority_vouches_for_keys() {
    let lab = Lab::new().with_repo();
    for name in ["ca", "ann", "other-ca"] {
        key(&lab, name, &["ed25519"]);
    }
    let certify = |authority: &str, args: &[&str]| {
        let _ = fs::remove_file(lab.path("ann-cert.pub"));
        let made = Command::new("ssh-keygen")
            .args(["-q", "-s"])
            .arg(lab.path(authority))
            .args(["-I", "ann's", "-V", "20260101Z:20270101Z"])
            .args(args)
            .arg(lab.path("ann.pub"))
            .env("TZ", "UTC")
            .status()
            .unwrap();
        assert!(made.success());
    };
    // git signs with whatever the named file holds, by the private half beside it.
    let signed = |subject: &str, date: &str| {
        fs::rename(lab.path("ann.pub"), lab.path("ann.kept")).unwrap();
        fs::copy(lab.path("ann-cert.pub"), lab.path("ann.pub")).unwrap();
        let made = commit(&lab, subject, Some("ann"), Some(date));
        fs::rename(lab.path("ann.kept"), lab.path("ann.pub")).unwrap();
        made
    };
    let repository = signed_by(&lab, &format!("*@example.org cert-authority {}\n", public(&lab, "ca")));
    let judged = |commit: &CommitId| {
        let answer = follow(&repository, None);
        assert_eq!(answer.is_ok(), git_takes(&lab, commit), "{answer:?}");
        answer
    };
    certify("ca", &["-n", "ann@example.org,ops"]);
    let made = signed("1", "2026-06-01T00:00:00Z");
    assert_eq!(judged(&made).unwrap().signer().unwrap().principal, "ann@example.org");
    let made = signed("too late", "2027-06-01T00:00:00Z");
    assert!(refused(judged(&made)).contains("was not valid at 2027-06-01T00:00:00Z"));
    certify("ca", &["-n", "ann@elsewhere.org"]);
    let made = signed("another name", "2026-06-01T00:00:00Z");
    assert!(refused(judged(&made)).contains("which is no allowed signer"));
    certify("other-ca", &["-n", "ann@example.org"]);
    let made = signed("another authority", "2026-06-01T00:00:00Z");
    assert!(refused(judged(&made)).contains("which is no allowed signer"));
    // The authority's own key is not a signer.
    let made = commit(&lab, "the authority's own", Some("ca"), None);
    assert!(refused(judged(&made)).contains("which is no allowed signer"));
    certify("ca", &["-n", "ann@example.org", "-O", "force-command=true"]);
    signed("critical", "2026-06-01T00:00:00Z");
    assert!(refused(follow(&repository, None)).contains("critical options"));
    certify("ca", &["-n", "ann@example.org"]);
    let made = signed("revoked", "2026-06-01T00:00:00Z");
    judged(&made).unwrap();
    for who in ["ca", "ann"] {
        fs::write(lab.path("revoked"), format!("{}\n", public(&lab, who))).unwrap();
        assert!(refused(judged(&made)).contains("which is revoked"), "{who}");
    }
}

#[test]
fn the_first_contact_can_be_pinned() {
    let lab = Lab::new().with_repo();
    let old = id(&lab.git("work", &["rev-parse", "HEAD"]));
    let first = commit(&lab, "first", None, Some("2026-03-01T00:00:00Z"));
    let head = commit(&lab, "second", None, Some("2026-04-01T00:00:00Z"));
    let pinned = |trust: TrustConfig| follow(&trusting(&lab, trust), None);
    let by_commit = || TrustConfig { first_commit: Some(first.clone()), ..TrustConfig::default() };
    let by_time =
        |time: &str| TrustConfig { min_commit_time: Some(time.parse().unwrap()), ..TrustConfig::default() };
    assert_eq!(pinned(by_commit()).unwrap().id(), &head);
    pinned(by_time("2026-04-01T00:00:00Z")).unwrap();
    let error = pinned(by_time("2026-04-01T00:00:01Z")).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward);
    assert!(error.to_string().contains("of 2026-04-01T00:00:00Z, and repo.min_commit_time"), "{error}");
    // An older copy of the repo is served to a host that has lost its memory.
    lab.git("work", &["push", "-q", "--force", "origin", &format!("{old}:main")]);
    let error = pinned(by_commit()).unwrap_err();
    assert_eq!(error.reason, Reason::NotFastForward);
    assert!(error.to_string().contains("repo.first_commit"), "{error}");
    pinned(TrustConfig::default()).unwrap();
}
