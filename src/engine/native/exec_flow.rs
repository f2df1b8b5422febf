//! Bytes from one descriptor to another, as fast as the slower of the two, with one chunk in memory.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

/// Bytes read at once.
const CHUNK: usize = 32 << 10;

/// Bytes written at once: as many as a pipe takes without waiting when it says that it takes any. Source: pipe(7), PIPE_BUF.
const SPOON: usize = 4096;

/// Most chunks moved after the end of the command: what was in the pipe or terminal, and no more. What it left running
/// may write for ever.
const LAST_CHUNKS: usize = 16;

/// What a terminal takes as the end of the input, at the beginning of a line: `^D`.
const END_OF_INPUT: u8 = 4;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    from: Option<File>,
    to: Option<File>,
    chunk: Vec<u8>,
    /// How many bytes of the chunk were written.
    written: usize,
    /// Written once, at the end of the input.
    last: Option<u8>,
    /// Whether nobody takes it any more.
    lost: bool,
}

impl Flow {
    /// Ends with `from`; `to` is closed then.
    pub fn new(from: File, to: File) -> Self {
        Self { from: Some(from), to: Some(to), chunk: Vec::new(), written: 0, last: None, lost: false }
    }

    /// Into a terminal, which is told of the end of the input as a person would.
    pub fn to_terminal(from: File, to: File) -> Self {
        Self { last: Some(END_OF_INPUT), ..Self::new(from, to) }
    }

    /// Whether what it flows to is gone.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// What to wait for before [`Self::step`]; `None` = it has ended.
    pub fn wants(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let (file, events) = match self.waiting().is_empty() {
            true => (&self.from, PollFlags::POLLIN),
            false => (&self.to, PollFlags::POLLOUT),
        };
        Some((file.as_ref()?.as_fd(), events))
    }

    fn waiting(&self) -> &[u8] {
        self.chunk.get(self.written..).unwrap_or_default()
    }

    /// Reads or writes once.
    pub fn step(&mut self) {
        if self.waiting().is_empty() { self.read() } else { self.write() }
    }

    fn read(&mut self) {
        let Some(from) = &mut self.from else { return };
        self.written = 0;
        self.chunk.resize(CHUNK, 0);
        let result = from.read(&mut self.chunk);
        self.chunk.truncate(*result.as_ref().unwrap_or(&0));
        match result {
            Ok(1..) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A terminal whose other side is closed gives an error in place of the end.
            Ok(0) | Err(_) => {
                self.from = None;
                match self.last.take() {
                    Some(last) => self.chunk.push(last),
                    None => self.to = None,
                }
            }
        }
    }

    fn write(&mut self) {
        let Some(to) = &mut self.to else { return };
        let waiting = self.chunk.get(self.written..).unwrap_or_default();
        match to.write(waiting.get(..SPOON).unwrap_or(waiting)) {
            Ok(count) => self.written += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                // Closed on the other side too: who writes there hears of it.
                (self.from, self.to) = (None, None);
                self.chunk.clear();
                self.lost = true;
            }
        }
    }

    /// Moves what is left, at the end. A signal ends it (`false`): nobody may be there to take it. A window of another size
    /// is none.
    pub fn drain(&mut self, signals: &SignalFd) -> bool {
        if self.last.is_some() {
            return true;
        }
        let mut chunks = 0;
        while let Some((fd, events)) = self.wants() {
            let reads = events == PollFlags::POLLIN;
            chunks += usize::from(reads);
            let mut waiting = [PollFd::new(fd, events), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            // What is there is there now.
            let patience = if reads { PollTimeout::ZERO } else { PollTimeout::NONE };
            let count = poll(&mut waiting, patience).unwrap_or(0);
            let told = waiting.last().is_some_and(|fd| fd.any() == Some(true));
            if told {
                if is_told_to_end(signals) {
                    return false;
                }
                continue;
            }
            if reads && (count == 0 || chunks > LAST_CHUNKS) {
                return true;
            }
            self.step();
        }
        true
    }
}

fn is_told_to_end(signals: &SignalFd) -> bool {
    let mut end = false;
    while let Ok(Some(got)) = signals.read_signal() {
        end |= got.ssi_signo != nix::libc::SIGWINCH.cast_unsigned();
    }
    end
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::SfdFlags;

    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        (read.into(), write.into())
    }

    #[test]
    fn what_comes_in_goes_out_and_the_end_too() {
        let ((read, mut input), (mut output, write)) = (pipe(), pipe());
        input.write_all(&[b'x'; 10_000]).unwrap();
        drop(input);
        let mut flow = Flow::new(read, write);
        while flow.wants().is_some() {
            flow.step();
        }
        let mut found = Vec::new();
        output.read_to_end(&mut found).unwrap();
        assert_eq!(found.len(), 10_000);
        assert!(!flow.lost());
    }

    #[test]
    fn a_terminal_is_told_of_the_end_and_a_lost_reader_is_noticed() {
        let ((read, mut input), (mut output, write)) = (pipe(), pipe());
        input.write_all(b"hello\n").unwrap();
        drop(input);
        let mut flow = Flow::to_terminal(read, write);
        while flow.wants().is_some() {
            flow.step();
        }
        drop(flow);
        let mut found = Vec::new();
        output.read_to_end(&mut found).unwrap();
        assert_eq!(found, b"hello\n\x04");

        let ((read, mut input), (output, write)) = (pipe(), pipe());
        drop(output);
        let mut flow = Flow::new(read, write);
        input.write_all(b"x").unwrap();
        flow.step();
        flow.step();
        assert!(flow.lost() && flow.wants().is_none());
    }

    /// Blocked for this thread and sent to it alone, as tests run beside each other.
    fn told(signals: &[Signal]) -> SignalFd {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGWINCH, Signal::SIGTERM] {
            set.add(signal);
        }
        set.thread_block().unwrap();
        for signal in signals {
            nix::sys::signal::raise(*signal).unwrap();
        }
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).unwrap()
    }

    #[test]
    fn a_window_of_another_size_cuts_no_last_words_and_an_order_to_end_does() {
        let ((read, mut input), (mut output, write)) = (pipe(), pipe());
        input.write_all(&[b'x'; 20_000]).unwrap();
        let mut flow = Flow::new(read, write);
        assert!(flow.drain(&told(&[Signal::SIGWINCH])), "a size is no order to end");
        drop(flow);
        let mut found = Vec::new();
        output.read_to_end(&mut found).unwrap();
        assert_eq!(found.len(), 20_000, "all that the command had written, though its side is still open");

        let ((read, mut input), (_output, write)) = (pipe(), pipe());
        input.write_all(b"x").unwrap();
        let signals = told(&[Signal::SIGWINCH, Signal::SIGTERM]);
        assert!(!Flow::new(read, write).drain(&signals));
    }
}
