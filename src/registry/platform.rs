//! Which images this machine runs, and which of several it runs best. The order is containerd's (containerd/platforms,
//! `Only`): the variant of this machine, then those below it, then the 32-bit architecture that it runs too.

use serde::Deserialize;

/// What an image says that it is for (OCI image-spec, "Image Index", `platform`).
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Architecture and variant as containerd normalizes them: what has several names, or none, gets one.
    fn normal(&self) -> (String, String) {
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        (architecture.to_owned(), variant.to_owned())
    }
}

/// `os/architecture[/variant]`, as it was written.
impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{variant}"),
        }
    }
}

/// What a machine runs, best first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Machine(Vec<(&'static str, &'static str)>);

impl Machine {
    /// This one. The program's own architecture counts, and of the processor only its level.
    pub fn this() -> Self {
        Self::of(std::env::consts::ARCH, level())
    }

    /// A machine with a program of this architecture (Rust's names), and a processor of this level.
    fn of(architecture: &'static str, level: u8) -> Self {
        const AMD64: [&str; 4] = ["", "v2", "v3", "v4"];
        const ARM: [&str; 4] = ["v5", "v6", "v7", "v8"];
        let arm = |level: u8| {
            let known = usize::from(level.saturating_sub(4)).clamp(1, ARM.len());
            ARM.iter().take(known).rev().map(|variant| ("arm", *variant))
        };
        Self(match architecture {
            "x86_64" => {
                let known = usize::from(level).clamp(1, AMD64.len());
                let variants = AMD64.iter().take(known).rev().map(|variant| ("amd64", *variant));
                variants.chain([("386", "")]).collect()
            }
            "x86" => vec![("386", "")],
            "aarch64" => [("arm64", "")].into_iter().chain(arm(8)).collect(),
            "arm" => arm(level).collect(),
            "powerpc64" if cfg!(target_endian = "little") => vec![("ppc64le", "")],
            "loongarch64" => vec![("loong64", "")],
            other => vec![(other, "")],
        })
    }

    /// How well it runs what is for this platform: 0 is best, `None` not at all.
    pub fn rank(&self, platform: &Platform) -> Option<usize> {
        if platform.os != "linux" {
            return None;
        }
        let (architecture, variant) = platform.normal();
        self.0.iter().position(|known| *known == (architecture.as_str(), variant.as_str()))
    }

    /// Whether it runs an image whose configuration says this: much of it is left out there, and then no reason against.
    pub fn runs(&self, said: &Platform) -> bool {
        if !said.os.is_empty() && said.os != "linux" {
            return false;
        }
        if said.architecture.is_empty() {
            return true;
        }
        let (architecture, variant) = said.normal();
        let unsaid = said.variant.as_deref().unwrap_or_default().is_empty();
        self.0.iter().any(|known| known.0 == architecture && (unsaid || known.1 == variant))
    }
}

/// `linux/architecture[/variant]`, the best that it runs.
impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.first() {
            Some((architecture, "")) => write!(f, "linux/{architecture}"),
            Some((architecture, variant)) => write!(f, "linux/{architecture}/{variant}"),
            None => f.write_str("linux"),
        }
    }
}

/// The level of this processor: of the x86-64 psABI (1 to 4), or the version of its ARM architecture.
#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    // LAHF, which belongs to v2, is in all that have the rest (x86-64 psABI, "Microarchitecture levels").
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("ssse3")
        && has!("sse4.1")
        && has!("sse4.2");
    let v3 = v2
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 =
        v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

/// The level of this processor: of the x86-64 psABI (1 to 4), or the version of its ARM architecture.
#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    let machine = nix::sys::utsname::uname();
    machine.map_or(0, |machine| arm_level(&machine.machine().to_string_lossy()))
}

/// The ARM architecture of a machine as `uname -m` names it (arch/arm/kernel/setup.c, `elf_name`). One that is not known
/// counts as the oldest: images for it run on all.
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "its table is tested everywhere"))]
fn arm_level(machine: &str) -> u8 {
    if machine == "aarch64" || machine == "arm64" {
        return 8;
    }
    let digit = machine.strip_prefix("armv").and_then(|rest| rest.bytes().next());
    digit.filter(u8::is_ascii_digit).map_or(5, |digit| digit - b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: Some(next()).filter(|text| !text.is_empty()) }
    }

    /// For each machine what is best of a list, over and over, until nothing is left that it runs.
    #[test]
    fn the_best_that_a_machine_runs() {
        const X86: &[&str] = &[
            "linux/386",
            "linux/amd64",
            "linux/amd64/v2",
            "windows/amd64",
            "linux/amd64/v4",
            "linux/amd64/v3",
            "linux/arm64",
            "linux/amd64/v5",
            "unknown/unknown",
        ];
        const ARM: &[&str] = &[
            "linux/arm/v7",
            "linux/arm/v5",
            "linux/amd64",
            "linux/arm64/v9",
            "linux/arm/v8",
            "linux/arm/v6",
            "linux/arm64/v8",
            "linux/arm64/v8.2",
        ];
        let rows: &[(&str, u8, &[&str], &[&str])] = &[
            ("x86_64", 1, X86, &["linux/amd64", "linux/386"]),
            ("x86_64", 2, X86, &["linux/amd64/v2", "linux/amd64", "linux/386"]),
            ("x86_64", 3, X86, &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
            (
                "x86_64",
                4,
                X86,
                &["linux/amd64/v4", "linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"],
            ),
            ("x86", 1, X86, &["linux/386"]),
            (
                "aarch64",
                8,
                ARM,
                &["linux/arm64/v8", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
            ),
            ("arm", 8, ARM, &["linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
            ("arm", 7, ARM, &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
            ("arm", 6, ARM, &["linux/arm/v6", "linux/arm/v5"]),
            ("arm", 5, ARM, &["linux/arm/v5"]),
            // Without a variant it is v7 (containerd/platforms, `normalizeArch`), which a v6 cannot run.
            ("arm", 6, &["linux/arm"], &[]),
            ("arm", 7, &["linux/arm", "linux/arm/v6"], &["linux/arm", "linux/arm/v6"]),
            ("arm", 7, &["linux/armel", "linux/armhf"], &["linux/armhf", "linux/armel"]),
            ("arm", 6, &["linux/armhf", "linux/armel"], &["linux/armel"]),
            ("aarch64", 8, &["linux/arm", "linux/aarch64"], &["linux/aarch64", "linux/arm"]),
            // One and the same: the first of the list.
            ("x86_64", 2, &["linux/amd64/v1", "linux/amd64"], &["linux/amd64/v1", "linux/amd64"]),
            ("x86_64", 1, &["linux/x86_64", "linux/amd64/v1"], &["linux/x86_64", "linux/amd64/v1"]),
            ("s390x", 0, &["linux/amd64", "linux/s390x"], &["linux/s390x"]),
            ("riscv64", 0, &["linux/riscv64", "linux/riscv64/rva23u64"], &["linux/riscv64"]),
            ("loongarch64", 0, &["linux/loong64"], &["linux/loong64"]),
        ];
        for (architecture, level, offered, expected) in rows {
            let machine = Machine::of(architecture, *level);
            let mut left: Vec<&str> = offered.to_vec();
            let mut chosen = Vec::new();
            while let Some((_, at)) = left
                .iter()
                .enumerate()
                .filter_map(|(at, text)| Some((machine.rank(&platform(text))?, at)))
                .min()
            {
                chosen.push(left.remove(at));
            }
            assert_eq!(chosen, *expected, "{architecture} of level {level}");
        }
    }

    #[test]
    fn configurations_say_less() {
        let rows: &[(&str, u8, &str, bool)] = &[
            ("x86_64", 1, "", true),
            ("x86_64", 1, "/amd64", true),
            ("x86_64", 1, "linux/amd64", true),
            ("x86_64", 1, "linux/amd64/v1", true),
            ("x86_64", 2, "linux/amd64/v3", false),
            ("x86_64", 3, "linux/amd64/v3", true),
            ("x86_64", 1, "linux/386", true),
            ("x86_64", 1, "linux/arm64", false),
            ("x86_64", 1, "windows/amd64", false),
            ("aarch64", 8, "linux/arm64/v8", true),
            ("aarch64", 8, "linux/arm/v7", true),
            // Images for v6 say so in their index, and often nowhere else.
            ("arm", 6, "linux/arm", true),
            ("arm", 6, "linux/arm/v6", true),
            ("arm", 6, "linux/arm/v7", false),
            ("arm", 7, "linux/arm64", false),
        ];
        for (architecture, level, said, expected) in rows {
            let machine = Machine::of(architecture, *level);
            assert_eq!(machine.runs(&platform(said)), *expected, "{architecture} of level {level}: {said}");
        }
    }

    #[test]
    fn machines_of_arm() {
        let rows = [
            ("armv5tel", 5),
            ("armv5tejl", 5),
            ("armv6l", 6),
            ("armv7l", 7),
            ("armv7b", 7),
            ("armv8l", 8),
            ("aarch64", 8),
            ("arm", 5),
            ("armv", 5),
            ("", 5),
        ];
        for (machine, level) in rows {
            assert_eq!(arm_level(machine), level, "{machine}");
        }
    }

    #[test]
    fn this_machine_runs_what_it_was_built_for() {
        let machine = Machine::this();
        assert!(machine.runs(&Platform::default()));
        assert!(machine.to_string().starts_with("linux/"));
        if cfg!(target_arch = "x86_64") {
            assert!(machine.rank(&platform("linux/amd64")).is_some());
            assert_eq!(machine.rank(&platform("linux/arm64")), None);
        }
    }
}
