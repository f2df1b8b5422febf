//! Which change of a spec needs a new container.

use super::record::Spec;
use crate::types::ServiceSpec;

/// Why going from `before` to `after` needs a new generation: the first difference that a running container cannot
/// take over, by its key in the service file. `None`: the container can stay.
///
/// Both are taken apart without `..`: a new field does not compile until somebody decides.
pub fn replacement_reason<I: PartialEq>(
    before: &ServiceSpec<I>,
    after: &ServiceSpec<I>,
) -> Option<&'static str> {
    let ServiceSpec {
        image,
        fallback: _, // only where the image comes from: the same bytes
        entrypoint,
        command,
        environment,
        user,
        working_dir,
        ports,
        volumes,
        configs,
        depends_on: _,        // only the order of starts
        restart: _,           // read when it has ended
        schedule,             // one that has none runs all the time
        stop_grace_period: _, // read when it is stopped
        mem_limit,
        milli_cpus,
        pids_limit,
        options,
        healthcheck: _, // read by the probes
        deploy: _,      // read by the next rollout
    } = before;
    let changed = [
        ("image", *image != after.image),
        ("entrypoint", *entrypoint != after.entrypoint),
        ("command", *command != after.command),
        ("environment", *environment != after.environment),
        ("user", *user != after.user),
        ("working_dir", *working_dir != after.working_dir),
        ("ports", *ports != after.ports),
        ("volumes", *volumes != after.volumes),
        ("configs", *configs != after.configs),
        ("mem_limit", *mem_limit != after.mem_limit),
        ("cpus", *milli_cpus != after.milli_cpus),
        ("pids_limit", *pids_limit != after.pids_limit),
        ("schedule", schedule.is_some() != after.schedule.is_some()),
    ];
    let key = changed.iter().find(|(_, differs)| *differs).map(|(key, _)| *key);
    key.or_else(|| options.first_difference(&after.options))
}

/// [`replacement_reason`] for pinned specs. The same digest under another tag is the same container.
pub fn needs_new_generation(before: &Spec, after: &Spec) -> Option<&'static str> {
    let mut before = before.clone();
    if before.image.digest == after.image.digest {
        before.image = after.image.clone();
    }
    replacement_reason(&before, after)
}
