//! Roles that profiles take by other credentials: `AssumeRole` (docs.aws.amazon.com, "Assume role credential provider",
//! and the STS API reference). Those may be a role's in turn.

use rusty_s3::Credentials;

use super::settings::{self, Profile};
use super::{Given, auth, endpoints, of_profile, sts};
use crate::registry::PullError;
use crate::registry::http::Door;
use crate::types::Timestamp;

/// Roles that are taken one by the other.
const MOST: usize = 5;

/// Seconds that credentials of a role may be good for (STS API reference, `DurationSeconds`).
const SECONDS: std::ops::RangeInclusive<u32> = 900..=43200;

/// What is to be taken.
#[derive(Debug)]
pub(super) struct Roles {
    /// The first is the one that is wanted. Each is taken by the credentials of the next, the last by `source`.
    roles: Vec<Role>,
    source: Source,
}

/// Whose credentials are there to begin with.
#[derive(Debug, PartialEq)]
enum Source {
    Profile(Profile),
    Environment,
    Instance,
    Container,
}

#[derive(Debug)]
struct Role {
    /// For messages.
    profile: String,
    arn: String,
    session: String,
    external_id: Option<String>,
    seconds: Option<String>,
}

/// A profile as it is found by its name.
type Find<'a> = &'a dyn Fn(&str) -> Result<Option<Profile>, PullError>;

impl Roles {
    /// As a profile has it; `None` = it takes none, or by a web identity.
    pub fn of(profile: &Profile) -> Result<Option<Self>, PullError> {
        if !takes_role(profile) {
            return Ok(None);
        }
        follow(profile, &settings::named).map(Some)
    }

    /// Whether it all begins with what the environment holds.
    pub fn begin_with_environment(&self) -> bool {
        self.source == Source::Environment
    }

    /// Asks for them.
    pub async fn credentials(
        &self,
        door: &Door,
        region: &str,
    ) -> Result<(Credentials, Option<Timestamp>), PullError> {
        let mut held = self.source.credentials(door, region).await?;
        for role in self.roles.iter().rev() {
            held = role.assume(&held.0, door, region).await?;
        }
        Ok(held)
    }
}

fn takes_role(profile: &Profile) -> bool {
    profile.get("role_arn").is_some() && profile.get("web_identity_token_file").is_none()
}

/// Goes from one profile to the next.
fn follow(profile: &Profile, find: Find<'_>) -> Result<Roles, PullError> {
    let (mut profile, mut roles, mut names) = (profile.clone(), Vec::new(), Vec::new());
    loop {
        roles.push(Role::of(&profile)?);
        names.push(profile.name().to_owned());
        let source = match (profile.get("source_profile"), profile.get("credential_source")) {
            (Some(_), Some(_)) => {
                let what =
                    format!("{profile}: of `source_profile` and `credential_source` it has to have one");
                return Err(auth(what));
            }
            (None, None) => {
                let what = format!(
                    "{profile}: `role_arn` takes source_profile, credential_source or web_identity_token_file beside it"
                );
                return Err(auth(what));
            }
            (None, Some("Environment")) => Source::Environment,
            (None, Some("Ec2InstanceMetadata")) => Source::Instance,
            (None, Some("EcsContainer")) => Source::Container,
            (None, Some(other)) => {
                let what = format!(
                    "{profile}: `credential_source` is Environment, Ec2InstanceMetadata or EcsContainer, and not `{other}`"
                );
                return Err(auth(what));
            }
            (Some(name), None) => {
                let next = find(name)?.ok_or_else(|| {
                    auth(format!(
                        "{profile}: source_profile names `{name}`, which is in neither of AWS's shared files"
                    ))
                })?;
                // One with keys of its own is taken at its word; it may be the profile itself.
                if next.keys().is_some() || !takes_role(&next) {
                    Source::Profile(next)
                } else if names.iter().any(|known| known == next.name()) {
                    names.push(next.name().to_owned());
                    let circle = names.join(" -> ");
                    return Err(auth(format!("{profile}: source_profile leads in a circle: {circle}")));
                } else if roles.len() == MOST {
                    let what = format!("{profile}: more than {MOST} roles are taken one by the other");
                    return Err(auth(what));
                } else {
                    profile = next;
                    continue;
                }
            }
        };
        return Ok(Roles { roles, source });
    }
}

impl Source {
    async fn credentials(
        &self,
        door: &Door,
        region: &str,
    ) -> Result<(Credentials, Option<Timestamp>), PullError> {
        let (found, none) = match self {
            Self::Profile(profile) => {
                (of_profile(profile, door, region).await?, format!("{profile}: it holds no credentials"))
            }
            Self::Environment => (
                Credentials::from_env().map(|found| (found, None)),
                "credential_source is Environment, which has no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .to_owned(),
            ),
            Self::Instance => (
                endpoints::instance().await?.map(Given::into_parts),
                "credential_source is Ec2InstanceMetadata, and this is no instance with a role".to_owned(),
            ),
            Self::Container => (
                endpoints::container().await?.map(Given::into_parts),
                "credential_source is EcsContainer, and the environment names no endpoint of a container"
                    .to_owned(),
            ),
        };
        found.ok_or_else(|| auth(none))
    }
}

impl Role {
    fn of(profile: &Profile) -> Result<Self, PullError> {
        let get = |key: &str| profile.get(key).map(str::to_owned);
        if profile.get("mfa_serial").is_some() {
            return Err(super::unknown(profile, "mfa_serial"));
        }
        let seconds = get("duration_seconds");
        if let Some(text) = &seconds
            && !text.parse().is_ok_and(|number: u32| SECONDS.contains(&number))
        {
            let (least, most) = SECONDS.into_inner();
            let what =
                format!("{profile}: `duration_seconds` is a number from {least} to {most}, and not `{text}`");
            return Err(auth(what));
        }
        Ok(Self {
            profile: profile.to_string(),
            arn: get("role_arn").unwrap_or_default(),
            session: get("role_session_name").unwrap_or_else(|| sts::SESSION.to_owned()),
            external_id: get("external_id"),
            seconds,
        })
    }

    async fn assume(
        &self,
        by: &Credentials,
        door: &Door,
        region: &str,
    ) -> Result<(Credentials, Option<Timestamp>), PullError> {
        let failed = |why: &dyn std::fmt::Display| {
            auth(format!("{}: taking the role {}: {why}", self.profile, self.arn))
        };
        let mut pairs = vec![
            ("Action", "AssumeRole"),
            ("Version", sts::VERSION),
            ("RoleArn", &self.arn),
            ("RoleSessionName", &self.session),
        ];
        pairs.extend(self.external_id.as_deref().map(|id| ("ExternalId", id)));
        pairs.extend(self.seconds.as_deref().map(|seconds| ("DurationSeconds", seconds)));
        sts::ask(door, region, &pairs, Some(by), &failed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
[profile app]\nrole_arn = arn:app\nsource_profile = jump\nexternal_id = x y\nrole_session_name = web-1\nduration_seconds = 900\n\
[profile jump]\nrole_arn = arn:jump\nsource_profile = base\n\
[profile base]\naws_access_key_id = A\naws_secret_access_key = B\nrole_arn = arn:unused\n\
[profile itself]\nrole_arn = arn:itself\nsource_profile = itself\naws_access_key_id = A\naws_secret_access_key = B\n\
[profile round]\nrole_arn = arn:1\nsource_profile = trip\n[profile trip]\nrole_arn = arn:2\nsource_profile = round\n\
[profile alone]\nrole_arn = arn:1\nsource_profile = alone\n\
[profile instance]\nrole_arn = arn:1\ncredential_source = Ec2InstanceMetadata\n\
[profile container]\nrole_arn = arn:1\ncredential_source = EcsContainer\n\
[profile environment]\nrole_arn = arn:1\ncredential_source = Environment\n\
[profile wrong]\nrole_arn = arn:1\ncredential_source = environment\n\
[profile both]\nrole_arn = arn:1\ncredential_source = Environment\nsource_profile = base\n\
[profile half]\nrole_arn = arn:1\n\
[profile lost]\nrole_arn = arn:1\nsource_profile = none\n\
[profile code]\nrole_arn = arn:1\nsource_profile = base\nmfa_serial = arn:mfa\n\
[profile long]\nrole_arn = arn:1\nsource_profile = base\nduration_seconds = 99999\n\
[profile web]\nrole_arn = arn:1\nweb_identity_token_file = /x\n\
[profile 0]\nrole_arn = arn:1\nsource_profile = 1\n[profile 1]\nrole_arn = arn:1\nsource_profile = 2\n\
[profile 2]\nrole_arn = arn:1\nsource_profile = 3\n[profile 3]\nrole_arn = arn:1\nsource_profile = 4\n\
[profile 4]\nrole_arn = arn:1\nsource_profile = 5\n[profile 5]\nrole_arn = arn:1\nsource_profile = base\n";

    fn roles(name: &str) -> Result<Roles, String> {
        let find = |name: &str| Ok(settings::of_profile(name, CONFIG, ""));
        follow(&find(name).unwrap().unwrap(), &find).map_err(|error| error.to_string())
    }

    #[test]
    fn roles_are_taken_one_by_the_other() {
        let app = roles("app").unwrap();
        let arns: Vec<&str> = app.roles.iter().map(|role| role.arn.as_str()).collect();
        assert_eq!(arns, ["arn:app", "arn:jump"]);
        let Role { session, external_id, seconds, .. } = &app.roles[0];
        assert_eq!(
            (session.as_str(), external_id.as_deref(), seconds.as_deref()),
            ("web-1", Some("x y"), Some("900"))
        );
        assert_eq!(app.roles[1].session, "gitopsd");
        let begin = |name: &str| match roles(name).unwrap().source {
            Source::Profile(profile) => profile.name().to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!([begin("app"), begin("itself"), begin("1")], ["base", "itself", "base"]);
        assert_eq!(
            [begin("instance"), begin("container"), begin("environment")],
            ["Instance", "Container", "Environment"]
        );
        assert!(!takes_role(&settings::of_profile("web", CONFIG, "").unwrap()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (name, said) in [
            (
                "round",
                "`trip` of AWS's shared files: source_profile leads in a circle: round -> trip -> round",
            ),
            ("alone", "source_profile leads in a circle: alone -> alone"),
            ("wrong", "and not `environment`"),
            ("both", "of `source_profile` and `credential_source` it has to have one"),
            ("half", "`half` of AWS's shared files: `role_arn` takes source_profile, credential_source or"),
            ("lost", "source_profile names `none`, which is in neither"),
            ("code", "`mfa_serial` is a way to credentials"),
            ("long", "`duration_seconds` is a number from 900 to 43200, and not `99999`"),
            ("0", "more than 5 roles"),
        ] {
            let error = roles(name).unwrap_err();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
