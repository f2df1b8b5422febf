//! What can be typed: the one definition that the parser, the help, the man page and the completions come from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::types::{CommitId, HostName, ImageRef, ServiceName};

/// Where a host's configuration is.
pub const CONFIG: &str = "/etc/gitopsd/gitopsd.toml";

/// GitOps agent for systemd hosts: commit a tag bump, get a health-checked swap and a receipt in git
#[derive(Debug, Parser)]
#[command(name = "gitopsd", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Args {
    /// The host's configuration
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 changes pending (plan), 64 usage, 69 agent not running, 78 bad config.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the agent
    Run {
        /// Until every service is settled or held; exit 0 in sync, 1 otherwise
        #[arg(long)]
        once: bool,
    },
    /// Show what runs, since when, from which commit, what is under way and what is refused. Exit 0 when the agent
    /// answers, whatever it says
    Status {
        /// Only this service
        service: Option<ServiceName>,
    },
    /// Show what would change on this host; changes nothing. Exit 0 nothing, 2 changes, 1 error
    Plan {
        /// A config repo's folder; default: the repo and branch that the agent follows
        dir: Option<PathBuf>,
        /// A commit, tag or branch of that repo instead of its files
        #[arg(long)]
        rev: Option<String>,
        /// For this host instead of the configured one
        #[arg(long)]
        host: Option<HostName>,
        /// For every host, by the receipts that the clone holds; needs no agent
        #[arg(long, conflicts_with = "host")]
        fleet: bool,
        /// As Markdown, for a comment on a pull request
        #[arg(long, requires = "fleet", conflicts_with = "json")]
        markdown: bool,
    },
    /// Lint a config repo: all errors at once. Needs no agent and no root
    Check {
        /// The folder that holds gitopsd.toml
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Write the digests that tags stand for beside them into the files of a config repo. Needs no agent and no root
    Lock(super::lock::Wanted),
    /// Look at the repo now
    Sync {
        /// Wait for the end of the commit on this host, drain, bake and further tries too; exit 0 in sync, 1 failed
        #[arg(long)]
        wait: bool,
        /// Wait no longer than this, as in 5m; exit 1 then
        #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
        timeout: Option<Duration>,
        /// Believe this head of the branch, in full, although its history was rewritten
        #[arg(long, value_name = "COMMIT")]
        accept: Option<CommitId>,
        /// Do not wait for the windows of services: for the head that is found, and no later one
        #[arg(long)]
        now: bool,
    },
    /// Show this host's receipts
    History {
        /// Only this service
        service: Option<ServiceName>,
    },
    /// Show what had traffic at a time, by the receipts
    At(super::at::Wanted),
    /// Show the commit and author of each line that makes a service what it is
    Blame(super::blame::Wanted),
    /// Show what is wanted, what is, the last refusal and the next retry of a service
    Why {
        /// Which service
        service: ServiceName,
    },
    /// Show which commits this host believes, by whose signatures, and what it refused; `reset` has it begin anew
    Trust(super::trust::Wanted),
    /// Show what a service wrote
    Logs(super::logs::Wanted),
    /// Run a command inside a service's container
    Exec(super::exec::Wanted),
    /// Show what containers use now: processors, memory, processes, disks
    Top(super::top::Wanted),
    /// Go back to the previous generation now; held until the commit moves or `resume`
    Rollback {
        /// Which service
        service: ServiceName,
    },
    /// Keep a service as it is; a new version that has no traffic yet is given up
    Hold {
        /// Which service
        service: ServiceName,
        /// For so long, as in 2h; default: until `resume`
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        duration: Option<Duration>,
        /// Why, for those who wonder later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Let a service follow the repo again; a commit that failed is tried once more
    Resume {
        /// Which service
        service: ServiceName,
    },
    /// Show transitions as JSON lines
    Events {
        /// Go on as they happen
        #[arg(short, long)]
        follow: bool,
    },
    /// Take this instance off the host: containers, networks, rules. The agent must be stopped
    Teardown {
        /// Its state, images, volumes and logs too
        #[arg(long)]
        purge: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Fetch images ahead of a deploy: the agent does, or this command where none is running
    Pull {
        /// Images, as a service file names them
        #[arg(value_name = "REF", conflicts_with = "all")]
        images: Vec<ImageRef>,
        /// Every image that the repo wants on this host
        #[arg(long)]
        all: bool,
    },
    /// Write an image as an archive of which hosts read only the layers that they lack; needs no agent
    Pack {
        /// An image, as a service file names it, or the path of an archive
        #[arg(value_name = "IMAGE|ARCHIVE")]
        image: String,
        /// The archive to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Write over a file that is there
        #[arg(long)]
        force: bool,
    },
    /// List images: what they take on the disk, alone and with others, and which services need them
    Images,
    /// Remove images that nothing needs, by the `images` section of the configuration; the agent does so by itself too
    Gc {
        /// Only list them
        #[arg(long)]
        dry_run: bool,
    },
    /// Check every layer against what was unpacked; changes nothing without --repair. Exit 0 sound, 1 damaged
    Fsck {
        /// Read every file, at low priority; else only names, owners, modes, sizes and times are looked at
        #[arg(long)]
        full: bool,
        /// Get what is damaged again, layer by layer, while containers run
        #[arg(long)]
        repair: bool,
    },
    /// Show every host against the branch's head: from git alone, in any clone; needs no agent and no root
    Fleet(super::fleet::Wanted),
    /// Not in this version: check this host
    #[command(hide = true)]
    Doctor(Later),
    /// Print a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Print the man page; with DIR, write one page a verb into it
    Man {
        /// Where to
        dir: Option<PathBuf>,
    },
}

/// Whatever is said to a verb that is not there yet.
#[derive(Debug, clap::Args)]
pub struct Later {
    /// Taken, and answered with the truth.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

fn duration(text: &str) -> Result<Duration, crate::types::Invalid> {
    crate::types::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        super::Args::command().debug_assert();
    }
}
