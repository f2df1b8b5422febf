//! Datagrams from one socket, each of which has to come back with the server's version before it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::client::{Answer, Broken, Failure, Target, version_in};

/// One socket: one source port, so one flow to whoever looks at it on the way.
pub struct Udp {
    socket: UdpSocket,
    timeout: Duration,
    sent: u64,
}

impl Udp {
    pub fn open(target: &Target, timeout: Duration) -> Result<Self, Failure> {
        let address = target.address()?;
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)
            .and_then(|socket| socket.connect(address).map(|()| socket))
            .map_err(|_| Failure::ConnectOther)?;
        Ok(Self { socket, timeout, sent: 0 })
    }

    /// Sends one datagram and waits for its echo.
    pub fn ask(&mut self) -> Result<Answer, Broken> {
        self.sent += 1;
        let message = format!("datagram {}", self.sent);
        let broken = |failure| Broken { failure, stale: false };
        let kind = |error: std::io::Error| match error.kind() {
            ErrorKind::ConnectionRefused => broken(Failure::ConnectRefused),
            _ => broken(Failure::transfer(&error)),
        };
        self.socket.send(message.as_bytes()).map_err(kind)?;
        let end = Instant::now() + self.timeout;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(broken(Failure::Timeout));
            }
            self.socket.set_read_timeout(Some(left)).map_err(|_| broken(Failure::Other))?;
            let length = self.socket.recv(&mut buffer).map_err(kind)?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            // The echo of an earlier one that came too late was counted as lost.
            if text
                .split_once(' ')
                .and_then(|(_, rest)| rest.split_once(' '))
                .is_some_and(|(_, echo)| echo == message)
            {
                return Ok(Answer { version: version_in(&text), close: false });
            }
        }
    }
}
