//! What processes cost: CPU time and memory as the kernel counts them, read while a run goes on and looked up
//! afterwards for the part of it that is measured.

use crate::load::Progress;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Pause between two looks. The kernel counts CPU time in hundredths of a second; looking more often tells no more.
const PAUSE: Duration = Duration::from_millis(20);
/// Looks that are kept: more than an hour of them, about 200 bytes each. A longer run loses its end.
const MAX_LOOKS: usize = 200_000;

/// Whose process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// What is measured: ingest, the dispatcher, or a floor.
    Server,
    /// The retry scheduler.
    Scheduler,
    /// Floodway's other roles.
    Beside,
    /// What receives webhooks.
    Sink,
    /// Kafka, all brokers together.
    Broker,
    /// The process that generates the load.
    Generator,
}

/// A process to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Whose it is; several of one subject are added up.
    pub subject: Subject,
    /// Its id.
    pub pid: u32,
}

/// What one subject used in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time outside the kernel, all threads, in microseconds.
    pub user_micros: f64,
    /// CPU time inside the kernel, all threads, in microseconds.
    pub system_micros: f64,
    /// Memory in use at the end, in bytes.
    pub resident_bytes: u64,
    /// Most memory in use since the process began or its peak was last forgotten, in bytes.
    pub peak_bytes: u64,
}

impl Usage {
    /// CPU time, in microseconds.
    pub fn cpu_micros(&self) -> f64 {
        self.user_micros + self.system_micros
    }
}

/// CPU times of a process since its start, and its memory now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Outside the kernel, in microseconds.
    pub user_micros: u64,
    /// Inside the kernel, in microseconds.
    pub system_micros: u64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// Its peak, in bytes.
    pub peak_bytes: u64,
}

impl Reading {
    /// Reads a process; `None` when it is gone or cannot be read.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::parse(&stat, &status, rustix::param::clock_ticks_per_second())
    }

    /// From the texts of `/proc/<pid>/stat` and `/proc/<pid>/status`.
    pub fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Option<Self> {
        // The second field is the program's name, which may hold spaces and parentheses; what follows its end does not.
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_ascii_whitespace();
        // Counted from 1 with the name as the second, user time is the fourteenth field and system time follows.
        let mut ticks = || -> Option<u64> { fields.next()?.parse().ok() };
        let mut skipped = 0;
        while skipped < 11 {
            let _ = ticks();
            skipped += 1;
        }
        let micros = |ticks: u64| ticks * 1_000_000 / ticks_per_second.max(1);
        let (user_micros, system_micros) = (micros(ticks()?), micros(ticks()?));
        let kilobytes = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Some(Self {
            user_micros,
            system_micros,
            resident_bytes: kilobytes("VmRSS:") * 1024,
            peak_bytes: kilobytes("VmHWM:") * 1024,
        })
    }

    /// CPU time, in microseconds.
    pub fn cpu_micros(&self) -> u64 {
        self.user_micros + self.system_micros
    }

    fn plus(self, other: Self) -> Self {
        Self {
            user_micros: self.user_micros + other.user_micros,
            system_micros: self.system_micros + other.system_micros,
            resident_bytes: self.resident_bytes + other.resident_bytes,
            peak_bytes: self.peak_bytes + other.peak_bytes,
        }
    }
}

/// Lets the kernel forget the peak of a process's memory, so that the next reading tells that of one run. Best effort:
/// the kernel may not allow it, and then the peak is that since the start.
pub fn forget_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Busy and total CPU time of the machine, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineTimes {
    /// Not idle and not waiting for a disk.
    pub busy: u64,
    /// All together.
    pub total: u64,
}

impl MachineTimes {
    fn now() -> Self {
        fs::read_to_string("/proc/stat").ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// From the text of `/proc/stat`.
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; guests are part of user.
        let fields: Vec<u64> =
            line.split_ascii_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        let total = fields.iter().sum();
        let resting = fields.get(3)? + fields.get(4)?;
        Some(Self { busy: total - resting, total })
    }
}

/// One look at everything.
#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    readings: Vec<Reading>,
    machine: MachineTimes,
}

/// Looks at processes from a thread of its own until it is stopped.
pub struct Sampler {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Recording>,
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct Recording {
    watched: Vec<Watched>,
    looks: Vec<Look>,
    /// When the run sent its first request, as far as a look every few milliseconds can tell.
    pub first_sent: Option<Instant>,
}

impl Sampler {
    /// Starts. With the progress of a run it also notes when that run began.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(watched: Vec<Watched>, progress: Option<Arc<Progress>>) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("sampler".into()).spawn(move || {
            let mut recording = Recording { watched, looks: Vec::new(), first_sent: None };
            loop {
                recording.look(progress.as_deref());
                match stopped.recv_timeout(PAUSE) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    _ => break,
                }
            }
            recording.look(progress.as_deref());
            recording
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends, and tells what was seen.
    pub fn stop(self) -> Recording {
        // A thread that is gone needs no word.
        let _ = self.stop.send(());
        let nothing = Recording { watched: Vec::new(), looks: Vec::new(), first_sent: None };
        self.thread.join().unwrap_or(nothing)
    }
}

impl Recording {
    fn look(&mut self, progress: Option<&Progress>) {
        let begun = progress.is_some_and(|progress| progress.sent.load(Relaxed) > 0);
        if begun && self.first_sent.is_none() {
            self.first_sent = Some(Instant::now());
        }
        if self.looks.len() == MAX_LOOKS {
            return;
        }
        let last = self.looks.last();
        let readings = self
            .watched
            .iter()
            .enumerate()
            // A process that has ended keeps what it had used.
            .map(|(index, watched)| {
                let before = || last.map(|look| look.readings[index]);
                Reading::of(watched.pid).or_else(before).unwrap_or_default()
            })
            .collect();
        self.looks.push(Look { at: Instant::now(), readings, machine: MachineTimes::now() });
    }

    /// What a subject used between two instants; `None` when none of its processes was watched.
    pub fn usage(&self, subject: Subject, from: Instant, until: Instant) -> Option<Usage> {
        let of_subject = |look: &Look| -> Reading {
            let pairs = self.watched.iter().zip(&look.readings);
            pairs
                .filter(|(watched, _)| watched.subject == subject)
                .fold(Reading::default(), |sum, (_, &reading)| sum.plus(reading))
        };
        self.watched.iter().find(|watched| watched.subject == subject)?;
        let end = self.looks.iter().rfind(|look| look.at <= until).or(self.looks.first())?;
        let spent = |time: fn(&Reading) -> u64| {
            let at = |instant| self.interpolate(instant, |look| time(&of_subject(look)) as f64);
            (at(until) - at(from)).max(0.0)
        };
        let last = of_subject(end);
        Some(Usage {
            user_micros: spent(|reading| reading.user_micros),
            system_micros: spent(|reading| reading.system_micros),
            resident_bytes: last.resident_bytes,
            peak_bytes: last.peak_bytes,
        })
    }

    /// Share of the machine's CPU time that was used between two instants, 0 to 1.
    pub fn machine_busy(&self, from: Instant, until: Instant) -> f64 {
        let spent = |time: fn(&MachineTimes) -> u64| {
            let at = |instant| self.interpolate(instant, |look| time(&look.machine) as f64);
            at(until) - at(from)
        };
        let total = spent(|times| times.total);
        if total > 0.0 { (spent(|times| times.busy) / total).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// A growing number at an instant, on the line between the looks around it.
    fn interpolate(&self, instant: Instant, value: impl Fn(&Look) -> f64) -> f64 {
        let after = self.looks.partition_point(|look| look.at < instant);
        match (after.checked_sub(1).and_then(|before| self.looks.get(before)), self.looks.get(after)) {
            (Some(before), Some(after)) => {
                let whole = (after.at - before.at).as_secs_f64();
                let share = if whole > 0.0 { (instant - before.at).as_secs_f64() / whole } else { 0.0 };
                let start = value(before);
                start + (value(after) - start) * share
            }
            (Some(only), None) | (None, Some(only)) => value(only),
            (None, None) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (float (way) x) S 1 4242 4242 0 -1 4194560 9000 0 12 0 1234 567 0 0 20 0 9 0 1185080 \
        3133440 381 18446744073709551615 1 1 0 0 0 0 0 4096 81920 0 0 0 17 1 0 0 0 0 0\n";
    const STATUS: &str =
        "Name:\tfloodway\nVmPeak:\t  900000 kB\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\nThreads:\t9\n";

    #[test]
    fn times_and_memory_of_a_process_are_read_whatever_its_name() {
        let reading = Reading::parse(STAT, STATUS, 100).unwrap();
        assert_eq!(
            reading,
            Reading {
                user_micros: 12_340_000,
                system_micros: 5_670_000,
                resident_bytes: 10_240 * 1024,
                peak_bytes: 20_480 * 1024
            }
        );
        assert_eq!(Reading::parse("", STATUS, 100), None);
        assert_eq!(Reading::parse("1 (x) S 1 2", STATUS, 100), None);
        assert_eq!(Reading::parse(STAT, "", 100).unwrap().resident_bytes, 0, "a kernel thread has no memory");
    }

    #[test]
    fn the_machine_is_busy_with_what_is_neither_idle_nor_waiting() {
        let times = MachineTimes::parse("cpu  100 1 50 800 40 2 3 4 9 9\ncpu0 1 2 3\n").unwrap();
        assert_eq!((times.busy, times.total), (160, 1000));
        assert_eq!(MachineTimes::parse("intr 1 2 3"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let reading = Reading::of(std::process::id()).unwrap();
        assert!(0 < reading.resident_bytes && reading.resident_bytes <= reading.peak_bytes, "{reading:?}");
        assert_eq!(Reading::of(u32::MAX), None);
    }

    #[test]
    fn usage_is_what_was_used_between_two_instants() {
        let start = Instant::now();
        let look = |second: u64, user: u64, busy: u64| Look {
            at: start + Duration::from_secs(second),
            readings: vec![
                Reading { user_micros: user, resident_bytes: second, peak_bytes: 9, ..Reading::default() },
                Reading { system_micros: 10 * user, resident_bytes: 1, ..Reading::default() },
            ],
            machine: MachineTimes { busy, total: 200 * second },
        };
        let recording = Recording {
            watched: vec![
                Watched { subject: Subject::Server, pid: 1 },
                Watched { subject: Subject::Server, pid: 2 },
            ],
            looks: vec![look(0, 0, 0), look(1, 1_000, 100), look(2, 3_000, 300)],
            first_sent: None,
        };
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let usage = recording.usage(Subject::Server, at(0.5), at(1.5)).unwrap();
        assert_eq!((usage.user_micros, usage.system_micros), (1_500.0, 15_000.0));
        assert_eq!((usage.resident_bytes, usage.peak_bytes), (2, 9));
        assert_eq!(recording.usage(Subject::Broker, at(0.0), at(1.0)), None);
        assert!((recording.machine_busy(at(0.0), at(1.0)) - 0.5).abs() < 1e-9);
        assert!((recording.machine_busy(at(1.0), at(9.0)) - 1.0).abs() < 1e-9, "beyond the end is the end");
    }

    #[test]
    fn a_sampler_sees_a_run_begin() {
        let progress = Arc::new(Progress::default());
        let watched = Watched { subject: Subject::Generator, pid: std::process::id() };
        let sampler = Sampler::start(vec![watched], Some(Arc::clone(&progress))).unwrap();
        progress.sent.store(1, Relaxed);
        let recording = sampler.stop();
        assert!(recording.first_sent.is_some() && recording.looks.len() >= 2);
    }
}
