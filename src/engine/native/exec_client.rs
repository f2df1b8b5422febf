//! Commands inside containers, from the agent's side: start the helper, keep the end of what it says, hear the outcome.

use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use super::exec::{self, Outcome};
use super::exec_session::Session;
use super::observe::{running, this_boot};
use super::record::{PidFd, wait_readable};
use super::{NativeEngine, layout::RunFiles};
use crate::engine::{EngineError, ExecOutput};
use crate::types::{InstanceId, Reason};

/// Bytes of output kept.
const KEPT: usize = 4096;
/// How long the helper itself may take beyond the command's own time.
const SLACK: Duration = Duration::from_secs(15);

/// See [`crate::engine::Engine::exec`].
pub(super) fn run(
    engine: &NativeEngine,
    id: &InstanceId,
    command: &[String],
    timeout: Duration,
) -> Result<ExecOutput, EngineError> {
    let run = must_run(engine, id, command)?;
    let failed =
        |what: &str, error: io::Error| EngineError::new(Reason::Internal, format!("{id}: {what}"), error);
    let (outcome, outcome_writer) = io::pipe().map_err(|e| failed("pipe", e))?;
    let (mut output, output_writer) = io::pipe().map_err(|e| failed("pipe", e))?;
    let second = output_writer.try_clone().map_err(|e| failed("pipe", e))?;
    let limit = timeout.as_millis().clamp(1, u128::from(u64::MAX));
    let mut child = Command::new(&engine.program)
        .arg(exec::COMMAND)
        .arg(&run.dir)
        .arg(limit.to_string())
        .args(command)
        .env_clear()
        .current_dir("/")
        // One pipe for both: what the command wrote stays in its order.
        .stdin(outcome_writer)
        .stdout(output_writer)
        .stderr(second)
        .spawn()
        .map_err(|e| failed("the exec helper cannot be executed", e))?;
    let helper = PidFd::of_child(child.id().cast_signed()).map_err(|e| failed("pidfd", e));
    let kept = helper.and_then(|helper| {
        let end = Instant::now() + timeout.saturating_add(SLACK);
        collect(&mut output, &helper, end).map_err(|e| failed("its output", e))
    });
    if kept.as_ref().map_or(true, Option::is_none) {
        let _ = child.kill();
    }
    let _ = child.wait();
    let Some(kept) = kept? else {
        return Err(EngineError::plain(Reason::Internal, format!("{id}: the exec helper hangs")));
    };
    let mut line = String::new();
    let told = wait_readable(outcome.as_fd(), Duration::ZERO).map_err(|e| failed("its outcome", e))?;
    if told {
        outcome.take(64 << 10).read_to_string(&mut line).map_err(|e| failed("its outcome", e))?;
    }
    let output = String::from_utf8_lossy(&kept).into_owned();
    let cannot = |what: &str| {
        let command = command.first().map_or("", String::as_str);
        EngineError::plain(Reason::StartFailed, format!("{id}: `{command}` cannot be run: {what}"))
    };
    match serde_json::from_str(&line) {
        Ok(Outcome::Code(code)) => Ok(ExecOutput { code: Some(code), output }),
        Ok(Outcome::TimedOut) => Ok(ExecOutput { code: None, output }),
        Ok(Outcome::Failed(message)) => Err(cannot(&message)),
        Err(_) => Err(cannot(output.trim())),
    }
}

/// See [`NativeEngine::become_command`].
pub(super) fn become_command(
    engine: &NativeEngine,
    id: &InstanceId,
    command: &[String],
    session: &Session,
) -> EngineError {
    let ready = must_run(engine, id, command).and_then(|run| {
        let text = serde_json::to_string(session).map_err(|error| {
            EngineError::new(Reason::Internal, format!("{id}: its session cannot be written"), error)
        })?;
        Ok((run, text))
    });
    let (run, text) = match ready {
        Ok(ready) => ready,
        Err(error) => return error,
    };
    // In place of this process: signals, the terminal and the exit code are the helper's own business then.
    let error = Command::new(&engine.program)
        .arg(exec::COMMAND)
        .arg(&run.dir)
        .arg("0")
        .args(command)
        .env_clear()
        .env(exec::SESSION, text)
        .current_dir("/")
        .exec();
    EngineError::new(Reason::Internal, format!("{id}: the exec helper cannot be executed"), error)
}

fn must_run(engine: &NativeEngine, id: &InstanceId, command: &[String]) -> Result<RunFiles, EngineError> {
    let run = engine.layout.run(id);
    if running(&run, &this_boot()?).is_none() {
        return Err(EngineError::plain(Reason::Exited, format!("{id} does not run")));
    }
    if command.is_empty() || command.iter().any(|text| text.contains('\0')) {
        return Err(EngineError::plain(
            Reason::ConfigInvalid,
            format!("{id}: an empty command, or a NUL in it"),
        ));
    }
    Ok(run)
}

/// Reads until the helper has ended, and keeps the end of it. A process that the command has left behind may hold the
/// pipe open for ever, so its end is not waited for. `None` when time is over.
fn collect(
    output: &mut (impl Read + std::os::fd::AsFd),
    helper: &PidFd,
    end: Instant,
) -> io::Result<Option<Vec<u8>>> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut kept = Vec::new();
    let mut open = true;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut waiting = vec![PollFd::new(helper.as_fd(), PollFlags::POLLIN)];
        if open {
            waiting.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut waiting, left);
        let ended = waiting.first().is_some_and(|fd| fd.any() == Some(true));
        drop(waiting);
        // After the helper's end: what is in the pipe, which holds 64 KiB, and no more.
        for _ in 0..if ended { 32 } else { 1 } {
            let mut chunk = [0; KEPT];
            match output.read(&mut chunk) {
                Ok(0) => open = false,
                Ok(length) => {
                    kept.extend_from_slice(chunk.get(..length).unwrap_or_default());
                    let surplus = kept.len().saturating_sub(KEPT);
                    kept.drain(..surplus);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            break;
        }
        if ended {
            return Ok(Some(kept));
        }
    }
}
