//! Places where a test can kill the program, hold it up, or leave out a step. Nothing without the feature `failpoints`.

/// With the feature and `FAILPOINTS='NAME=return'`, the process kills itself here, as `kill -9` would: no destructor
/// runs, no buffer is flushed; with `NAME=sleep(MILLISECONDS)` it waits.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "only failpoints read it"))]
pub(crate) fn hit(name: &str) {
    fail::fail_point!(name, |_| {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    });
}

/// Whether a test wants a step left out, by `FAILPOINTS='NAME=return'`: shows that the test of that step can fail.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "only failpoints read it"))]
pub(crate) fn is_set(name: &str) -> bool {
    fail::fail_point!(name, |_| true);
    false
}
