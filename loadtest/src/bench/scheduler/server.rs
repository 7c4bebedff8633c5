//! What PostgreSQL uses: CPU time of the server's processes, found from one of its sessions.

use std::fs;
use tokio_postgres::Client;

/// The server's processes on this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerProcesses {
    postmaster: u32,
}

impl ServerProcesses {
    /// Those of the server that a session is with; `None` when they are not on this machine.
    pub(super) async fn of(client: &Client) -> Option<Self> {
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.ok()?;
        let backend = u32::try_from(row.get::<_, i32>(0)).ok()?;
        let stat = fs::read_to_string(format!("/proc/{backend}/stat")).ok()?;
        let is_backend = stat.contains("(postgres)");
        Stat::parse(&stat).filter(|_| is_backend).map(|stat| Self { postmaster: stat.parent })
    }

    /// CPU time of all its processes since it started, those that have ended included, in microseconds.
    pub(super) fn cpu_micros(self) -> u64 {
        let ticks = |own: &Stat| own.ticks;
        let Some(postmaster) = Stat::of(self.postmaster) else { return 0 };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let children: u64 = processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Stat::of)
            .filter(|stat| stat.parent == self.postmaster)
            .map(|stat| ticks(&stat))
            .sum();
        let ticks = postmaster.ticks + postmaster.ended_ticks + children;
        ticks * 1_000_000 / rustix::param::clock_ticks_per_second().max(1)
    }
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// CPU time, in clock ticks.
    ticks: u64,
    /// That of its children that have ended.
    ended_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name, which may hold spaces and parentheses; what follows its end does not.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // Counted from 1 with the name as the second: the parent is the fourth, times are the fourteenth to the seventeenth.
        let number = |index: usize| -> Option<u64> { fields.get(index - 3)?.parse().ok() };
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            ticks: number(14)? + number(15)?,
            ended_ticks: number(16)? + number(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_and_times_are_read_whatever_the_name() {
        let text = "7 (post (x) gres) S 3 7 7 0 -1 0 1 2 3 4 100 20 7 5 20 0 1 0 9\n";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 3, ticks: 120, ended_ticks: 12 }));
        assert_eq!(Stat::parse("7 (x) S 3"), None);
    }
}
