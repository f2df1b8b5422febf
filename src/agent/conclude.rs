//! Writes down and tells what came of a step.

use super::execute::failpoint;
use super::{Agent, clock, news};
use crate::reconcile::receipt::Side;
use crate::reconcile::record::{Phase, ServiceRecord};
use crate::reconcile::step::Step;
use crate::reconcile::transition::{self, Outcome};
use crate::report::message::Kind;
use crate::state::StateError;
use crate::state::receipts::Receipt;
use crate::types::{InstanceId, Reason, Refusal, ReplicaIndex, ServiceName};

/// Characters of a log's line that go into a receipt.
const MAX_LINE: usize = 200;

impl Agent {
    /// Writes down what came of a step: the receipt first, so that no end of a rollout is without one.
    pub(super) fn conclude(&mut self, service: &ServiceName, step: &Step, outcome: &Outcome) {
        let now = clock::now();
        let before = self.journal.records.get(service).cloned();
        if let Step::Begin { .. } = step {
            if before.as_ref().is_none_or(|record| record.rollout.is_none()) {
                let refusal = Refusal::new(Reason::Network, "the subnet has no free address left");
                self.effects.pause(service, &refusal, now);
                return self.refuse(service, Some(&refusal));
            }
            self.effects.clear(service);
            self.tell(news::of(service, before.as_ref(), step, outcome, None));
            return failpoint(step, "done");
        }
        let Some(record) = before else {
            // What no record names: only that it is away is worth a word.
            return self.conclude_unrecorded(service, step, outcome);
        };
        let mut applied = transition::conclude(service, &record, step, outcome, now);
        if let (Step::StartReplica(generation, index), Outcome::Failed(_)) = (step, outcome)
            && let Some(rollout) = applied.record.as_mut().and_then(|record| record.rollout.as_mut())
            && rollout.to.generation == *generation
            && rollout.phase == Phase::Abandoning
            && record.rollout.as_ref().is_some_and(|before| before.phase != Phase::Abandoning)
        {
            rollout.culprit = Some(*index);
        }
        // What else is over while something is started says nothing of how that had ended.
        let end = match step {
            Step::Start(_) | Step::StartReplica(..) => self.ends.remove(service),
            _ => None,
        };
        if let (Some(end), Some(receipt)) = (&end, &mut applied.receipt) {
            receipt.message = format!("{} {end} and was started again", started(step));
            receipt.exit = Some(end.clone());
        }
        if let Some(receipt) = applied.receipt.as_mut().filter(|receipt| receipt.went_wrong()) {
            receipt.log = self.last_words(service, receipt.to.as_ref(), receipt.replica);
        }
        if let Err(error) = self.save(service, &record, &mut applied) {
            self.note_fault(Some(error.to_refusal()));
            if !self.is_paced(service, step) {
                return self.state_trouble(service, &error);
            }
            self.unsaved.insert(service.clone());
        }
        self.garbage.after(step, outcome);
        let remembered = applied.record.as_ref() != Some(&record);
        match outcome {
            Outcome::Dropped => {}
            Outcome::Failed(refusal) | Outcome::Retry(refusal) if !remembered => {
                let news = match self.is_paced(service, step) {
                    true => self.effects.note(service, refusal, now),
                    false => self.effects.pause(service, refusal, now),
                };
                if news {
                    self.tell(news::of(service, Some(&record), step, outcome, None));
                }
            }
            _ => {
                self.effects.clear(service);
                let mut news = news::of(service, Some(&record), step, outcome, applied.receipt.as_ref());
                if let (Some(end), Some(news)) = (&end, &mut news)
                    && news.kind == Kind::Restarted
                {
                    news.text = format!("{service}: {} {end} and is started again", started(step));
                    news.exit = Some(end.clone());
                }
                self.tell(news);
            }
        }
        self.effects.cut_short(service, applied.record.as_ref());
        match applied.record {
            Some(after) => {
                self.journal.records.insert(service.clone(), after);
            }
            None => {
                self.journal.records.remove(service);
            }
        }
        failpoint(step, "done");
    }

    fn conclude_unrecorded(&mut self, service: &ServiceName, step: &Step, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(refusal) | Outcome::Retry(refusal) => {
                if self.effects.pause(service, refusal, clock::now()) {
                    self.tell(news::of(service, None, step, outcome, None));
                }
            }
            Outcome::Dropped => {}
            Outcome::Done | Outcome::Pulled(_) => {
                self.effects.clear(service);
                self.tell(news::of(service, None, step, outcome, None));
            }
        }
    }

    /// The last lines that a generation wrote, as short as receipts are to be: of several containers the one that it was
    /// given up for. Logs outlive their containers.
    fn last_words(
        &self,
        service: &ServiceName,
        side: Option<&Side>,
        replica: Option<ReplicaIndex>,
    ) -> Vec<String> {
        let (Some(side), count @ 1..) = (side, self.config.report.log_lines) else { return Vec::new() };
        let id = InstanceId::replica(service, side.generation, replica.unwrap_or_default());
        let lines = self.hands.engine.log_tail(&id, count);
        let plain = |line: String| line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect();
        lines.into_iter().map(plain).collect()
    }

    /// The receipt first, then the record that counts on it. A receipt of a restart that could not be written stays due.
    fn save(
        &mut self,
        service: &ServiceName,
        before: &ServiceRecord,
        applied: &mut transition::Applied,
    ) -> Result<(), StateError> {
        if let Some(transition) = &applied.receipt {
            let receipt = Receipt::new(transition.clone(), &self.config.host.name);
            if let Err(error) = self.state.save_receipt(&receipt, self.config.report.push) {
                let due = before.incumbent.as_ref().and_then(|incumbent| incumbent.untold);
                let after = applied.record.as_mut().and_then(|record| record.incumbent.as_mut());
                if let Some(incumbent) = after {
                    incumbent.untold = due;
                    for (index, replica) in &mut incumbent.replicas {
                        let former = before.incumbent.as_ref().and_then(|it| it.replicas.get(index));
                        replica.untold = former.and_then(|replica| replica.untold);
                    }
                }
                return Err(error);
            }
            self.outbox_changed = true;
        }
        match &applied.record {
            Some(after) if after != before => self.state.save_record(service, after),
            Some(_) => Ok(()),
            None => self.state.forget_record(service),
        }
    }

    /// State could not be written: nothing was done, and the service waits.
    pub(super) fn state_trouble(&mut self, service: &ServiceName, error: &StateError) {
        let refusal = error.to_refusal();
        self.note_fault(Some(refusal.clone()));
        self.effects.pause(service, &refusal, clock::now());
    }
}

/// The container that a step starts, for people.
fn started(step: &Step) -> String {
    match step {
        Step::Start(generation) => format!("generation {generation}"),
        Step::StartReplica(generation, index) => format!("replica {index} of generation {generation}"),
        _ => String::new(),
    }
}
