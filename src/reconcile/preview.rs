//! What would change: the whole way, not only the next step. For `gitopsd plan`.

use std::collections::BTreeMap;
use std::fmt;

use super::changes::{self, Difference, summary};
use super::joined::left_behind;
use super::pins::unpinned;
use super::ports::{self, Claim, Claims};
use super::record::ServiceRecord;
use super::{batches, exchange};
use crate::types::{Declared, Deploy, ImageRef, Refusal, ServiceName, Share, Strategy};

/// What a revision would do to one service.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing.
    Keep {
        /// What runs.
        image: ImageRef,
    },
    /// It runs for the first time.
    Create {
        /// What will run.
        image: ImageRef,
    },
    /// A new generation takes over.
    Replace {
        /// What runs.
        from: ImageRef,
        /// What will run.
        to: ImageRef,
        /// Why, in a line.
        because: String,
        /// How.
        strategy: Strategy,
        /// All that differs.
        differences: Vec<Difference>,
        /// Why so, where nobody asked for it.
        alone: Option<String>,
        /// The part of new connections that it gets first.
        first: Option<Share>,
        /// How many containers are replaced at a time, of how many; `None`: all at once.
        batch: Option<(u32, u32)>,
    },
    /// New settings, the same container.
    Amend {
        /// What runs.
        image: ImageRef,
        /// All that differs.
        differences: Vec<Difference>,
    },
    /// It goes.
    Remove {
        /// What runs.
        image: Option<ImageRef>,
    },
    /// It stays as it is, because.
    Refuse(Refusal),
}

impl Change {
    /// What becomes of a service that runs `image` as `running` declares it, and is declared anew.
    pub fn between(image: ImageRef, running: &Declared, declared: &Declared) -> Self {
        let differences = changes::between_declared(running, declared);
        match changes::need_new_generation(&differences) {
            true => Self::Replace {
                from: image,
                to: declared.image.clone(),
                because: summary(&differences),
                strategy: declared.strategy(),
                differences,
                alone: declared.alone_because(),
                first: declared.deploy.canary.map(|canary| canary.share),
                batch: batch(&declared.deploy),
            },
            false if running == declared => Self::Keep { image },
            false => Self::Amend { image, differences },
        }
    }

    /// Whether the host would not stay as it is.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Keep { .. } | Self::Refuse(_))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep { image } => write!(f, "keep     {image}"),
            Self::Create { image } => write!(f, "create   {image}"),
            Self::Replace { from, to, because, strategy, alone, first, batch, .. } => {
                f.write_str("replace  ")?;
                if from != to {
                    write!(f, "{from} by ")?;
                }
                write!(f, "{to} ({strategy}")?;
                if let Some(why) = alone {
                    write!(f, ", as {why}")?;
                }
                if let Some(share) = first {
                    write!(f, ", {share} of new connections first")?;
                }
                if let Some((some, all)) = batch {
                    write!(f, ", {some} of {all} containers at a time")?;
                }
                write!(f, "): {because}")
            }
            Self::Amend { image, differences } => {
                write!(f, "amend    {image} (the same container): {}", summary(differences))
            }
            Self::Remove { image: Some(image) } => write!(f, "remove   {image}"),
            Self::Remove { image: None } => f.write_str("remove"),
            Self::Refuse(refusal) => write!(f, "refuse   {refusal}"),
        }
    }
}

/// How many containers are replaced at a time, of how many.
pub fn batch(deploy: &Deploy) -> Option<(u32, u32)> {
    batches::at_a_time(deploy).map(|some| (some, deploy.replicas))
}

/// Compares what is declared with what the records say runs. Tags are compared as written: looking them up is the
/// agent's work, and needs the registry.
pub fn preview(
    declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    records: &BTreeMap<ServiceName, ServiceRecord>,
) -> BTreeMap<ServiceName, Change> {
    let mut claims = Claims::new();
    for name in records.keys().chain(declared.keys()) {
        let wants = match declared.get(name) {
            Some(Ok(spec)) => Some(&spec.ports[..]),
            Some(Err(_)) => None,
            None => Some(&[][..]),
        };
        claims.insert(name, Claim { wants, ..Claim::of(records.get(name)) });
    }
    let mut changes = BTreeMap::new();
    for (name, wanted) in declared {
        let incumbent = records.get(name).and_then(|record| record.incumbent.as_ref());
        let contested = wanted.as_ref().ok().and_then(|spec| ports::refusal(&claims, name, &spec.ports));
        let wanted = match contested.or_else(|| exchange::declared_refusal(declared, records, name)) {
            Some(refusal) => Err(refusal),
            None => wanted.as_ref().map_err(Clone::clone),
        };
        let change = match (wanted, incumbent) {
            (Err(refusal), _) => Change::Refuse(refusal),
            (Ok(spec), None) => Change::Create { image: spec.image.clone() },
            (Ok(spec), Some(incumbent)) => {
                let running = unpinned(&incumbent.spec);
                Change::between(running.image.clone(), &running, spec)
            }
        };
        changes.insert(name.clone(), change);
    }
    follow(&mut changes, declared, records);
    let gone = |(name, record): &(&ServiceName, &ServiceRecord)| {
        !declared.contains_key(*name) && !record.is_absent()
    };
    for (name, record) in records.iter().filter(gone) {
        let image = record.incumbent.as_ref().map(|incumbent| incumbent.spec.image.reference.clone());
        changes.insert(name.clone(), Change::Remove { image });
    }
    changes
}

/// Whoever shares the network of a service that is replaced follows it; and whoever is in one that was replaced before.
pub fn follow(
    changes: &mut BTreeMap<ServiceName, Change>,
    declared: &BTreeMap<ServiceName, Result<Declared, Refusal>>,
    records: &BTreeMap<ServiceName, ServiceRecord>,
) {
    for (name, spec) in declared.iter().filter_map(|(name, spec)| Some((name, spec.as_ref().ok()?))) {
        let moves = spec.joins().and_then(|host| changes.get(host));
        let incumbent = records.get(name).and_then(|record| record.incumbent.as_ref());
        let left_behind = incumbent.is_some_and(|incumbent| left_behind(records, incumbent).is_some());
        if !left_behind && !matches!(moves, Some(Change::Replace { .. })) {
            continue;
        }
        if let Some(change) = changes.get_mut(name)
            && let Change::Keep { image } | Change::Amend { image, .. } = change
        {
            let (from, to) = (image.clone(), image.clone());
            let because = "new generation: the network that it shares is another one".to_owned();
            let differences = Vec::new();
            let (strategy, alone) = (spec.strategy(), spec.alone_because());
            let (first, batch) = (None, None);
            *change = Change::Replace { from, to, because, strategy, differences, alone, first, batch };
        }
    }
}
