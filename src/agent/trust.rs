//! An operator's word on what is believed: kept until a head is admitted by it, and told in the journal and in git.

use super::{Agent, clock};
use crate::report::Message;
use crate::report::message::Kind;
use crate::state::StateDir;
use crate::state::receipts::TrustReceipt;
use crate::state::trust::Reset;
use crate::types::{CommitId, Refusal};

/// The one that is in force.
pub(super) fn in_force(state: &StateDir) -> Option<Reset> {
    match state.load_reset() {
        Ok(reset) => reset.filter(|reset| reset.admitted.is_none()),
        Err(error) => {
            // It would loosen what is believed: where it cannot be read it was not said.
            tracing::warn!("{}", error.to_refusal());
            None
        }
    }
}

impl Agent {
    /// Takes an operator's word: `commit` and what descends from it are believed, or (`None`) whatever a new host may
    /// begin with. Durable, and in force until a head is admitted.
    ///
    /// # Errors
    /// It cannot be written down: then it is not in force either.
    pub(super) fn reset_trust(
        &mut self,
        commit: Option<CommitId>,
        by: String,
        reason: String,
    ) -> Result<(), Refusal> {
        let former = self.high_water.as_ref().map(|mark| mark.commit.clone());
        let reset = Reset { commit, by, reason, at: clock::now(), former, admitted: None, told: true };
        self.state.save_reset(&reset).map_err(|error| error.to_refusal())?;
        self.tell(Some(message(&reset)));
        self.reset = Some(reset);
        Ok(())
    }

    /// Tells of one that was said while no agent was running.
    pub(super) fn tell_reset(&mut self) {
        let Some(mut reset) = self.reset.take() else { return };
        if !reset.told {
            self.tell(Some(message(&reset)));
            reset.told = true;
            if let Err(error) = self.state.save_reset(&reset) {
                tracing::warn!("{}", error.to_refusal());
            }
        }
        self.reset = Some(reset);
    }

    /// A head was admitted, by an operator's word or without: none is in force any more.
    pub(super) fn conclude_reset(&mut self, used: Option<&Reset>, commit: &CommitId, moved: bool) {
        let over = match used {
            // Not one that was said meanwhile.
            Some(used) if self.reset.as_ref() == Some(used) => self.reset.take(),
            Some(used) => Some(used.clone()),
            None if moved => self.reset.take(),
            None => None,
        };
        let Some(mut over) = over else { return };
        if used.is_some() && self.config.report.push {
            let receipt = TrustReceipt::new(&over, commit, &self.config.host.name, clock::now());
            match self.state.save_trust_receipt(&receipt) {
                Ok(()) => self.outbox_changed = true,
                Err(error) => tracing::warn!("{}", error.to_refusal()),
            }
        }
        if self.reset.is_none() {
            let kept = match used {
                Some(_) => {
                    over.admitted = Some(commit.clone());
                    self.state.save_reset(&over)
                }
                None => self.state.clear_reset(),
            };
            if let Err(error) = kept {
                self.note_fault(Some(error.to_refusal()));
            }
        }
    }
}

fn message(reset: &Reset) -> Message {
    let Reset { by, reason, .. } = reset;
    match &reset.commit {
        Some(commit) => {
            let text =
                format!("{by} has this host believe commit {} and what follows it: {reason}", commit.short());
            Message::new(Kind::TrustReset, text).at(commit)
        }
        None => {
            let text = format!("{by} has this host forget the commit that it believed last: {reason}");
            Message::new(Kind::TrustReset, text)
        }
    }
}
