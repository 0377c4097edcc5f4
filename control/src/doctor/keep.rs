//! The directory where connections outlive the process.

use super::{Finding, Root, Severity};
use crate::config::Config;
use crate::memory;

const SUBJECT: &str = "table.keep";

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The type and the options of the file system that it is on.
    system: Option<(String, String)>,
    /// Free hugepages of 2 MB.
    free: Option<u64>,
    /// What Linux does when a file on tmpfs is to be in huge pages.
    shmem: Option<String>,
    /// Whether a table is there, and has its memory.
    made: bool,
}

impl Facts {
    pub(super) fn collect(root: &Root, config: &Config) -> Facts {
        let Some(path) = &config.table.keep else { return Facts::default() };
        Facts {
            system: root.file_system(path),
            free: root.number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"),
            shmem: root.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            made: root.exists(&path.join("index").to_string_lossy()),
        }
    }
}

pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let (Some(path), Some((system, options))) = (&config.table.keep, &facts.system) else {
        return Vec::new();
    };
    let finding = |key, severity, problem: String, remedy: String| {
        vec![Finding::new(key, severity, SUBJECT, problem, remedy)]
    };
    match system.as_str() {
        "hugetlbfs" if options.split(',').any(|option| option == "pagesize=1024M") => finding(
            "keep-page-size",
            Severity::Error,
            format!("{} has pages of 1 GB, and each file takes one", path.display()),
            "mount -t hugetlbfs -o pagesize=2M nodev /mnt/huge2m, and a directory in there".to_owned(),
        ),
        "hugetlbfs" => {
            let wanted = memory::of_kept_table(config) + memory::wanted(config, 1);
            match facts.free.map(|pages| pages * 2) {
                Some(free) if free < wanted && !facts.made => finding(
                    "keep-hugepages",
                    Severity::Error,
                    format!("{free} MB of hugepages are free, {wanted} MB are wanted with the table"),
                    format!("reserve {} more hugepages of 2 MB", (wanted - free).div_ceil(2)),
                ),
                _ => Vec::new(),
            }
        }
        "tmpfs" => {
            let huge = facts
                .shmem
                .as_ref()
                .is_some_and(|shmem| !shmem.contains("[never]") && !shmem.contains("[deny]"));
            if huge {
                return Vec::new();
            }
            finding(
                "keep-tmpfs",
                Severity::Note,
                "on tmpfs the table is in pages of 4 kB, which costs a packet 3 to 5 % more cycles at a million flows".to_owned(),
                "keep = \"/dev/hugepages/rvs\", or echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled".to_owned(),
            )
        }
        other => finding(
            "keep-disk",
            Severity::Error,
            format!("{} is on {other}, where Linux would write every connection to a disk", path.display()),
            "a directory on hugetlbfs or tmpfs, e.g. keep = \"/dev/hugepages/rvs\"".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, machine, short};
    use super::*;

    const MOUNTS: &str = "/dev/sda1 / ext4 rw 0 0\ntmpfs /run tmpfs rw,nosuid 0 0\n\
                          nodev /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\nnodev /mnt/1g hugetlbfs rw,pagesize=1024M 0 0";

    /// What is said of this directory, with so many free hugepages; a table of a million connections takes 31 MB.
    fn said(keep: &str, free: &str, more: &[(&str, &str)]) -> Vec<String> {
        let config = config("net_null", &format!("[eal]\nmemory = 100\n[table]\nkeep = \"{keep}\""));
        let free = ("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", free);
        let (_directory, root) = machine(&[&[("/proc/mounts", MOUNTS), free], more].concat());
        short(&judge(&Facts::collect(&root, &config), &config))
    }

    #[test]
    fn where_it_is() {
        assert_eq!(
            said("/var/lib/rvs", "99", &[]),
            ["error /var/lib/rvs is on ext4, where Linux would write every connection to a disk"]
        );
        assert_eq!(said("/runner/rvs", "99", &[]).len(), 1, "a name that begins alike is another directory");
        assert_eq!(
            said("/mnt/1g/rvs", "99", &[]),
            ["error /mnt/1g/rvs has pages of 1 GB, and each file takes one"]
        );
        let shmem = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
        assert!(
            said("/run/rvs/table", "0", &[(shmem, "always advise [never]")])[0].starts_with("note on tmpfs")
        );
        assert_eq!(said("/run/rvs/table", "0", &[(shmem, "always [advise] never")]), [""; 0]);
    }

    #[test]
    fn whether_there_is_room() {
        assert_eq!(said("/dev/hugepages/rvs", "68", &[]), [""; 0]);
        assert_eq!(
            said("/dev/hugepages/rvs", "67", &[]),
            ["error 134 MB of hugepages are free, 135 MB are wanted with the table"]
        );
        assert_eq!(said("/dev/hugepages/rvs", "0", &[("/dev/hugepages/rvs/index", "")]), [""; 0]);
    }

    #[test]
    fn who_keeps_nothing_is_told_nothing() {
        let config = config("net_null", "");
        assert_eq!(judge(&Facts::default(), &config), []);
    }
}
