//! What a container's start reads and makes in an image's tree. The tests are the engine's own: they need containers.

/// Where they are.
pub const TESTS: &str = include_str!("../engine/images.rs");

pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub says: &'static str,
    /// A function of [`TESTS`].
    pub test: &'static str,
}

pub fn rows() -> Vec<Row> {
    let row = |name, source, says, test| Row { name, source, says, test };
    vec![
        row(
            "a user database that is a link to the host's",
            "CVE-2024-9676",
            "a link begins at the image's root, and leads nowhere there",
            "a_user_database_is_the_images_own_file_or_none",
        ),
        row(
            "a user database that is a pipe or a device",
            "CVE-2024-9676",
            "nobody waits for it, and nobody reads it",
            "a_user_database_is_the_images_own_file_or_none",
        ),
        row(
            "a list of groups without end",
            "CVE-2026-47262",
            "it is not read: none has more than 4 MiB",
            "a_list_of_groups_without_end_is_not_read",
        ),
        row(
            "a working directory behind a link out",
            "CVE-2026-55686",
            "nothing is made outside of the container",
            "a_working_directory_is_made_in_the_container_or_nowhere",
        ),
        row(
            "`/etc` as a link out",
            "CVE-2024-5154",
            "nothing is made outside of the container",
            "what_belongs_into_etc_is_put_there_or_nowhere",
        ),
    ]
}

#[test]
fn each_row_is_a_test_of_the_engine() {
    for row in rows() {
        assert!(TESTS.contains(&format!("#[test]\nfn {}() {{", row.test)), "{}: no {}", row.name, row.test);
    }
}
