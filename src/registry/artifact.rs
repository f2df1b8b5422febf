//! What manifests are for that are no container images (OCI image-spec, "Guidelines for Artifact Usage").

/// What is told apart by name, by a part of its media type. The first that fits.
const KNOWN: [(&str, &str); 22] = [
    ("cncf.helm.config", "a Helm chart"),
    ("cncf.helm.chart", "a Helm chart"),
    ("cosign.simplesigning", "a signature"),
    ("sigstore.bundle", "a signature"),
    ("cncf.notary.signature", "a signature"),
    ("docker.attestation", "an attestation"),
    ("in-toto", "an attestation"),
    ("dsse.envelope", "an attestation"),
    ("spdx", "a list of software (SBOM)"),
    ("cyclonedx", "a list of software (SBOM)"),
    ("syft", "a list of software (SBOM)"),
    ("docker.plugin", "a Docker plugin"),
    ("docker.compose", "a Compose project"),
    ("docker.ai", "a model"),
    ("cncf.model", "a model"),
    ("ollama", "a model"),
    ("cncf.flux", "a Flux artifact"),
    ("cncf.openpolicyagent", "a policy"),
    ("wasm", "a WebAssembly module"),
    ("sylabs.sif", "a Singularity image"),
    ("buildkit.cacheconfig", "a build cache"),
    ("devcontainers", "a part of a development container"),
];

/// `a Helm chart (application/…)`; only the type where it is not known.
pub(super) fn name_of(media: &str) -> String {
    match KNOWN.iter().find(|(part, _)| media.contains(part)) {
        Some((_, name)) => format!("{name} ({media})"),
        None => format!("an artifact of type {media}"),
    }
}

/// Whether a layer's type says that there is no file system in it.
pub(super) fn is_known(media: &str) -> bool {
    KNOWN.iter().any(|(part, _)| media.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let rows = [
            ("application/vnd.cncf.helm.config.v1+json", "a Helm chart"),
            ("application/vnd.dev.cosign.simplesigning.v1+json", "a signature"),
            ("application/vnd.dev.sigstore.bundle.v0.3+json", "a signature"),
            ("application/vnd.in-toto+json", "an attestation"),
            ("application/vnd.dsse.envelope.v1+json", "an attestation"),
            ("application/vnd.cyclonedx+json", "SBOM"),
            ("application/vnd.wasm.config.v0+json", "WebAssembly"),
            ("application/x-unheard-of", "an artifact of type application/x-unheard-of"),
        ];
        for (media, name) in rows {
            let text = name_of(media);
            assert!(text.contains(name) && text.contains(media), "{text}");
        }
        for image in [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        ] {
            assert!(!is_known(image), "{image}");
        }
    }
}
