//! Names of PCI devices, from the list that `lspci` has as well (package `pci.ids`).

use crate::root::Root;

/// Where distributions put the list.
const LISTS: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// What vendors and their devices are called; nothing, if the list is not installed.
pub(crate) struct Names(String);

impl Names {
    /// The list of this machine.
    pub fn read(root: &Root) -> Names {
        Names(LISTS.iter().find_map(|path| root.read(path)).unwrap_or_default())
    }

    /// "Intel Corporation 82574L Gigabit Network Connection"; the vendor alone, if the device is not in the list.
    ///
    /// A vendor is a line that begins with its number, its devices are the lines below that begin with a tab; those with two
    /// are boards.
    pub fn of(&self, vendor: u16, device: u16) -> Option<String> {
        let mut lines = self.0.lines();
        let begin = format!("{vendor:04x}  ");
        let vendor = lines.find_map(|line| line.strip_prefix(&begin))?;
        let begin = format!("\t{device:04x}  ");
        let mut devices = lines.take_while(|line| line.starts_with(['\t', '#']));
        Some(match devices.find_map(|line| line.strip_prefix(&begin)) {
            Some(device) => format!("{vendor} {device}"),
            None => vendor.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::testing::machine;

    #[test]
    fn names_of_the_list() {
        let list = "# PCI IDs\n1af4  Red Hat, Inc.\n\t1041  Virtio 1.0 network device\n8086  Intel Corporation\n\t10d3  82574L\n\
                    \t\t103c 1717  Z600\n\t10d4  Matador\nffff  Nobody\n";
        let (_directory, root) = machine(&[(LISTS[1], list)]);
        let names = Names::read(&root);
        assert_eq!(names.of(0x8086, 0x10d3).as_deref(), Some("Intel Corporation 82574L"));
        assert_eq!(names.of(0x8086, 0x10d4).as_deref(), Some("Intel Corporation Matador"));
        assert_eq!(names.of(0x1af4, 0x10d4).as_deref(), Some("Red Hat, Inc."));
        assert_eq!(names.of(0x1af5, 0x10d4), None);
        let (_directory, bare) = machine(&[]);
        assert_eq!(Names::read(&bare).of(0x8086, 0x10d3), None);
    }
}
