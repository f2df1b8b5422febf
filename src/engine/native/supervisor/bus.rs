//! One conversation with systemd: connect, say who we are, ask, hear the answer, hang up. Blocking and bounded in time.
//!
//! By the system bus where there is one, else by the socket that systemctl(1) itself uses as root: a host without
//! dbus-daemon has only that. Source: D-Bus Specification 0.43, "Authentication Protocol".

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::wire::{self, Call, FIXED, Reply, Writer};

/// Where dbus-daemon and dbus-broker listen (D-Bus Specification, "Well-known Message Bus Instances").
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Where systemd itself listens to root.
const PRIVATE: &str = "/run/systemd/private";

/// How long systemd may take for an answer: it is one process, and may be busy with a reload. As systemctl(1) has it.
const PATIENCE: Duration = Duration::from_secs(25);
/// Longest line of the greeting.
const MAX_LINE: usize = 1024;

/// Who answers, and where.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

/// An open conversation.
#[derive(Debug)]
pub(in super::super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Whether it was done is not known.
    #[error("systemd did not answer")]
    Lost(#[source] io::Error),
    /// It was not done.
    #[error("systemd refuses: {message} ({name})")]
    Refused {
        /// Name of the error.
        name: String,
        /// For people.
        message: String,
    },
}

impl Bus {
    /// Begins a conversation.
    ///
    /// # Errors
    /// Neither socket lets us in; nothing was asked of anybody.
    pub fn connect() -> io::Result<Self> {
        Self::over(SYSTEM_BUS, true).or_else(|first| {
            let describe = |path: &str, error: &io::Error| format!("{path}: {error}");
            Self::over(PRIVATE, false).map_err(|second| {
                let both = format!("{}; {}", describe(SYSTEM_BUS, &first), describe(PRIVATE, &second));
                io::Error::new(first.kind(), both)
            })
        })
    }

    fn over(path: &str, is_bus: bool) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream, serial: 0 };
        bus.greet()?;
        if is_bus {
            let hello = Call {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member: "Hello",
                signature: "",
            };
            bus.call(&hello, Writer::default(), &[]).map_err(io::Error::other)?;
        }
        Ok(bus)
    }

    /// A method of systemd's manager. `descriptors` go along.
    pub(super) fn ask_systemd(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), CallError> {
        let call = Call { destination: SYSTEMD, path: MANAGER, interface: INTERFACE, member, signature };
        self.call(&call, body, descriptors)
    }

    fn greet(&mut self) -> io::Result<()> {
        // Our user number in digits, each digit in hexadecimal; the kernel tells the other side that it is true.
        let mut user = String::new();
        for digit in nix::unistd::geteuid().to_string().bytes() {
            // Writing to a String cannot fail.
            let _ = write!(user, "{digit:02x}");
        }
        self.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        self.expect("OK ")?;
        self.stream.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
        self.expect("AGREE_UNIX_FD")?;
        self.stream.write_all(b"BEGIN\r\n")
    }

    /// A line of the greeting. Byte by byte: what comes after the last line belongs to messages.
    fn expect(&mut self, begin: &str) -> io::Result<()> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > MAX_LINE {
                return Err(io::Error::other("a greeting without an end"));
            }
        }
        if line.starts_with(begin.as_bytes()) {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line);
        Err(io::Error::other(format!("it does not let us in: {}", line.trim())))
    }

    fn call(
        &mut self,
        call: &Call<'_>,
        body: Writer,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), CallError> {
        self.serial += 1;
        let count = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
        let message = wire::encode(call, self.serial, body, count);
        self.send(&message, descriptors).map_err(CallError::Lost)?;
        loop {
            let message = self.receive().map_err(CallError::Lost)?;
            match wire::decode(&message, self.serial) {
                Ok(None) => {}
                Ok(Some(Reply::Done)) => return Ok(()),
                Ok(Some(Reply::Refused { name, message })) => {
                    return Err(CallError::Refused { name, message });
                }
                Err(error) => return Err(CallError::Lost(io::Error::other(error))),
            }
        }
    }

    /// The descriptors go with the first byte.
    fn send(&mut self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<_> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let along = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let parts = [io::IoSlice::new(message)];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, along, MsgFlags::MSG_NOSIGNAL, None)?;
        self.stream.write_all(message.get(sent..).unwrap_or_default())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut fixed = [0; FIXED];
        self.stream.read_exact(&mut fixed)?;
        let total = wire::total(&fixed).ok_or_else(|| io::Error::other(wire::Garbled))?;
        let mut message = fixed.to_vec();
        message.resize(total, 0);
        if let Some(rest) = message.get_mut(FIXED..) {
            self.stream.read_exact(rest)?;
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call with every type of value and with descriptors, read and judged by dbus-daemon.
    #[test]
    fn a_real_bus_understands_us() {
        use super::super::wire::Value;
        use std::os::fd::AsFd as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        // Nothing that could be started by name.
        let config = format!(
            "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow user='*'/><allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>",
            path.display()
        );
        std::fs::write(dir.path().join("config"), config).unwrap();
        let mut daemon = std::process::Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--nosyslog"])
            .arg(format!("--config-file={}", dir.path().join("config").display()))
            .spawn()
            .expect("dbus-daemon is needed (package dbus-daemon)");
        let end = std::time::Instant::now() + Duration::from_secs(20);
        let mut bus = loop {
            match Bus::over(path.to_str().unwrap(), true) {
                Ok(bus) => break bus,
                Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let values = [
            ("A", Value::Bool(true)),
            ("B", Value::Number(u64::MAX)),
            ("C", Value::Text("text".into())),
            ("D", Value::Texts(vec!["one".into(), String::new()])),
            ("E", Value::Descriptor(1)),
            ("F", Value::Blobs(vec![b"blob".to_vec(), Vec::new()])),
            ("G", Value::Pairs(vec![("/dev/char/1:3".into(), "rwm".into())])),
            ("H", Value::Pairs(Vec::new())),
            ("J", Value::Numbers(vec![1, u32::MAX])),
            ("I", Value::Command(vec!["/bin/true".into(), "argument".into()])),
        ];
        let file = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..2 {
            let mut body = Writer::default();
            body.text("x.service");
            body.text("fail");
            body.array(8, &values, |w, (name, value)| w.property(name, value));
            body.array(8, [(); 0], |_, ()| {});
            let two = [file.as_fd(), file.as_fd()];
            // One wrong byte, and it would hang up. There is no systemd on this bus, and it says so.
            let answer = bus.ask_systemd("StartTransientUnit", "ssa(sv)a(sa(sv))", body, &two);
            let Err(CallError::Refused { name, message }) = answer else { panic!("{answer:?}") };
            assert_eq!(name, "org.freedesktop.DBus.Error.ServiceUnknown", "{message}");
            assert!(message.contains(SYSTEMD), "{message}");
        }
        let mut body = Writer::default();
        body.text("x.service");
        body.boolean(true);
        body.array(8, &[("MemoryMax", Value::Number(1))], |w, (name, value)| w.property(name, value));
        let answer = bus.ask_systemd("SetUnitProperties", "sba(sv)", body, &[]);
        assert!(matches!(answer, Err(CallError::Refused { .. })), "{answer:?}");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let mut body = Writer::default();
        body.text("x.service");
        assert!(matches!(bus.ask_systemd("GetUnit", "s", body, &[]), Err(CallError::Lost(_))));
    }

    #[test]
    fn another_program_on_the_socket_is_not_taken_for_systemd() {
        use std::os::unix::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        for answer in ["REJECTED EXTERNAL\r\n", "HTTP/1.1 400 Bad Request\r\n", ""] {
            let path = dir.path().join(format!("{}", answer.len()));
            let listener = UnixListener::bind(&path).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut begin = [0; 15];
                    stream.read_exact(&mut begin).unwrap();
                    assert_eq!(begin, *b"\0AUTH EXTERNAL ");
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                assert!(Bus::over(path.to_str().unwrap(), true).is_err(), "{answer}");
            });
        }
    }
}
