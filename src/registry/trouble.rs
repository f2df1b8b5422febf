//! What went wrong below HTTP, and what a person can do about it. Without the URL: it may carry a signature.

use std::error::Error;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::PullError;
use super::proxies::Via;
use crate::types::Reason;

/// The way that a request took.
pub(super) struct Way<'a> {
    /// For messages: who was asked.
    pub whom: String,
    /// The section of the configuration that speaks for it, as it is written.
    pub section: String,
    /// Whether that section says which of http and https it is.
    pub chooses: bool,
    /// `host[:port]` of the server, where it is another one.
    pub elsewhere: Option<String>,
    pub proxy: Option<&'a Via>,
    /// Whether this host shows a certificate.
    pub certified: bool,
}

impl Way<'_> {
    /// What a failure of the connection means.
    pub fn trouble(&self, error: &reqwest::Error) -> PullError {
        let whom = &self.whom;
        let at = self.elsewhere.as_ref().map(|host| format!(" leads to {host}:")).unwrap_or_default();
        let by = self.proxy.map(|via| format!(" (by {via})")).unwrap_or_default();
        if let Some(tls) = tls(error) {
            return PullError::retry(Reason::Tls, format!("{whom}:{at} {}{by}", self.certificates(tls)));
        }
        let text = if error.is_timeout() && !error.is_body() {
            "no answer in time".to_owned()
        } else {
            innermost(error).unwrap_or_else(|| "the connection was lost".to_owned())
        };
        // hyper's words for what is no HTTP; a server that speaks TLS answers in it.
        let hint = match text.contains("invalid HTTP") {
            true if self.chooses => {
                let section = &self.section;
                format!(
                    "; what answers does not speak http: does it speak https, with plain_http in {section}?"
                )
            }
            true => "; what answers does not speak http: does it speak https?".to_owned(),
            false => String::new(),
        };
        // A tunnel that the proxy does not make (hyper-util's `TunnelError`).
        if text.contains("proxy auth") {
            let what = format!(
                "{whom}:{at} {text}{by}; it takes user and password in its address, http://user:password@proxy"
            );
            return PullError::retry(Reason::Auth, what);
        }
        PullError::network(format!("{whom}:{at} {text}{by}{hint}"), None)
    }

    fn certificates(&self, error: &rustls::Error) -> String {
        let section = &self.section;
        match error {
            rustls::Error::InvalidCertificate(error) => self.invalid(error),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) if self.chooses => {
                format!("it does not speak TLS; plain_http = true in {section}, if that is meant to be")
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                "it does not speak TLS".to_owned()
            }
            rustls::Error::AlertReceived(
                AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion,
            )
            | rustls::Error::PeerIncompatible(_) => {
                format!("it speaks no TLS that this host knows ({error}): it takes TLS 1.2 or 1.3")
            }
            // What a server says when it wants a certificate, or another one (RFC 8446 section 6.2).
            rustls::Error::AlertReceived(alert) if self.certified => format!(
                "it does not take this host's certificate ({alert:?}): look at client_cert of {section}"
            ),
            rustls::Error::AlertReceived(
                alert @ (AlertDescription::CertificateRequired | AlertDescription::BadCertificate),
            ) => format!(
                "it asks this host for a certificate ({alert:?}): set client_cert and client_key in {section}"
            ),
            error => error.to_string(),
        }
    }

    fn invalid(&self, error: &CertificateError) -> String {
        let section = &self.section;
        match error {
            CertificateError::UnknownIssuer => format!(
                "its certificate is by an authority that this host does not know; ca_file in {section} names one"
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("its certificate has expired: renew it, or look at this host's clock ({error})")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("its certificate is not valid yet: look at this host's clock ({error})")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name ({error})")
            }
            error if format!("{error:?}").contains("CaUsedAsEndEntity") => format!(
                "its certificate is an authority's own, which no server can show: have that one issue another, and name it as ca_file in {section}"
            ),
            error => error.to_string(),
        }
    }
}

/// The failure of TLS that it is about.
fn tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // The source of an I/O error is not what it was made of, but that one's source.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The last of its causes, which says most.
pub(crate) fn innermost(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source();
    let mut text = None;
    while let Some(error) = cause {
        text = Some(error.to_string());
        cause = error.source();
    }
    text
}
