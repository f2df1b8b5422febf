//! Whether a change of a spec needs a new container. Which key does is the table in [`super::changes`].

use super::changes::{self, How};
use super::record::Spec;

/// Why going from `before` to `after` needs a new generation: the first key, as in the service file, that a running
/// container cannot take over. `None`: the container can stay.
pub fn needs_new_generation(before: &Spec, after: &Spec) -> Option<&'static str> {
    let differences = changes::between(before, after);
    differences
        .iter()
        .find(|difference| difference.how == How::NewGeneration)
        .map(|difference| difference.key)
}
