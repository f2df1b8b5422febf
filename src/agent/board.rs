//! The commit status on a forge: shown beside the loop, tried again with pauses, and never waited for.

use std::time::Duration;

use super::wake::Wake;
use super::{Agent, clock};
use crate::forge::{self, CommitStatus, PostError, Poster, Shown, Verdict};
use crate::reconcile::{later, pending};
use crate::report::Message;
use crate::report::message::Kind;
use crate::types::Timestamp;

/// First pause before a status is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The pause after the n-th status of one commit is n times this, and at most [`LONGEST_PACE`]: forges take a thousand
/// a commit, and a service that goes up and down could use them up.
const PACE: Duration = Duration::from_secs(1);
const LONGEST_PACE: Duration = Duration::from_secs(300);

/// What is known of the forge; empty where none is configured.
#[derive(Debug, Default)]
pub struct Board {
    poster: Option<Poster>,
    shown: Option<Shown>,
    /// What is under way.
    posting: Option<CommitStatus>,
    attempts: u32,
    /// Nothing is posted before this: the forge was in trouble.
    retry_at: Option<Timestamp>,
    /// Nothing more of the commit that was shown last is posted before this.
    pace_until: Option<Timestamp>,
    told: bool,
    /// When there is something to show, and it waits: until when.
    due_at: Option<Timestamp>,
}

impl Board {
    /// What was shown last is read from the state.
    pub fn new(poster: Option<Poster>, shown: Option<Shown>) -> Self {
        Self { poster, shown, ..Self::default() }
    }

    /// When there is something to do by itself.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.due_at.filter(|_| self.posting.is_none())
    }

    /// Whether nothing can be posted right now.
    pub fn is_quiet(&self) -> bool {
        self.posting.is_none() && (self.due_at.is_none() || self.attempts > 0)
    }
}

impl Agent {
    /// Shows what became of the commit, where that is news.
    pub(super) fn show(&mut self) {
        let Some(poster) = self.board.poster.clone().filter(|_| self.board.posting.is_none()) else { return };
        // What is known of services is of the last look at them, which may have been before this commit.
        if self.blind.is_some() {
            return;
        }
        let wanted = self.status.as_ref().and_then(forge::of);
        let news = wanted.and_then(|wanted| forge::next(self.board.shown.as_ref(), &wanted));
        self.board.due_at = None;
        let Some(news) = news else { return };
        // A commit is brought to its end, and the next one begun, at once.
        let again = self.board.shown.as_ref().is_some_and(|shown| shown.commit == news.commit);
        let paced = again && news.verdict != Verdict::Superseded;
        let waits = self.board.retry_at.max(self.board.pace_until.filter(|_| paced));
        if waits.is_some_and(|at| pending(clock::now(), at, LONGEST_PAUSE)) {
            self.board.due_at = waits;
            return;
        }
        self.board.posting = Some(news.clone());
        let waker = self.waker.clone();
        self.hands.runtime.spawn(async move {
            let result = poster.post(&news).await;
            // The loop may be gone: then the next agent shows it.
            let _ = waker.send(Wake::Shown(result));
        });
    }

    /// The forge has answered.
    pub(super) fn shown(&mut self, result: Result<(), PostError>) {
        let Some(status) = self.board.posting.take() else { return };
        let now = clock::now();
        let board = &mut self.board;
        match result {
            Ok(()) => {
                let shown = Shown::after(board.shown.as_ref(), &status);
                board.pace_until = Some(later(now, PACE.saturating_mul(shown.count).min(LONGEST_PACE)));
                (board.attempts, board.retry_at, board.told) = (0, None, false);
                if let Err(error) = forge::memory::save(&self.config.state_dir, &shown) {
                    // Known to this agent; the next one may say the same once more.
                    tracing::warn!("{}", error.to_refusal());
                }
                board.shown = Some(shown);
            }
            // Only what is over by now: the forge does not know that commit any more, or takes no more of it. The next
            // one is not to wait for that.
            Err(error) if error.is_final && status.verdict == Verdict::Superseded => {
                tracing::info!("{}; it is left as it is", error.refusal.message);
                board.shown = Some(Shown::after(board.shown.as_ref(), &status));
            }
            Err(error) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << board.attempts.min(16)).min(LONGEST_PAUSE);
                board.attempts = board.attempts.saturating_add(1);
                board.retry_at = Some(later(now, pause.max(error.pause.unwrap_or_default())));
                if !std::mem::replace(&mut board.told, true) {
                    let text = format!("{}; it is tried again, deploys go on", error.refusal.message);
                    let message = Message::new(Kind::StatusStuck, text).because(&error.refusal);
                    self.tell(Some(message));
                }
            }
        }
    }
}
