//! Changes in place: what a running container takes over without a new generation.

use super::next::wait;
use super::record::{Deployed, ServiceRecord, Spec};
use super::step::{Amendment, Next, Step};
use super::view::View;
use super::{changes, ports, preflight};
use crate::types::{ByteSize, CommitInfo, ServiceSpec};

/// What makes the incumbent what `spec` says, if it can stay: nothing, a change in place, or the wait for one. `None`: it
/// takes a new generation.
pub(super) fn in_place(
    view: &View<'_>,
    incumbent: &Deployed,
    spec: &Spec,
    commit: &CommitInfo,
) -> Option<Next> {
    let differences = changes::between(&incumbent.spec, spec);
    if changes::need_new_generation(&differences) {
        return None;
    }
    if differences.is_empty() && incumbent.spec == *spec && incumbent.amending.is_none() {
        return Some(Next::Settled);
    }
    if incumbent.amending.as_ref().is_some_and(|it| it.refused.is_some() && it.commit == commit.id) {
        return None;
    }
    let used =
        incumbent.instances(view.name).filter_map(|id| view.observed.room.used.get(&id).copied()).max();
    if too_small(&incumbent.spec, spec, used).is_some() {
        return None;
    }
    let wanted_back = || ports::wanted_back(view, &spec.ports).map(wait);
    if let Some(held) = preflight::ports(view, spec)
        .or_else(wanted_back)
        .or_else(|| preflight::before_scale(view, incumbent, spec))
    {
        return Some(held);
    }
    // What does not run is started with all of it, and gets its rules then.
    let touches = view.any_runs(incumbent)
        && (incumbent.amending.is_some() || differences.iter().any(changes::Difference::touches));
    let (generation, spec, commit) = (incumbent.generation, spec.clone(), commit.clone());
    let amendment = Amendment { generation, spec, commit, differences, touches };
    Some(Next::Do(Step::Amend(Box::new(amendment))))
}

/// Undoes what a change in place that was begun has left behind, where nobody can say any more that it is wanted: at rest the
/// kernel has what the record says.
pub(super) fn take_back(view: &View<'_>, record: &ServiceRecord) -> Option<Next> {
    let incumbent = record.incumbent.as_ref()?;
    incumbent.amending.as_ref().filter(|begun| begun.refused.is_none())?;
    let (spec, commit) = (incumbent.spec.clone(), incumbent.commit.clone());
    let (generation, touches) = (incumbent.generation, view.any_runs(incumbent));
    let amendment = Amendment { generation, spec, commit, differences: Vec::new(), touches };
    Some(Next::Do(Step::Amend(Box::new(amendment))))
}

/// Why a smaller limit of memory would kill what runs: it uses more already. A new generation begins small, is proved
/// with the new limit, and leaves what runs alone until then.
pub fn too_small<I, J>(before: &ServiceSpec<I>, after: &ServiceSpec<J>, used: Option<u64>) -> Option<String> {
    let (limit, used) = (after.mem_limit?, used?);
    let lowered = before.mem_limit.is_none_or(|before| limit < before);
    (lowered && used > limit.0).then(|| {
        let [used, limit] = [used, limit.0].map(|bytes| ByteSize(bytes).human());
        format!("it uses {used} now, and may have {limit}")
    })
}
