//! Advisories about what pulls, unpacks and looks into images: each is a row's source, or has no counterpart here.

use std::collections::BTreeSet;

/// Of Docker, containerd, Podman, CRI-O, umoci, ORAS and readers of tar, as of August 2026.
const ADVISORIES: &[&str] = &[
    // Paths and links.
    "CVE-2014-9356",
    "CVE-2014-9358",
    "CVE-2018-20990",
    "CVE-2019-18466",
    "CVE-2020-10696",
    "CVE-2021-29136",
    "CVE-2021-32760",
    "CVE-2021-38511",
    "CVE-2024-3727",
    "CVE-2025-47290",
    "CVE-2026-33056",
    "CVE-2026-41568",
    "CVE-2026-42306",
    "CVE-2026-50162",
    "CVE-2026-50163",
    // What is read in an image's tree later.
    "CVE-2022-23648",
    "CVE-2024-5154",
    "CVE-2024-9676",
    "CVE-2026-41579",
    "CVE-2026-47262",
    "CVE-2026-55686",
    // Programs of an image that are executed on the host.
    "CVE-2014-9357",
    "CVE-2019-14271",
    "CVE-2026-41567",
    // Configurations.
    "CVE-2026-24054",
    "CVE-2026-50195",
    "CVE-2026-53488",
    // Programs with more rights than their users.
    "CVE-2021-41091",
    "CVE-2021-41103",
    "CVE-2024-25621",
    // One thing for a scanner, another for the host.
    "CVE-2021-41190",
    "CVE-2025-62518",
    "CVE-2026-32766",
    "CVE-2026-33055",
    "GHSA-3cv2-h65g-fgmm",
    "GHSA-fp55-jw48-c537",
    // Bombs.
    "CVE-2017-14992",
    "CVE-2022-2879",
    "CVE-2023-25153",
    "CVE-2025-58183",
    "CVE-2026-32288",
    // Credentials.
    "CVE-2019-10214",
    "CVE-2020-15157",
    "CVE-2021-41092",
    "CVE-2026-48978",
    "CVE-2026-50151",
    "GHSA-vh4v-2xq2-g5cg",
];

/// What it was, by which advisory, and why it cannot be here.
pub const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "links that are exchanged while files are copied into a container, or out of it",
        "CVE-2019-18466, CVE-2026-41568, CVE-2026-42306",
        "there is no such command",
    ),
    (
        "an upload that its registry sends elsewhere, credentials and all",
        "CVE-2026-50151",
        "nothing is ever uploaded to a registry",
    ),
];

/// A row may stand for others of its kind: `CVE-2017-14992 class`.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(", ").map(|word| word.trim_end_matches(" class"));
    words.filter(|word| word.starts_with("CVE-") || word.starts_with("GHSA-"))
}

#[test]
fn each_advisory_has_a_row_or_a_reason() {
    let sections = super::page::sections();
    let rows: BTreeSet<&str> =
        sections.iter().flat_map(|(_, rows)| rows).flat_map(|row| names(&row[1])).collect();
    let elsewhere: BTreeSet<&str> = ELSEWHERE.iter().flat_map(|(_, source, _)| names(source)).collect();
    for advisory in ADVISORIES {
        assert!(
            rows.contains(advisory) != elsewhere.contains(advisory),
            "{advisory}: a row, or a reason why there is none"
        );
    }
    for advisory in elsewhere {
        assert!(ADVISORIES.contains(&advisory), "{advisory} is not on the list");
    }
    let sorted: BTreeSet<_> = ADVISORIES.iter().collect();
    assert_eq!(sorted.len(), ADVISORIES.len());
}
