//! What a benchmark ran on: the facts without which its figures mean nothing.

use super::disk::Room;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Times that a file is synced to see how long the disk takes.
const SYNCS: usize = 50;
/// Bytes written before each sync.
const SYNC_BYTES: usize = 4096;
/// File for it, in Kafka's data directory, where a broker looks for directories only.
const SYNC_FILE: &str = ".floodway-bench-sync";

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Version of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: cpu_model(&read("/proc/cpuinfo")).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(&read("/proc/meminfo")).unwrap_or(0),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The text after `model name` of `/proc/cpuinfo`.
fn cpu_model(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim())
}

/// Bytes from the line `MemTotal` of `/proc/meminfo`.
fn memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// How busy the machine was with other things, and how fast its disk is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Processes that ran or wanted to, on average over one, five and fifteen minutes, before the start.
    pub load_average: [f64; 3],
    /// Where the processes were: one machine or several.
    pub placement: String,
    /// The disk of Kafka's data, if it is known and local.
    pub disk: Option<Room>,
    /// How long the disk takes to write and sync 4 KiB, if it is known.
    pub sync: Option<SyncTimes>,
}

/// How long a sync takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncTimes {
    /// How often it was tried.
    pub tries: usize,
    /// Half took at most this, in microseconds.
    pub median_micros: u64,
    /// The longest, in microseconds.
    pub max_micros: u64,
}

impl Conditions {
    /// As things are now, with those processes beside each other.
    pub fn now(placement: &str, kafka_data: Option<&Path>) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            load_average: load_average(&load).unwrap_or_default(),
            placement: placement.to_owned(),
            disk: kafka_data.and_then(|path| Room::of(path).ok()),
            sync: kafka_data.and_then(|path| sync_times(path).ok()),
        }
    }
}

fn load_average(text: &str) -> Option<[f64; 3]> {
    let mut fields = text.split_ascii_whitespace().map_while(|field| field.parse().ok());
    Some([fields.next()?, fields.next()?, fields.next()?])
}

fn sync_times(directory: &Path) -> std::io::Result<SyncTimes> {
    let path = directory.join(SYNC_FILE);
    let result = File::create(&path).and_then(|mut file| {
        let mut times = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&[0; SYNC_BYTES])?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        Ok(times)
    });
    // A file left behind is small, and the next run empties it.
    let _ = fs::remove_file(&path);
    let mut times = result?;
    times.sort_unstable();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(SyncTimes {
        tries: SYNCS,
        median_micros: micros(times[SYNCS / 2]),
        max_micros: micros(times[SYNCS - 1]),
    })
}

/// What was measured, and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Software {
    /// What `floodway --version` says.
    pub floodway: String,
    /// Commit of the working directory, with a mark if files differ from it; empty outside a repository.
    pub commit: String,
    /// What `rustc --version` says here; empty if there is none.
    pub rustc: String,
    /// Version of Kafka, from the broker's class path; empty if the broker is not on this machine.
    pub kafka: String,
    /// Version of PostgreSQL.
    pub postgres: String,
    /// Settings of Floodway that this environment changes, secrets not shown.
    pub settings: Vec<String>,
}

impl Software {
    /// Asks the programs. The version of PostgreSQL is asked elsewhere, over its connection.
    pub fn here(floodway: &Path, broker: Option<u32>) -> Self {
        let settings = std::env::vars().filter(|(name, _)| name.starts_with("FLOODWAY_"));
        Self {
            floodway: output(Command::new(floodway).arg("--version")),
            commit: commit(),
            rustc: output(Command::new("rustc").arg("--version")),
            kafka: broker.and_then(kafka_version).unwrap_or_default(),
            postgres: String::new(),
            settings: changed_settings(settings),
        }
    }
}

/// The first line that a program prints; empty if it fails.
fn output(command: &mut Command) -> String {
    let printed = command.output().ok().filter(|output| output.status.success());
    let text = printed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn commit() -> String {
    let commit = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
    let changed = output(Command::new("git").args(["status", "--porcelain", "--untracked-files=no"]));
    if commit.is_empty() || changed.is_empty() { commit } else { format!("{commit} with changes") }
}

fn kafka_version(broker: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{broker}/cmdline")).ok()?;
    kafka_version_of(&String::from_utf8_lossy(&line)).map(str::to_owned)
}

/// The version in the name of Kafka's own archive, `kafka_<scala>-<version>.jar`.
fn kafka_version_of(command_line: &str) -> Option<&str> {
    let names = command_line.split([':', '\0', '/']).filter_map(|name| name.strip_suffix(".jar"));
    names.filter_map(|name| name.strip_prefix("kafka_")?.split_once('-')).map(|(_, version)| version).next()
}

/// Settings of the roles that are measured and of the Kafka client; of the rest only those that no secret can be in.
fn changed_settings(variables: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let told = |name: &str| {
        ["FLOODWAY_INGEST__", "FLOODWAY_DISPATCHER__", "FLOODWAY_RETRY_SCHEDULER__"]
            .iter()
            .any(|section| name.starts_with(section))
            || name == "FLOODWAY_KAFKA__SECURITY_PROTOCOL"
    };
    let mut settings: Vec<String> = variables
        .filter(|(name, _)| told(name) && !name.contains("LISTEN") && !name.contains("TLS"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    settings.sort_unstable();
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_from_the_kernels_files() {
        assert_eq!(cpu_model("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n"), Some("AMD EPYC"));
        assert_eq!(cpu_model(""), None);
        assert_eq!(memory("MemTotal:       24684124 kB\nMemFree: 1 kB\n"), Some(24_684_124 * 1024));
        assert_eq!(load_average("0.52 1.25 2.00 3/345 12345\n"), Some([0.52, 1.25, 2.0]));
        assert_eq!(load_average("0.52"), None);
        assert!(Machine::here().cores > 0);
    }

    #[test]
    fn kafkas_version_is_in_its_class_path() {
        let line = "java\0-cp\0/jars/a-1.jar:/jars/kafka-clients-4.3.1.jar:/jars/kafka_2.13-4.3.1.jar\0kafka.Kafka\0";
        assert_eq!(kafka_version_of(line), Some("4.3.1"));
        assert_eq!(kafka_version_of("sleep\0"), None);
    }

    #[test]
    fn a_sync_is_timed_and_leaves_nothing() {
        let directory = std::env::temp_dir().join(format!("floodway-bench-{:016x}", rand::random::<u64>()));
        fs::create_dir_all(&directory).unwrap();
        let times = sync_times(&directory).unwrap();
        assert!(0 < times.median_micros && times.median_micros <= times.max_micros);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn changed_settings_are_told_without_secrets() {
        let set = [
            ("FLOODWAY_INGEST__WORKERS", "1"),
            ("FLOODWAY_INGEST__LISTEN", "x"),
            ("FLOODWAY_SEALING_KEY", "secret"),
            ("FLOODWAY_DATABASE_URL", "secret"),
            ("FLOODWAY_KAFKA__SASL_PASSWORD", "secret"),
        ];
        let variables = set.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(changed_settings(variables), ["FLOODWAY_INGEST__WORKERS=1"]);
    }
}
