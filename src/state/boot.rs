//! Which boot this is.

/// The kernel's id of this boot (proc_sys_kernel(5), random/boot_id); empty where it cannot be read.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
