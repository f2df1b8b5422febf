//! What this host found that tags stood for, on its way to those that follow.

use super::{Agent, clock};
use crate::reconcile::tagged::Tagged;
use crate::report::Message;
use crate::report::message::Kind;
use crate::state::tagged::KeptTags;
use crate::types::{Digest, HostName, ImageRef, ServiceName};

/// The name that it has among the receipts that are pushed.
pub(super) const NAME: &str = "tags";

/// A tag that stands for something else than it did when the fleet took it over.
#[derive(Debug)]
pub struct Moved {
    /// Of this service.
    pub service: ServiceName,
    /// As its file names it.
    pub image: ImageRef,
    /// What it stood for.
    pub recorded: Digest,
    /// By whose word.
    pub by: HostName,
    /// What it stands for.
    pub now: Digest,
}

impl Agent {
    /// Notes what a tag stood for that this host looked up itself.
    pub(super) fn note_tag(&mut self, image: &ImageRef, found: &Digest) {
        let bare = matches!(image, ImageRef::Registry(reference) if reference.digest.is_none());
        let top = self.hands.registry.top_of(found);
        let (Some(desired), Some(top)) = (&self.desired, top.filter(|_| bare && self.config.follow)) else {
            return;
        };
        let commit = &desired.commit.id;
        let mut tags = self.tags.take().map(|kept| kept.go_on_at(commit)).unwrap_or_default();
        tags.insert(image.to_string(), top);
        let tagged = Tagged::new(&self.config.host.name, commit, tags, clock::now());
        let kept = KeptTags { tagged, pushed: false };
        if let Err(error) = self.state.save_tags(&kept) {
            self.note_fault(Some(error.to_refusal()));
        }
        self.tags = Some(kept);
        self.outbox_changed = true;
    }

    /// It is in git.
    pub(super) fn tags_pushed(&mut self, id: &str) {
        let Some(kept) = self.tags.as_mut().filter(|kept| kept.tagged.id == id) else { return };
        kept.pushed = true;
        if let Err(error) = self.state.save_tags(kept) {
            // It is said once more after a restart: the same words under the same name.
            tracing::warn!("{}", error.to_refusal());
        }
    }

    /// Says that a tag has moved. Nothing comes of it.
    pub(super) fn tag_moved(&mut self, moved: &Moved) {
        let Moved { service, image, recorded, by, now } = moved;
        // It is looked at again and again.
        let told = self.moved_tags.insert(service.clone(), (recorded.clone(), now.clone()));
        if told.as_ref() == Some(&(recorded.clone(), now.clone())) {
            return;
        }
        let text = format!(
            "{service}: the tag {image} stands for {} now; {by} found {} for this commit, and so it stays",
            now.short(),
            recorded.short()
        );
        self.tell(Some(Message::of(Kind::TagMoved, service, text)));
    }
}
