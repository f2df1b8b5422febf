//! Which version this is.

/// The program's version. With the feature `failpoints` a test can have it otherwise by `GITOPSD_TEST_VERSION`: so an
/// upgrade can be tried without a second build.
pub fn version() -> String {
    #[cfg(feature = "failpoints")]
    if let Ok(version) = std::env::var("GITOPSD_TEST_VERSION") {
        return version;
    }
    env!("CARGO_PKG_VERSION").to_owned()
}
