//! Why something did not happen: stable codes that scripts, alerts and receipts rely on.

use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_through_str};

/// Declares [`Reason`] once: variant, code, what it means, what to do. `docs/reasons.md` is generated from it.
macro_rules! reasons {
    ($($variant:ident $code:literal $meaning:literal $todo:literal)*) => {
        /// A stable code for why something did not happen. The table is `docs/reasons.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code, in kebab case.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// What a person can do about it.
            pub fn todo(self) -> &'static str {
                match self { $(Self::$variant => $todo,)* }
            }
        }
    };
}

reasons! {
    ImageNotFound "image-not-found" "The registry has no such name, tag or digest." "Push the image, or correct the tag; it is looked for again by itself."
    DigestMismatch "digest-mismatch" "The bytes received do not have the digest that was asked for." "Look for a broken mirror, proxy or disk; nothing of it was used."
    ImageInvalid "image-invalid" "The image's manifest, configuration or a layer is broken or of an unknown kind." "Rebuild and push the image."
    ImageUnsupported "image-unsupported" "The image is of a kind that this version does not run: another platform, an old schema, an artifact." "Build the image for this host's platform, or serve it another way, as the message says."
    RegistryUnreachable "registry-unreachable" "The registry did not answer, or answered with a server error." "Check the registry and the network; it is tried again by itself."
    Auth "auth" "The registry or the git server refused the credentials." "Correct the credentials in the host's configuration."
    Tls "tls" "The server's certificate is not one this host trusts." "Renew the certificate, or name its authority as ca_file."
    DiskSpace "disk-space" "The file system of the state directory is too full." "Make room; it is tried again by itself."
    LayerMissing "layer-missing" "A layer cannot be put in its place alone, because one below it in the image is not here either." "Nothing: both are pulled when something needs the image. Why the one below could not be had is said of that one."
    StorageIo "storage-io" "The disk gave an error; nothing was marked as complete." "Check the disk and the kernel log."
    Unhealthy "unhealthy" "The health check failed as often as it may." "Read the container's last log lines, then fix the image or the check."
    Exited "exited" "The container ended by itself." "Read the container's last log lines."
    OutOfMemory "out-of-memory" "The kernel killed a process of the new version for want of memory while it had traffic, and never one of the old version." "Raise mem_limit, or find out what grew."
    ErrorRate "error-rate" "Connections to the new version were refused, reset or dropped, far more of them than of the old version's." "Read the container's last log lines; deploy.max_error_rate says how many are too many."
    DeployTimeout "deploy-timeout" "The new version was not healthy within deploy.timeout." "Give it longer, or find out what it waits for."
    PreFailed "pre-failed" "The command of deploy.pre ended with an error or ran out of time." "Read its output in the logs; the old version was not touched."
    PostFailed "post-failed" "The command of deploy.post ended with an error or ran out of time." "Read its output in the logs; the new version serves all the same. It is not run again: commit a fix, or `gitopsd resume SERVICE` to let it be."
    RunFailed "run-failed" "A run of a scheduled service ended with an error or ran out of time." "Read its output in the logs; the next run comes when it is due."
    Irreversible "irreversible" "The new version is not well, and deploy.reversible = false keeps the old one from coming back by itself." "Commit a fix; `gitopsd rollback SERVICE` brings the old one back all the same."
    Window "window" "It is outside of the window in which the service may be changed." "Wait for the window, commit with the trailer `Gitopsd-Window: now`, or `gitopsd sync --now`."
    Wave "wave" "An earlier wave of hosts is not well on this commit yet, or has not been for long enough." "Wait, or commit with the trailer `Gitopsd-Waves: now`, or `gitopsd sync --now` on this host; what runs is kept running meanwhile."
    WaveFailed "wave-failed" "The commit failed in an earlier wave of hosts, so this host does not act on it." "Commit a fix, or a revert: it goes through the first wave again. `gitopsd fleet` shows the hosts."
    StartFailed "start-failed" "The container could not be started." "The message says which part refused; correct the service file or the host."
    PortInUse "port-in-use" "A port that the service publishes is taken on this host." "Stop the other user of the port, or publish another one; before anything is begun it is looked at again by itself. Services that exchange their ports need two commits."
    Memory "memory" "The host has too little memory for a second copy of the service." "Free memory, lower what the service uses, or let it stop first with deploy.strategy = \"recreate\"; it is looked at again by itself. policy.memory_overcommit = true switches the question off."
    VolumeInUse "volume-in-use" "A directory of the host is still written to by a service that is to leave it." "It goes on by itself once that service is removed or changed; see why it is not. Two that are to take each other's directories need two commits."
    Network "network" "A network, address or traffic rule could not be set up." "The message says which; `nft list ruleset` and `ip link` show the rest."
    Policy "policy" "The host's policy does not allow what the repo asks for." "Change the service file, or the policy in the host's own configuration."
    Secret "secret" "A secret that the service asks for cannot be had from the file that the host's configuration names." "The message says which file, and why; it is looked at again by itself, and what runs goes on meanwhile."
    ConfigInvalid "config-invalid" "A file of the config repo has errors." "Run `gitopsd check`, correct them and commit."
    ConfigEmpty "config-empty" "The revision holds no services at all, which would remove everything." "Restore the services, or name them in `removed` of the repo's gitopsd.toml."
    TooManyRemovals "too-many-removals" "The revision removes more services from this host than policy.max_removals." "Remove fewer in one commit, name those that are meant to go in `removed` of the repo's gitopsd.toml, or raise max_removals."
    NotFastForward "not-fast-forward" "The branch no longer holds the commit this host last acted on." "Undo the force-push; roll back with `git revert` instead. Where the new history is meant: `gitopsd sync --accept COMMIT` with the full name of its head."
    RepoIdMismatch "repo-id-mismatch" "The repository's repo_id is not the one this host expects." "Correct repo.url or repo.repo_id in the host's configuration."
    Signature "signature" "The commit is not signed by a key this host trusts." "Sign the commit, or add the key to allowed_signers (of OpenPGP: trusted_keys); `gitopsd trust` says who may sign."
    GitUnreachable "git-unreachable" "The config repo did not answer, is gone, or has no such branch." "Check the server, the address and the branch; everything stays as it is meanwhile."
    RepoOld "repo-old" "The newest commit of the config repo is older than repo.max_age of the host's configuration." "Commit something, as whoever promised it does by a timer (`git commit --allow-empty`). Where somebody did: the server, or somebody between, shows an old state."
    NotesRefused "notes-refused" "The git server does not take this host's receipts." "Let the host's key write refs/notes/gitopsd/* or the branches gitopsd/receipts/*, or set report.push = false; deploys go on meanwhile."
    SigningKey "signing-key" "The key that this host signs its receipts with cannot be used." "Put a key in its place (`ssh-keygen -t ed25519 -N '' -f FILE`), or take report.key out of the host's configuration; receipts wait in the outbox meanwhile, deploys go on."
    StatusRefused "status-refused" "The forge does not show this host's commit statuses." "The message holds what the forge says: let the token of status.token_file write commit statuses, or leave [status] out; deploys go on meanwhile."
    HostKey "hostkey" "The git server's ssh key is not the one in known_hosts." "Check the server; if the key really changed, update known_hosts."
    Dependency "dependency" "A service named in depends_on, or whose network it shares, is not running yet." "It starts by itself once the other one runs."
    Held "held" "An operator holds the service as it is." "`gitopsd resume SERVICE` lets it follow the repo again."
    OperatorRollback "operator-rollback" "An operator put the previous generation back." "Commit a fix, or `gitopsd resume SERVICE`."
    Superseded "superseded" "A newer commit arrived before this one was switched to, or the service whose network it shares is at another generation." "Nothing: a newer generation follows by itself."
    Unsupported "unsupported" "The service asks for something that this version does not do." "Leave it out, or see CHANGELOG.md for what is planned."
    StateInvalid "state-invalid" "A state file is damaged or written by a newer version." "Restore the file that is named, or move it and its `.previous.json` away and restart the agent: what it held begins anew. One of a newer version needs that version."
    Internal "internal" "The agent met a case it has no answer for." "Please report it, with the journal's lines around it."
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

impl FromStr for Reason {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.code() == text)
            .ok_or_else(|| Invalid::new(format!("`{text}` is not a reason code")))
    }
}
serde_through_str!(Reason);

/// Something that will not be done, and why, in one line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// The stable code.
    pub reason: Reason,
    /// One line for people, naming the nouns.
    pub message: String,
}

impl Refusal {
    /// Pairs a reason with its line.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_parse_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.code().parse::<Reason>().unwrap(), *reason);
        }
    }
}
