//! Whether this CPU can run the program at all.
//!
//! It is built for x86-64-v3 (AVX2, BMI, FMA; and with them a 16-byte load that is atomic), and a CPU without
//! that ends it by SIGILL somewhere. `is_x86_feature_detected!` is constantly true in such a build, so Linux is
//! asked, which has asked CPUID, and knows better what it has switched on.

use std::fs;

/// What x86-64-v3 has beyond the first x86-64, as Linux spells it (`abm` is LZCNT); and cmpxchg16b.
const NEEDED: &[&str] = &[
    "cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma",
    "abm", "movbe", "xsave",
];

/// What this CPU lacks. Nothing, if Linux does not say: then the attempt shows.
pub fn lacks() -> Vec<&'static str> {
    fs::read_to_string("/proc/cpuinfo").map(|cpuinfo| lacking(&cpuinfo)).unwrap_or_default()
}

/// What the CPU of this `/proc/cpuinfo` lacks.
pub(crate) fn lacking(cpuinfo: &str) -> Vec<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).and_then(|line| line.split_once(':'));
    let Some((_, flags)) = flags else { return Vec::new() };
    let lacks = |needed: &&&str| !flags.split_ascii_whitespace().any(|flag| flag == **needed);
    NEEDED.iter().filter(lacks).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_of_2011_lacks_what_came_in_2013() {
        let sandy_bridge =
            "processor\t: 0\nflags\t\t: fpu sse2 ssse3 cx16 sse4_1 sse4_2 popcnt xsave avx lahf_lm\n";
        assert_eq!(lacking(sandy_bridge), ["avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"]);
    }

    #[test]
    fn a_newer_one_lacks_nothing() {
        assert_eq!(lacking(&format!("flags : {}\n", NEEDED.join(" "))), [""; 0]);
    }

    #[test]
    fn silence_is_no_lack() {
        assert_eq!(lacking("Processor : something else\n"), [""; 0]);
    }
}
