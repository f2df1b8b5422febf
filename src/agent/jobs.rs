//! One-shots: what is started for them, and what is said of their end.

use super::Agent;
use super::effects::Effect;
use crate::reconcile::jobs;
use crate::reconcile::transition::Outcome;
use crate::types::{Exit, Generation, InstanceId, Job, NetworkMode, Refusal, ServiceName};

/// Lines of a one-shot that failed that stand in its message.
const LINES: usize = 5;

impl Agent {
    /// What starts a one-shot of a generation.
    pub(super) fn job(
        &self,
        service: &ServiceName,
        generation: Generation,
        job: Job,
    ) -> Result<Effect, Refusal> {
        let mut request = self.request(service, generation)?;
        request.id = InstanceId::of_job(service, generation, job);
        match job {
            Job::Pre => request.one_shot = Some(request.spec.deploy.pre.clone()),
            Job::Post => {
                request.one_shot = Some(request.spec.deploy.post.clone());
                // The service itself has the generation's address: what runs beside it shares its network.
                if *request.spec.network_mode() == NetworkMode::Bridge && request.spec.schedule.is_none() {
                    request.joins = Some(InstanceId::new(service, generation));
                    request.spec.options.network_mode = Some(NetworkMode::Service(service.clone()));
                }
            }
            Job::Run => {}
        }
        Ok(Effect::Job(Box::new(request)))
    }

    /// Whether a one-shot did what it is for; if not, with the last that it wrote.
    pub(super) fn judge_job(
        &self,
        service: &ServiceName,
        (job, generation): (Job, Generation),
        exit: &Exit,
        late: bool,
    ) -> Outcome {
        let deployed = match self.live(service, generation) {
            Ok((_, deployed)) => deployed,
            Err(refusal) => return Outcome::Failed(refusal),
        };
        let Some(mut refusal) = jobs::failure(deployed, job, exit, late) else { return Outcome::Done };
        let lines = self.hands.engine.log_tail(&InstanceId::of_job(service, generation, job), LINES);
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
        if !lines.is_empty() {
            refusal.message.push_str(": ");
            refusal.message.push_str(&lines.join(" | "));
        }
        Outcome::Failed(refusal)
    }
}
