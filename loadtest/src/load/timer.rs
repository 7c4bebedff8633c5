//! A timer that is exact to microseconds: the runtime's own rounds up to milliseconds, which at high rates would send
//! requests in bursts and late.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::{io, os::fd::OwnedFd, time::Duration};
use tokio::io::{Interest, unix::AsyncFd};

/// One timer of the system; to be used within a runtime.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: AsyncFd<OwnedFd>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for types that may change or close their descriptor; this one is owned and stays"
        )]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
        Ok(Self { descriptor })
    }

    /// Waits this long.
    pub(super) async fn sleep(&mut self, duration: Duration) -> io::Result<()> {
        // Zero would switch the timer off.
        let duration = duration.max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: duration.subsec_nanos().into(),
        };
        timerfd_settime(
            self.descriptor.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        // Setting it has taken back an earlier expiry, and each expiry wakes anew: nothing needs to be read.
        self.descriptor.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_timer_never_fires_early_however_often_it_is_set() {
        let mut timer = Timer::new().unwrap();
        for micros in [0, 1, 100, 2000, 50] {
            let began = Instant::now();
            let wait = Duration::from_micros(micros);
            timer.sleep(wait).await.unwrap();
            assert!(began.elapsed() >= wait, "{micros} µs");
        }
        // A wait that is given up leaves nothing behind for the next one.
        let long = Duration::from_millis(5);
        let _ = tokio::time::timeout(Duration::ZERO, timer.sleep(Duration::from_micros(1))).await;
        let began = Instant::now();
        timer.sleep(long).await.unwrap();
        assert!(began.elapsed() >= long);
    }
}
