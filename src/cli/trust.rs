//! `gitopsd trust`: which commits this host believes, and why; `gitopsd trust reset` has it begin anew.
//!
//! It reads what the agent keeps, so it works whether one is running or not; `reset` is the agent's where there is one.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::table::{self, ago};
use super::{Failure, operate, provenance, run, write_json};
use crate::agent::clock;
use crate::agent::control::Command;
use crate::config::agent::{AgentConfig, TrustConfig};
use crate::git::{self, Signer, TrustedSigner};
use crate::report::events::{self, Event};
use crate::state::StateDir;
use crate::state::trust::{Reset, read_trust};
use crate::types::{CommitId, CommitInfo, Reason, Timestamp, plural};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Forget the commit that was believed last: the next head is taken as on a new host, or as --to says. Signatures are
    /// asked for all the same, and what runs goes on
    Reset {
        /// Why, for those who wonder later: it goes into the journal and into git
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Believe this commit, in full, and what descends from it, although history was rewritten
        #[arg(long, value_name = "COMMIT")]
        to: Option<CommitId>,
    },
    /// Show which commits of receipts are signed by the hosts that they are of, in any clone; needs no agent and no root.
    /// Exit 0 where all are since a host's first one, 1 otherwise
    Receipts(provenance::Wanted),
}

/// Shows it, or changes it.
pub fn trust(config: &Path, wanted: &Wanted, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    match &wanted.what {
        None => show(&run::config(config)?, json, out),
        Some(What::Reset { reason, to }) => reset(&run::config(config)?, to.clone(), reason, json, out),
        Some(What::Receipts(wanted)) => provenance::receipts(wanted, json, out),
    }
}

fn reset(
    config: &AgentConfig,
    commit: Option<CommitId>,
    reason: &str,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(Failure::Usage("--reason wants a reason".to_owned()));
    }
    let (by, reason) = (operate::operator(), reason.to_owned());
    let command = Command::TrustReset { commit: commit.clone(), by: by.clone(), reason: reason.clone() };
    let reply = match operate::ask_with(config, &command, &mut |_| Ok(())) {
        Err(Failure::NotRunning) => {
            // Its lock keeps an agent from starting meanwhile.
            let state = StateDir::open(&config.state_dir)?;
            let former = state.load_high_water()?.map(|mark| mark.commit);
            state.save_reset(&Reset {
                commit,
                by,
                reason,
                at: clock::now(),
                former,
                admitted: None,
                told: false,
            })?;
            crate::agent::control::Reply::done("no agent is running: it counts when one looks at the repo")
        }
        reply => reply?,
    };
    operate::answer(reply, json, out)
}

/// All of it. Names in it are a contract: `docs/json.md`.
#[derive(Debug, Serialize)]
struct Trust {
    repo: Repo,
    verify: Vec<&'static str>,
    verify_commits: Option<&'static str>,
    mark: Option<Mark>,
    signers: Vec<TrustedSigner>,
    revoked: Vec<String>,
    /// Why nobody's signature counts.
    trouble: Option<String>,
    refused: Option<Refused>,
    reset: Option<Reset>,
}

#[derive(Debug, Serialize)]
struct Repo {
    url: String,
    branch: String,
    repo_id: Option<String>,
    first_commit: Option<CommitId>,
    min_commit_time: Option<Timestamp>,
}

/// The commit that was believed last.
#[derive(Debug, Serialize)]
struct Mark {
    commit: CommitId,
    admitted_at: Timestamp,
    /// `None`: the agent's copy of the repo does not hold it.
    #[serde(flatten)]
    info: Option<Info>,
    signer: Option<Signer>,
    /// Why no signer is named where one is asked for.
    unsigned: Option<String>,
}

#[derive(Debug, Serialize)]
struct Info {
    subject: String,
    author: String,
    committed_at: Timestamp,
}

/// What was not believed, the last time.
#[derive(Debug, Serialize)]
struct Refused {
    at: Timestamp,
    reason: Option<Reason>,
    message: String,
    /// Nothing was believed since.
    standing: bool,
}

fn show(config: &AgentConfig, json: bool, out: &mut dyn Write) -> Result<u8, Failure> {
    let trust = gather(config)?;
    match json {
        true => write_json(out, &trust)?,
        false => render(&trust, clock::now(), out)?,
    }
    Ok(0)
}

fn gather(config: &AgentConfig) -> Result<Trust, Failure> {
    let (high_water, reset) = read_trust(&config.state_dir)?;
    let TrustConfig { signatures, first_commit, min_commit_time, .. } = &config.repo.trust;
    let (mut signers, mut revoked, mut trouble) = (Vec::new(), Vec::new(), None);
    match signatures.as_ref().map(git::trusted_signers) {
        Some(Ok(found)) => (signers, revoked) = (found.signers, found.revoked),
        Some(Err(why)) => trouble = Some(why),
        None => {}
    }
    let mark = high_water.map(|mark| {
        let seen = git::inspect(&config.state_dir.join("git"), &mark.commit, signatures.as_ref()).ok();
        let (info, signed) = seen.map(|seen| (seen.info, seen.signed)).unzip();
        let (signer, unsigned) = match signed.flatten() {
            Some(Ok(signer)) => (Some(signer), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let info = info.map(|CommitInfo { subject, author, committed_at, .. }| Info {
            subject,
            author,
            committed_at,
        });
        Mark { commit: mark.commit, admitted_at: mark.admitted_at, info, signer, unsigned }
    });
    let mut verify = Vec::new();
    if let Some(signatures) = signatures {
        verify.extend(signatures.allowed_signers.as_ref().map(|_| "ssh"));
        verify.extend(signatures.trusted_keys.as_ref().map(|_| "openpgp"));
    }
    Ok(Trust {
        repo: Repo {
            url: config.repo.url.to_string(),
            branch: config.repo.branch.clone(),
            repo_id: config.repo.repo_id.clone(),
            first_commit: first_commit.clone(),
            min_commit_time: *min_commit_time,
        },
        verify,
        verify_commits: signatures.as_ref().map(|it| if it.head_only { "head" } else { "strict" }),
        mark,
        signers,
        revoked,
        trouble,
        refused: refused(&config.state_dir)?,
        reset,
    })
}

/// The last refusal that the events tell of: they are a view, and go back as far as they go.
fn refused(state_dir: &Path) -> Result<Option<Refused>, Failure> {
    let path = events::path(state_dir);
    let mut refused: Option<Refused> = None;
    for path in [path.with_extension("1.jsonl"), path] {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(crate::state::StateError::io("reading", &path, source).into()),
        };
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
            match event.event.as_str() {
                "revision-refused" => {
                    let Event { at, reason, message, .. } = event;
                    refused = Some(Refused { at, reason, message, standing: true });
                }
                "revision-admitted" | "source-found" => {
                    if let Some(refused) = &mut refused {
                        refused.standing = false;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(refused)
}

fn render(trust: &Trust, now: Timestamp, out: &mut dyn Write) -> Result<(), Failure> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
    let repo = &trust.repo;
    row("repo", format!("{} branch {}", repo.url, repo.branch));
    if let Some(id) = &repo.repo_id {
        row("", format!("it has to call itself `{id}`"));
    }
    match &trust.mark {
        None => row("believed", "nothing yet".to_owned()),
        Some(mark) => {
            let subject = mark.info.as_ref().map_or("", |info| info.subject.as_str());
            row("believed", format!("{} {subject}", mark.commit));
            if let Some(info) = &mark.info {
                row("", format!("by {}, {}", info.author, info.committed_at));
            }
            row("", format!("believed here {} ago, {}", ago(mark.admitted_at, now), mark.admitted_at));
            match (&mark.signer, &mark.unsigned, &mark.info) {
                (Some(signer), ..) => {
                    row("", format!("signed by {} with {}", signer.principal, signer.fingerprint))
                }
                (None, Some(why), _) => row("", format!("its signature counts for nothing now: {why}")),
                (None, None, None) => row("", "the agent's copy of the repo does not hold it".to_owned()),
                (None, None, Some(_)) => {}
            }
        }
    }
    row("next", next(trust));
    row("signatures", asked(trust));
    match &trust.refused {
        Some(Refused { at, reason, message, standing }) => {
            let still = if *standing { "still so" } else { "over" };
            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            row("refused", format!("{} ago, {still}: {message}{reason}", ago(*at, now)));
        }
        None => row("refused", "nothing that is remembered".to_owned()),
    }
    if let Some(reset) = &trust.reset {
        let end = match &reset.admitted {
            Some(commit) => format!("{} was believed by it", commit.short()),
            None => "in force until a head is believed".to_owned(),
        };
        row("reset", format!("by {}, {} ago: {} ({end})", reset.by, ago(reset.at, now), reset.reason));
    }
    table::write(out, &rows)?;
    if let Some(why) = &trust.trouble {
        writeln!(out, "\nnobody's signature counts: {why}")?;
    }
    if !trust.signers.is_empty() {
        writeln!(out)?;
        signers(trust, out)?;
    }
    Ok(())
}

/// What the next head has to be.
fn next(trust: &Trust) -> String {
    let first = || {
        let repo = &trust.repo;
        let of = repo.first_commit.as_ref().map(|first| format!("a descendant of {}", first.short()));
        let since = repo.min_commit_time.map(|time| format!("not older than {time}"));
        let both: Vec<String> = of.into_iter().chain(since).collect();
        if both.is_empty() { "whatever the branch has".to_owned() } else { both.join(", and ") }
    };
    let reset = trust.reset.as_ref().filter(|reset| reset.admitted.is_none());
    match (reset.map(|reset| &reset.commit), &trust.mark) {
        (Some(Some(commit)), Some(mark)) => {
            format!("{} or a descendant of it, or one of {}", commit.short(), mark.commit.short())
        }
        (Some(Some(commit)), None) => format!("{} or a descendant of it", commit.short()),
        (None, Some(mark)) => format!("a descendant of {}", mark.commit.short()),
        (Some(None), _) | (None, None) => first(),
    }
}

fn asked(trust: &Trust) -> String {
    let formats = match trust.verify.as_slice() {
        [] => return "not asked for: whoever can push to the branch decides".to_owned(),
        ["ssh"] => "SSH",
        ["openpgp"] => "OpenPGP",
        _ => "SSH or OpenPGP",
    };
    let which = match trust.verify_commits {
        Some("head") => "the branch's head alone",
        _ => "every commit since the last one believed, on the first-parent path",
    };
    let revoked = match trust.revoked.len() {
        0 => String::new(),
        count => format!("; {} revoked", plural(count, "key is", "keys are")),
    };
    format!("{formats}: {which}{revoked}")
}

fn signers(trust: &Trust, out: &mut dyn Write) -> std::io::Result<()> {
    let mut rows = vec![["WHO", "KEY", "VALID", "WHERE"].map(str::to_owned).to_vec()];
    for signer in &trust.signers {
        let mut valid = Vec::new();
        valid.extend(trust.revoked.contains(&signer.fingerprint).then(|| "revoked".to_owned()));
        valid.extend(signer.authority.then(|| "as an authority".to_owned()));
        valid.extend(signer.valid_after.map(|time| format!("from {time}")));
        valid.extend(signer.valid_before.map(|time| format!("until {time}")));
        valid.extend(signer.namespaces.as_ref().map(|spaces| format!("for {spaces}")));
        let line = signer.line.map(|line| format!(":{line}")).unwrap_or_default();
        rows.push(vec![
            signer.principals.clone(),
            signer.fingerprint.clone(),
            match (valid.is_empty(), signer.format) {
                (false, _) => valid.join(", "),
                // Its file says when it expires and whether it is revoked, and gpgv reads it.
                (true, "openpgp") => "as the key says".to_owned(),
                (true, _) => "always".to_owned(),
            },
            format!("{}{line}", signer.file.display()),
        ]);
    }
    table::write(out, &rows)
}
