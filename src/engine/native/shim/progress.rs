//! Word of a start that takes long and goes on: to the agent, on the pipe of the report; to an agent that came later, by the
//! time of `shim.json`; and to systemd.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::super::launch::PROGRESS;
use super::super::layout::RunFiles;

/// Not more often than this: a pipe whose agent does not read holds 64 KiB, hours of it.
const PAUSE: Duration = Duration::from_secs(1);

/// Where word goes.
pub(super) struct Progress<'a> {
    run: &'a RunFiles,
    report: &'a File,
    last: Instant,
    /// What a test asks for.
    #[cfg(feature = "failpoints")]
    pub slow: bool,
}

impl<'a> Progress<'a> {
    /// To be told on `report`, before the report itself.
    pub fn new(run: &'a RunFiles, report: &'a File) -> Self {
        Self {
            run,
            report,
            last: Instant::now(),
            #[cfg(feature = "failpoints")]
            slow: false,
        }
    }

    /// Something was done that shows that it goes on. Told now and then.
    pub fn made(&mut self) {
        #[cfg(feature = "failpoints")]
        if self.slow {
            std::thread::sleep(Duration::from_millis(100));
        }
        if self.last.elapsed() < PAUSE {
            return;
        }
        self.last = Instant::now();
        // The agent may be gone, and another one waits for the container.
        let _ = self.report.write_all(&[PROGRESS]);
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = utimensat(CWD, self.run.shim(), &times, AtFlags::empty());
        // A unit that has not started ends by a time-out, and holds up what comes after it: an agent that starts meanwhile. Where
        // it is no unit, nobody listens.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
}
