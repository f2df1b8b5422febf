//! The host's time zones: the only place that knows where they are.
//!
//! Source: tzfile(5), localtime(5).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::tz::TimeZone;

use crate::types::Zones;

const DATABASE: &str = "/usr/share/zoneinfo";
const LOCAL: &str = "/etc/localtime";

/// No zone's file is larger.
const MAX_FILE: u64 = 1 << 20;

fn path_of(name: &str) -> PathBuf {
    if name.is_empty() { PathBuf::from(LOCAL) } else { Path::new(DATABASE).join(name) }
}

/// Whether `name`, which has passed its validator, can be a time zone. Where there is no database at all it may be one
/// of the hosts'.
pub(super) fn may_be(name: &str) -> bool {
    name == "UTC" || !Path::new(DATABASE).is_dir() || path_of(name).is_file()
}

/// The zones that were read, and of when their files are.
#[derive(Debug, Default)]
pub struct ZoneCache {
    read: BTreeMap<String, (Option<SystemTime>, Option<TimeZone>)>,
}

impl ZoneCache {
    /// These zones as the host has them now; `""` = its own. A file that has changed is read again.
    pub fn get<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Zones {
        let mut zones = Zones::default();
        for name in names {
            let path = path_of(name);
            // Of what the link leads to: that is replaced when the database is renewed.
            let changed = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
            let known = self.read.get(name).filter(|(at, _)| *at == changed);
            let zone = match known {
                Some((_, zone)) => zone.clone(),
                None => {
                    let zone = read(name, &path);
                    self.read.insert(name.to_owned(), (changed, zone.clone()));
                    zone
                }
            };
            if let Some(zone) = zone {
                zones.0.insert(name.to_owned(), zone);
            }
        }
        zones
    }
}

fn read(name: &str, path: &Path) -> Option<TimeZone> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.ok()?;
    TimeZone::tzif(if name.is_empty() { "Local" } else { name }, &bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_once_and_unknown_ones_are_left_out() {
        let mut cache = ZoneCache::default();
        let zones = cache.get(["Europe/Berlin", "Europe/Nowhere"]);
        assert_eq!(zones.get(Some("Europe/Nowhere")), None);
        let berlin = zones.get(Some("Europe/Berlin")).unwrap();
        let summer = berlin.to_datetime("2026-07-01T00:00:00Z".parse().unwrap());
        assert_eq!(summer.to_string(), "2026-07-01T02:00:00");
        assert_eq!(cache.get(["Europe/Berlin"]), Zones([("Europe/Berlin".to_owned(), berlin)].into()));
        assert_eq!(zones.get(Some("UTC")), Some(TimeZone::UTC));
        assert!(may_be("Europe/Berlin") && !may_be("Europe/Nowhere"));
    }
}
