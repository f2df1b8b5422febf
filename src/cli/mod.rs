//! The command line: arguments in, text or JSON and an exit code out. One verb a file.

mod args;
mod at;
mod blame;
mod check;
mod error;
mod exec;
mod fleet;
mod fsck;
mod gc;
mod hint;
mod history;
mod images;
mod internal;
mod lines;
mod lock;
mod logs;
mod manual;
mod moment;
mod operate;
mod pack;
mod plan;
mod plan_fleet;
mod progress;
mod provenance;
mod pull;
mod run;
mod status;
mod table;
mod teardown;
mod top;
mod trust;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};
pub use error::Failure;

/// Runs the program.
pub fn main() -> ExitCode {
    // Shims and exec helpers must be single-threaded: before anything else.
    if let Some(code) = internal::dispatch() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no errors; anything else is wrong usage (sysexits.h, EX_USAGE).
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let mut out = std::io::stdout().lock();
    match dispatch(&args, &mut out).and_then(|code| {
        out.flush().map_err(Failure::from)?;
        Ok(code)
    }) {
        Ok(code) => ExitCode::from(code),
        // The reader has gone away, as `head` does: nothing to complain about.
        Err(Failure::Pipe) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = failure.write(&mut std::io::stderr());
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(args: &Args, out: &mut dyn Write) -> Result<u8, Failure> {
    // Reads FAILPOINTS; nothing without the feature.
    let _failpoints = fail::FailScenario::setup();
    let json = args.json;
    match &args.verb {
        Verb::Run { once } => run::run(&args.config, *once),
        Verb::Status { service } => status::status(&args.config, service.as_ref(), json, color(), out),
        Verb::Plan { dir, rev, fleet: true, markdown, .. } => {
            plan_fleet::plan(dir.as_deref(), rev.as_deref(), plan_fleet::Form::of(json, *markdown), out)
        }
        Verb::Plan { dir, rev, host, .. } => {
            plan::plan(&args.config, dir.as_deref(), rev.as_deref(), host.as_ref(), json, out)
        }
        Verb::Check { dir } => check::run(dir, json, out),
        Verb::Sync { wait, timeout, accept, now } => {
            let sync = operate::Sync { wait: *wait, timeout: *timeout, accept: accept.clone(), now: *now };
            operate::sync(&args.config, &sync, json, out)
        }
        Verb::Rollback { service } => operate::rollback(&args.config, service, json, out),
        Verb::Hold { service, duration, reason } => {
            operate::hold(&args.config, service, *duration, reason, json, out)
        }
        Verb::Resume { service } => operate::resume(&args.config, service, json, out),
        Verb::History { service } => history::history(&args.config, service.as_ref(), json, out),
        Verb::At(wanted) => at::at(&args.config, wanted, json, out),
        Verb::Blame(wanted) => blame::blame(&args.config, wanted, json, out),
        Verb::Why { service } => status::why(&args.config, service, json, out),
        Verb::Trust(wanted) => trust::trust(&args.config, wanted, json, out),
        Verb::Events { follow } => history::events(&args.config, *follow, out),
        Verb::Logs(wanted) => logs::logs(&args.config, wanted, json, out),
        Verb::Exec(_) if json => {
            Err(Failure::Usage("exec gives on what the command writes: it takes no --json".to_owned()))
        }
        Verb::Exec(wanted) => exec::exec(&args.config, wanted),
        Verb::Top(wanted) => top::top(&args.config, wanted, json, out),
        Verb::Teardown { purge, yes } => teardown::teardown(&args.config, *purge, *yes, json, out),
        Verb::Pull { images, all } => pull::pull(&args.config, images, *all, json, out),
        Verb::Pack { image, output, force } => pack::pack(&args.config, image, output, *force, json, out),
        Verb::Fsck { full, repair } => fsck::fsck(&args.config, *full, *repair, json, out),
        Verb::Images => images::images(&args.config, json, out),
        Verb::Gc { dry_run } => gc::gc(&args.config, *dry_run, json, out),
        Verb::Lock(wanted) => lock::lock(&args.config, wanted, json, out),
        Verb::Fleet(wanted) => fleet::fleet(wanted, json, out),
        Verb::Doctor(_) => Err(Failure::Failed {
            message: "this version does not have that command yet".to_owned(),
            hint: Some("CHANGELOG.md says what is planned; `gitopsd help` what is there".to_owned()),
        }),
        Verb::Completions { shell } => manual::completions(*shell, out),
        Verb::Man { dir } => manual::man(dir.as_deref(), out),
    }
}

/// Colour: on a terminal only, and not where NO_COLOR is set (<https://no-color.org>).
fn color() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes one JSON value and a line feed.
fn write_json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Writes one JSON value on one line, for answers of several lines.
fn write_json_line(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}
