//! How much memory the host can give a guest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why the amount could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum MemoryInfoError {
    /// A file of the kernel could not be read.
    #[error("cannot read {path}: {source}; is /proc mounted?")]
    Read {
        /// The file.
        path: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The file has no such line.
    #[error("/proc/meminfo has no line MemAvailable; Linux 3.14 or newer is needed")]
    NoMemAvailable,
}

/// Bytes this process could still use without swapping: the kernel's `MemAvailable`, or what is
/// left of the tightest memory limit among the control groups it is in.
pub fn available_bytes() -> Result<u64, MemoryInfoError> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).map_err(|source| MemoryInfoError::Read { path, source })?;
    let available = mem_available(&text).ok_or(MemoryInfoError::NoMemAvailable)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(group_available(&groups, Path::new("/sys/fs/cgroup"))
        .map_or(available, |left| available.min(left)))
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What is left of the tightest limit; `None` where no group has one.
fn group_available(groups: &str, root: &Path) -> Option<u64> {
    groups.lines().filter_map(|line| line_available(line, root)).min()
}

/// A line of `/proc/self/cgroup` is `id:controllers:path`; version 2 has id 0 and no controllers.
fn line_available(line: &str, root: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let (root, files) = if controllers.is_empty() {
        (root.to_owned(), ["memory.max", "memory.current", "inactive_file"])
    } else if controllers.split(',').any(|name| name == "memory") {
        let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
        (root.join("memory"), files)
    } else {
        return None;
    };
    let mut folder: PathBuf = root.join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    loop {
        if let Some(left) = folder_available(&folder, files) {
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        if folder == root || !folder.pop() {
            return least;
        }
    }
}

/// The limit less what is used and cannot be reclaimed at once.
fn folder_available(folder: &Path, [limit, usage, reclaimable]: [&str; 3]) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    };
    let limit = number(limit)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat
        .lines()
        .find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(number(usage)?.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_memory() {
        let available = available_bytes().unwrap();
        assert!(available > 1 << 20 && available < 1 << 50, "{available}");
    }

    #[test]
    fn meminfo_line_is_in_kibibytes() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: 99999999999999999 kB\n"), None);
    }

    #[test]
    fn tightest_group_on_the_way_up_decides() {
        let root = std::env::temp_dir().join(format!("doppel-cgroup-{}", std::process::id()));
        for (folder, limit, used) in [("a", "1000", "100"), ("a/b", "max", "50")] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("memory.max"), limit).unwrap();
            fs::write(folder.join("memory.current"), used).unwrap();
            fs::write(folder.join("memory.stat"), "anon 9\ninactive_file 30\n").unwrap();
        }
        assert_eq!(group_available("0::/a/b\n", &root), Some(930));
        assert_eq!(group_available("0::/\n4:cpu,cpuacct:/a\n", &root), None);
        fs::remove_dir_all(root).unwrap();
    }
}
