//! `[images]` of the host's configuration: how long images are kept that nothing needs.

use std::time::Duration;

use super::agent::{ImagesConfig, MinFree};
use super::section::Section;
use crate::types::ByteSize;

/// One file's part.
#[derive(Debug, Default)]
pub(super) struct ImagesPart {
    keep: Option<Duration>,
    keep_count: Option<usize>,
    min_free: Option<MinFree>,
    /// Whether a tag stands for what the first host of the fleet found that it does.
    pub follow: Option<bool>,
    /// How often the tags of what runs are looked at again.
    pub check_tags: Option<Duration>,
    /// Whether layers are kept as they came, too.
    pub keep_blobs: Option<bool>,
}

impl ImagesPart {
    pub fn read(section: &Section<'_, '_>) -> Self {
        let part = Self {
            keep: section.duration("keep"),
            keep_count: section
                .integer("keep_count", 0..=1_000_000)
                .and_then(|number| usize::try_from(number).ok()),
            min_free: section.string("min_free").and_then(|text| {
                let parsed = min_free(&text);
                if parsed.is_none() {
                    let message = "`min_free` takes a part, as \"10%\", or a size, as \"5g\"";
                    section.findings.error(section.key_span("min_free"), message, None);
                }
                parsed
            }),
            follow: section.boolean("follow"),
            check_tags: section.duration("check_tags"),
            keep_blobs: section.boolean("keep_blobs"),
        };
        section.finish(|_| None);
        part
    }

    /// This part, with `over` on top of it.
    pub fn under(self, over: Self) -> Self {
        Self {
            keep: over.keep.or(self.keep),
            keep_count: over.keep_count.or(self.keep_count),
            min_free: over.min_free.or(self.min_free),
            follow: over.follow.or(self.follow),
            check_tags: over.check_tags.or(self.check_tags),
            keep_blobs: over.keep_blobs.or(self.keep_blobs),
        }
    }

    pub fn finish(self) -> ImagesConfig {
        let default = ImagesConfig::default();
        ImagesConfig {
            keep: self.keep.unwrap_or(default.keep),
            keep_count: self.keep_count.unwrap_or(default.keep_count),
            min_free: self.min_free.unwrap_or(default.min_free),
        }
    }
}

fn min_free(text: &str) -> Option<MinFree> {
    match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().filter(|percent| *percent <= 90).map(MinFree::Percent),
        None => text.parse::<ByteSize>().ok().map(|size| MinFree::Bytes(size.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_sizes() {
        assert_eq!(min_free("10%"), Some(MinFree::Percent(10)));
        assert_eq!(min_free("0%"), Some(MinFree::Percent(0)));
        assert_eq!(min_free("5g"), Some(MinFree::Bytes(5 << 30)));
        for bad in ["", "%", "91%", "-1%", "10 %", "much"] {
            assert_eq!(min_free(bad), None, "{bad}");
        }
    }
}
