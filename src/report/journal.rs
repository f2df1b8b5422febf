//! Messages to journald with native fields, or to stderr where there is none.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::message::{Message, Priority};

/// Sends all that the program logs to journald when its stderr is the journal's (or there is no terminal and journald
/// listens), else to stderr. Call once.
///
/// `GITOPSD_LOG` sets the level, in the syntax of `tracing_subscriber::EnvFilter`.
pub fn init() {
    let filter = EnvFilter::try_from_env("GITOPSD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // systemd.exec(5): JOURNAL_STREAM is set when stdout or stderr is connected to the journal.
    let under_journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let journald = under_journald.then(tracing_journald::layer).and_then(Result::ok);
    let result = match journald {
        Some(layer) => {
            let layer = layer.with_field_prefix(None).with_syslog_identifier("gitopsd".to_owned());
            tracing_subscriber::registry().with(filter).with(layer).try_init()
        }
        None => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .with_target(false);
            tracing_subscriber::registry().with(filter).with(layer).try_init()
        }
    };
    // A second call in one process (tests) keeps the first one's destination.
    let _ = result;
}

/// Sends one message. Field names are the journal's: `GITOPSD_SERVICE` and so on.
pub fn send(message: &Message) {
    let log: String = message.log.iter().map(|line| format!("\n  {line}")).collect();
    macro_rules! emit {
        ($level:ident) => {
            tracing::$level!(
                message_id = message.kind.message_id(),
                gitopsd_event = message.kind.name(),
                gitopsd_service = message.service.as_ref().map(|service| service.as_str()),
                gitopsd_commit = message.commit.as_ref().map(|commit| commit.as_str()),
                gitopsd_generation = message.generation.map(|generation| generation.0),
                gitopsd_image = message.image.as_ref().map(tracing::field::display),
                gitopsd_phase = message.phase,
                gitopsd_reason = message.reason.map(|reason| reason.code()),
                gitopsd_exit_code = message.exit.as_ref().and_then(|exit| exit.code),
                gitopsd_exit_signal = message.exit.as_ref().and_then(|exit| exit.signal),
                gitopsd_oom_killed = message.exit.as_ref().map(|exit| exit.oom_killed),
                "{}{log}",
                message.text
            )
        };
    }
    match message.priority() {
        Priority::Error => emit!(error),
        Priority::Warning => emit!(warn),
        Priority::Info => emit!(info),
    }
}
