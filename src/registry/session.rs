//! What a registry lets this host in by, kept for each repository. All that need it anew at once get it by one request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::PullError;
use super::token::Authorization;

/// Repositories above which those are forgotten that nobody uses now.
const MANY: usize = 256;

/// By address and repository.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<(String, String), Arc<Session>>>);

/// One repository's.
#[derive(Default)]
pub(super) struct Session {
    /// Held by who asks.
    gate: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
    /// How often somebody asked.
    rounds: AtomicU64,
}

#[derive(Default)]
struct Known {
    /// Counts them, from 1.
    number: u64,
    authorization: Option<Authorization>,
    /// Why the last one that asked got none.
    refusal: Option<PullError>,
}

/// An authorization, and which one it is.
#[derive(Clone)]
pub(super) struct Ticket {
    pub authorization: Authorization,
    number: u64,
}

/// One that is new to who asked for it.
pub(super) struct Renewed {
    pub ticket: Ticket,
    /// Nobody had it before.
    pub fresh: bool,
}

impl Sessions {
    pub fn of(&self, address: &str, repository: &str) -> Arc<Session> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MANY {
            sessions.retain(|_, session| Arc::strong_count(session) > 1);
        }
        sessions.entry((address.to_owned(), repository.to_owned())).or_default().clone()
    }
}

impl Session {
    /// What is known, if it still holds.
    pub fn ticket(&self) -> Option<Ticket> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let authorization = known.authorization.clone().filter(|known| known.holds(Instant::now()))?;
        Some(Ticket { authorization, number: known.number })
    }

    /// Another one than the `refused` one: what somebody else got meanwhile, or what `ask` gets.
    pub async fn renew(
        &self,
        refused: Option<&Ticket>,
        ask: impl Future<Output = Result<Authorization, PullError>>,
    ) -> Result<Renewed, PullError> {
        let round = self.rounds.load(Ordering::Acquire);
        let _gate = self.gate.lock().await;
        let newer = |ticket: &Ticket| refused.is_none_or(|refused| refused.number != ticket.number);
        if let Some(ticket) = self.ticket().filter(newer) {
            return Ok(Renewed { ticket, fresh: false });
        }
        // Whoever asked while this one waited had no luck, and there is none to be had by asking at once.
        let others = self.rounds.load(Ordering::Acquire) != round;
        if let Some(refusal) = self.refusal().filter(|_| others) {
            return Err(refusal);
        }
        let answer = ask.await;
        self.rounds.fetch_add(1, Ordering::AcqRel);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(authorization) => {
                known.number += 1;
                known.authorization = Some(authorization.clone());
                known.refusal = None;
                Ok(Renewed { ticket: Ticket { authorization, number: known.number }, fresh: true })
            }
            Err(error) => {
                known.refusal = Some(error.clone());
                Err(error)
            }
        }
    }

    fn refusal(&self) -> Option<PullError> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).refusal.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::types::Reason;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waited_for_a_refusal_has_it_too() {
        let session = Arc::new(Session::default());
        let asked = Arc::new(AtomicUsize::new(0));
        let renew = |session: Arc<Session>, asked: Arc<AtomicUsize>| async move {
            let ask = async {
                asked.fetch_add(1, Ordering::SeqCst);
                // Until all of them wait.
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                Err(PullError::retry(Reason::Auth, "no"))
            };
            session.renew(None, ask).await.map(|_| ())
        };
        let all: Vec<_> = (0..3).map(|_| tokio::spawn(renew(session.clone(), asked.clone()))).collect();
        for one in all {
            assert_eq!(one.await.unwrap().unwrap_err().reason, Reason::Auth);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "who guesses passwords is locked out");
        // Whoever comes later asks anew: somebody may have corrected it.
        renew(session.clone(), asked.clone()).await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
