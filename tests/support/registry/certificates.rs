//! Certificate authorities, and certificates by them, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority, and a certificate by it.
#[derive(Clone)]
pub struct Certificates {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// `subject`: whom it is for, as `IP:127.0.0.1`. `days`: how long, from now.
    pub fn new(dir: &Path, name: &str, subject: &str, days: &str) -> Self {
        let openssl = |line: &str| {
            let line = line.replace("NAME", name);
            let output = Command::new("openssl").current_dir(dir).args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let extensions = format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={subject}\n");
        std::fs::write(dir.join(format!("{name}.ext")), extensions).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -subj /CN=lab-NAME -days 2 -keyout NAME-ca.key -out NAME-ca.pem"));
        openssl(&format!("req {key} -subj /CN=NAME -keyout NAME.key -out NAME.csr"));
        let by = "-CA NAME-ca.pem -CAkey NAME-ca.key -CAcreateserial";
        openssl(&format!("x509 -req -in NAME.csr {by} -extfile NAME.ext -days {days} -out NAME.pem"));
        let path = |kind: &str| dir.join(format!("{name}{kind}"));
        Self { ca: path("-ca.pem"), certificate: path(".pem"), key: path(".key") }
    }

    /// What a server is that shows it.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let chain = CertificateDer::pem_file_iter(&self.certificate).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        config.with_single_cert(chain, key).unwrap().into()
    }
}
