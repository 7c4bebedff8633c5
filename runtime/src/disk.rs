//! Room on the disk of the working directory. Floodway keeps its data in Kafka and PostgreSQL, which watch their own disks; what a
//! role writes itself is logs, where the operator sends them to a file.

use serde::Serialize;
use std::{io, path::Path};

/// A file system, as `/health/detailed` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes that this process may still write.
    pub free_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
}

impl Disk {
    /// The file system that holds `path`.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_has_a_disk_with_some_of_it_free() {
        let disk = Disk::of(Path::new(".")).unwrap();
        assert!(0 < disk.total_bytes && disk.free_bytes <= disk.total_bytes, "{disk:?}");
        assert!(Disk::of(Path::new("/no/such/folder")).is_err());
    }
}
