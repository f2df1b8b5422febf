//! State that cannot be written: what serves is supervised all the same, out of memory, and people are told.

use super::Agent;
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::Refusal;

impl Agent {
    /// Looks whether state can be written, and writes what could not be. Costs a few calls where all is well.
    pub(super) fn look_at_state(&mut self) {
        let mut fault = None;
        for service in std::mem::take(&mut self.unsaved) {
            let Some(record) = self.journal.records.get(&service) else { continue };
            if let Err(error) = self.state.save_record(&service, record) {
                fault = Some(error.to_refusal());
                self.unsaved.insert(service);
            }
        }
        let fault = fault.or_else(|| self.state.fault());
        // What failed for another reason is tried before it counts as mended.
        let fault = match (&self.fault, fault) {
            (Some(_), None) => self.state.try_write().err().map(|error| error.to_refusal()),
            (_, fault) => fault,
        };
        self.note_fault(fault);
    }

    /// Keeps why state cannot be written, and tells it once.
    pub(super) fn note_fault(&mut self, fault: Option<Refusal>) {
        let news = match (&self.fault, &fault) {
            // One file or another: it is the same fault.
            (Some(former), Some(now)) if former.reason == now.reason => return,
            (_, Some(refusal)) => {
                let text = format!(
                    "state cannot be written, so nothing is deployed; what runs is kept running: {}",
                    refusal.message
                );
                Some(Message::new(Kind::StateTrouble, text).because(refusal))
            }
            (Some(_), None) => Some(Message::new(Kind::StateMended, "state can be written again")),
            (None, None) => None,
        };
        self.fault = fault;
        self.tell(news);
    }
}
