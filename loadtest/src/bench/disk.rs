//! Whether the disk holds what a benchmark writes.

use super::BenchError;
use crate::{file_error::FileError, report::bytes};
use serde::{Deserialize, Serialize};
use std::{io, path::Path};
use thiserror::Error;

/// Room that stays free whatever a benchmark needs: other programs write too, and a broker whose disk is full ends.
pub const RESERVE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// What a stored event takes beside its `data`: the envelope's attributes, key and header, compressed.
const STORED_ENVELOPE_BYTES: u64 = 150;
/// For this long after they could go, records still take room: Kafka looks for what may be deleted every five minutes,
/// and deletes segments a little later.
pub const RETENTION_LAG_SECONDS: u64 = 330;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes that this process may still write.
    pub free_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
}

impl Room {
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

/// The disk is too small for what is asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{purpose} needs {} on the disk of Kafka's data ({needed} bytes, of which {} stay free), there are {} ({available} \
     bytes): make room, or run less (--profile quick, --scenario)",
    bytes(*needed), bytes(RESERVE_BYTES), bytes(*available)
)]
pub struct DiskFull {
    /// What it is for.
    pub purpose: String,
    /// Bytes that have to be free.
    pub needed: u64,
    /// Bytes that are.
    pub available: u64,
}

/// Something that will be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Volume {
    /// For this long, in seconds.
    pub seconds: f64,
    /// Events per second, at most.
    pub events_per_second: f64,
    /// Bytes of one stored event.
    pub event_bytes: u64,
    /// Nothing may be deleted before the end, because it is still to be read.
    pub kept: bool,
}

impl Volume {
    /// Bytes on the disk at the most. What is not kept goes by retention, with a lag.
    pub fn bytes(&self) -> u64 {
        let seconds = if self.kept { self.seconds } else { self.seconds.min(RETENTION_LAG_SECONDS as f64) };
        (seconds * self.events_per_second) as u64 * self.event_bytes
    }
}

/// Bytes that a stored event takes, from the bytes of its `data` and the share that compression leaves of them.
pub fn stored_event_bytes(data_bytes: usize, compressed_share: f64) -> u64 {
    (data_bytes as f64 * compressed_share) as u64 + STORED_ENVELOPE_BYTES
}

/// Whether `volumes`, which are on the disk at the same time, fit into `available` bytes and leave the reserve.
///
/// # Errors
/// If they do not; the error names both numbers.
pub fn check(purpose: &str, volumes: &[Volume], available: u64) -> Result<u64, DiskFull> {
    let needed = volumes.iter().fold(RESERVE_BYTES, |sum, volume| sum.saturating_add(volume.bytes()));
    if needed <= available {
        return Ok(needed);
    }
    Err(DiskFull { purpose: purpose.to_owned(), needed, available })
}

/// The same for the disk that holds `path`, where there is one on this machine.
///
/// # Errors
/// If they do not fit, or the system does not say how much room there is.
pub fn check_at(path: Option<&Path>, purpose: &str, volumes: &[Volume]) -> Result<(), BenchError> {
    let Some(path) = path else { return Ok(()) };
    let available = Room::of(path).map_err(|reason| FileError::at(path, reason))?.free_bytes;
    check(purpose, volumes, available)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn volume(seconds: f64, kept: bool) -> Volume {
        Volume { seconds, events_per_second: 100_000.0, event_bytes: 200, kept }
    }

    #[test]
    fn what_is_kept_counts_whole_and_the_rest_only_until_retention_reaches_it() {
        assert_eq!(volume(10.0, false).bytes(), 200_000_000);
        assert_eq!(volume(600.0, true).bytes(), 12 * GB);
        assert_eq!(volume(600.0, false).bytes(), volume(330.0, true).bytes());
    }

    #[test]
    fn too_small_a_disk_is_refused_with_both_numbers() {
        assert_eq!(check("x", &[volume(600.0, true)], 20 * GB), Ok(12 * GB + RESERVE_BYTES));
        let refused = check("the endurance run", &[volume(600.0, true)], 10 * GB).unwrap_err();
        assert_eq!((refused.needed, refused.available), (12 * GB + RESERVE_BYTES, 10 * GB));
        let text = refused.to_string();
        assert!(
            text.contains("the endurance run needs 13.2 GiB") && text.contains("10000000000 bytes"),
            "{text}"
        );
        assert!(check("x", &[], RESERVE_BYTES - 1).is_err(), "the reserve is needed in any case");
    }

    #[test]
    fn an_events_size_on_disk_follows_from_its_data() {
        assert_eq!(stored_event_bytes(500, 0.1), 200);
        assert_eq!(stored_event_bytes(500, 0.75), 525);
    }

    #[test]
    fn the_working_directory_is_on_a_disk() {
        let room = Room::of(Path::new(".")).unwrap();
        assert!(0 < room.total_bytes && room.free_bytes <= room.total_bytes);
        assert!(Room::of(Path::new("/no/such/folder")).is_err());
    }
}
