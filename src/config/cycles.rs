//! `depends_on` that goes round in a circle.

use std::collections::BTreeMap;

use crate::types::{Declared, ServiceName};

/// The way from `from` to `to` along what each needs, both ends included; `None`: there is none.
pub(super) fn path<'a>(
    specs: &'a BTreeMap<ServiceName, Declared>,
    from: &'a ServiceName,
    to: &ServiceName,
) -> Option<Vec<&'a ServiceName>> {
    let mut came: BTreeMap<&ServiceName, Option<&ServiceName>> = BTreeMap::from([(from, None)]);
    let mut next = std::collections::VecDeque::from([from]);
    while let Some(name) = next.pop_front() {
        if name == to {
            let mut way = vec![name];
            while let Some(Some(before)) = way.last().and_then(|last| came.get(*last)) {
                way.push(before);
            }
            way.reverse();
            return Some(way);
        }
        for needed in specs.get(name).into_iter().flat_map(|spec| spec.needs()) {
            if !came.contains_key(needed) {
                came.insert(needed, Some(name));
                next.push_back(needed);
            }
        }
    }
    None
}

/// For people: `web -> db -> web`.
pub(super) fn shown(first: &ServiceName, way: &[&ServiceName]) -> String {
    let names: Vec<&str> = [first].into_iter().chain(way.iter().copied()).map(ServiceName::as_str).collect();
    names.join(" -> ")
}
