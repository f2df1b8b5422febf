//! The host's own configuration: `/etc/gitopsd/gitopsd.toml` and `conf.d/*.toml` beside it. Never from git.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::{CommitId, HostName, Policy, SafeUrl, Timestamp};

/// All of it, validated, with defaults filled in.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// What survives a reboot.
    pub state_dir: PathBuf,
    /// What does not.
    pub run_dir: PathBuf,
    /// Names the bridge, the nft table and the cgroup, so that several agents can share a machine.
    pub instance: String,
    /// Where the truth is.
    pub repo: RepoConfig,
    /// Who this host is.
    pub host: HostIdentity,
    /// How containers run.
    pub engine: EngineConfig,
    /// How to talk to each registry, by its `host[:port]`.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Where `s3://` is.
    pub s3: S3Config,
    /// What the repo may ask for.
    pub policy: Policy,
    /// How long images are kept.
    pub images: ImagesConfig,
    /// Whether layers are kept as they came, beside what they unpacked to.
    pub keep_blobs: bool,
    /// Whether a tag stands for what the first host of the fleet found that it does.
    pub follow: bool,
    /// How often the tags of what runs are looked at again, to say that they moved; `None`: never.
    pub check_tags: Option<Duration>,
    /// Where results go.
    pub report: ReportConfig,
    /// Where forges may say that the repo has moved.
    pub webhook: Option<WebhookConfig>,
    /// Which forge shows what became of a commit here.
    pub status: Option<ForgeConfig>,
    /// The files of the secrets that services may ask for, by name.
    pub secrets: BTreeMap<String, PathBuf>,
}

/// `[repo]`
#[derive(Debug, Clone)]
pub struct RepoConfig {
    /// https, ssh, a local path or file://.
    pub url: SafeUrl,
    /// The branch that is followed.
    pub branch: String,
    /// Folder of the repo that holds `gitopsd.toml`; `.` = its root.
    pub path: String,
    /// From one look to the next; each host adds its own splay.
    pub poll: Duration,
    /// The repository must call itself this, where it is set.
    pub repo_id: Option<String>,
    /// Private key for ssh.
    pub ssh_key: Option<PathBuf>,
    /// Host keys for ssh; default: root's and the system's.
    pub known_hosts: Option<PathBuf>,
    /// For https (and ssh, default `git`).
    pub username: Option<String>,
    /// For https.
    pub password_file: Option<PathBuf>,
    /// For https: a bearer of the password's place, as forges hand them out.
    pub token_file: Option<PathBuf>,
    /// For https: a program, and its arguments, that is asked for both (gitcredentials(7)).
    pub credential_helper: Vec<String>,
    /// Authorities to trust for https, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Which of its commits are believed.
    pub trust: TrustConfig,
}

impl RepoConfig {
    /// A repo of which nothing but its address is said.
    pub fn new(url: SafeUrl) -> Self {
        Self {
            url,
            branch: "main".to_owned(),
            path: ".".to_owned(),
            poll: Duration::from_secs(30),
            repo_id: None,
            ssh_key: None,
            known_hosts: None,
            username: None,
            password_file: None,
            token_file: None,
            credential_helper: Vec::new(),
            ca_file: None,
            trust: TrustConfig::default(),
        }
    }
}

/// The keys of `[repo]` that say which commits are believed, beside that each descends from the one before.
#[derive(Debug, Clone, Default)]
pub struct TrustConfig {
    /// Who has to have signed them; `None`: nobody.
    pub signatures: Option<SignatureConfig>,
    /// What the first commit that this host ever believes has to descend from.
    pub first_commit: Option<CommitId>,
    /// What it may not be older than.
    pub min_commit_time: Option<Timestamp>,
    /// The repo promises a commit at least that often: an older head is told of.
    pub max_age: Option<Duration>,
}

/// Who may sign commits.
#[derive(Debug, Clone, Default)]
pub struct SignatureConfig {
    /// OpenSSH's file of allowed signers; `None`: no SSH signature counts.
    pub allowed_signers: Option<PathBuf>,
    /// OpenPGP keys, armored or not; `None`: no OpenPGP signature counts.
    pub trusted_keys: Option<PathBuf>,
    /// Keys, or their fingerprints, that count no more.
    pub revoked_signers: Option<PathBuf>,
    /// Only the branch's head has to be signed; else every commit on its first-parent path since the last one believed.
    pub head_only: bool,
}

/// `[host]`
#[derive(Debug, Clone)]
pub struct HostIdentity {
    /// Default: the host's name.
    pub name: HostName,
    /// `key=value` each.
    pub labels: Vec<String>,
}

/// `[engine]`
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// First address of the subnet and its prefix length: containers and service addresses.
    pub subnet: (std::net::Ipv4Addr, u8),
    /// Whether containers have IPv6 where the host uses it.
    pub ipv6: bool,
    /// Where their IPv6 addresses are from: a network of 64 bits; `None` = one of this machine's own.
    pub subnet6: Option<std::net::Ipv6Addr>,
    /// Name or absolute path of an OCI runtime of the host; `None` = the built-in one.
    pub runtime: Option<String>,
    /// First number and count of the users and groups of the host that are for containers; `None` = none are.
    pub subuids: Option<(u32, u32)>,
}

/// `[registry."host:port"]`
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Talk http.
    pub plain_http: bool,
    /// Authorities to trust, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Addresses to try first, in order: `http://10.0.0.5:5000`.
    pub mirrors: Vec<SafeUrl>,
    /// For basic authentication.
    pub username: Option<String>,
    /// For basic authentication.
    pub password_file: Option<PathBuf>,
    /// A bearer token that the registry takes as it is.
    pub token_file: Option<PathBuf>,
    /// Docker's `config.json`, instead of root's own.
    pub docker_config: Option<PathBuf>,
    /// Certificate that this host shows; with `client_key`.
    pub client_cert: Option<PathBuf>,
    /// Its key.
    pub client_key: Option<PathBuf>,
    /// `host[:port]` of token services outside of the registry's own domain that may see its credentials.
    pub realms: Vec<String>,
}

/// `[images]`: how long images are kept that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesConfig {
    /// After their last use.
    pub keep: Duration,
    /// So many of each repository are kept in any case, but where space is short.
    pub keep_count: usize,
    /// Where less is free, images go before their time.
    pub min_free: MinFree,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self { keep: Duration::from_secs(7 * 86400), keep_count: 3, min_free: MinFree::Percent(10) }
    }
}

/// Room that is to be free on the file system of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Hundredths of it.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

/// `[s3]`
#[derive(Debug, Clone, Default)]
pub struct S3Config {
    /// Default: that of AWS in the region.
    pub endpoint: Option<SafeUrl>,
    /// Default: `AWS_REGION`, then us-east-1.
    pub region: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// Authorities to trust beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[report]`
#[derive(Debug, Clone)]
pub struct ReportConfig {
    /// Whether receipts are pushed to the repo's remote as git notes.
    pub push: bool,
    /// Where to, if not to `repo.url`.
    pub remote: Option<SafeUrl>,
    /// OpenSSH private key that they are signed with; `None`: they are not signed.
    pub key: Option<PathBuf>,
    /// What `remote` is shown, if not what the repo is.
    pub access: Option<RemoteAccess>,
    /// How many of the last lines of a generation that is given up go into its receipt; 0: none.
    pub log_lines: usize,
}

/// The keys of `[report]` that say how `report.remote` is reached: those of `[repo]`, for another place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteAccess {
    /// Private key for ssh.
    pub ssh_key: Option<PathBuf>,
    /// Host keys for ssh; default: root's and the system's.
    pub known_hosts: Option<PathBuf>,
    /// For https (and ssh, default `git`).
    pub username: Option<String>,
    /// For https.
    pub password_file: Option<PathBuf>,
    /// For https.
    pub token_file: Option<PathBuf>,
    /// For https.
    pub credential_helper: Vec<String>,
    /// Authorities to trust for https, beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// `[webhook]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where it listens.
    pub listen: Listen,
    /// What deliveries are signed with: one secret a line.
    pub secret_file: PathBuf,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// At this address.
    Address(std::net::SocketAddr),
    /// At the socket that systemd hands over (systemd.socket(5)).
    Systemd,
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "systemd" {
            return Ok(Self::Systemd);
        }
        let address = text.parse().map(Self::Address);
        address.map_err(|_| {
            "it takes an address with a port, as \"127.0.0.1:9000\" or \"[::1]:9000\", or \"systemd\""
                .to_owned()
        })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Systemd => f.write_str("the socket of systemd"),
        }
    }
}

/// `[status]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgeConfig {
    /// Whose API it is.
    pub forge: Forge,
    /// The address of the repository there, as a browser has it.
    pub url: SafeUrl,
    /// What the forge knows this host by.
    pub token_file: PathBuf,
    /// Authorities to trust, beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// A forge that shows the status of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forge {
    /// github.com, and GitHub Enterprise Server.
    GitHub,
    /// gitlab.com, and GitLab of one's own.
    GitLab,
    /// Gitea, Forgejo, Codeberg.
    Gitea,
}

impl std::str::FromStr for Forge {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "github" => Ok(Self::GitHub),
            "gitlab" => Ok(Self::GitLab),
            "gitea" | "forgejo" => Ok(Self::Gitea),
            _ => Err("it takes \"github\", \"gitlab\", \"gitea\" or \"forgejo\""),
        }
    }
}
