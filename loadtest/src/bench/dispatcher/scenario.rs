//! What is measured of the dispatcher, and for how long.

use crate::bench::scenario::Profile;
use std::time::Duration;

/// How long each part takes, and how often it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Events in the log when the dispatcher starts.
    pub events: u64,
    /// How often a saturation is measured; the median is told.
    pub runs: usize,
    /// Warm-up of whatever has one.
    pub warmup: Duration,
    /// Measured time of the floor.
    pub floor: Duration,
    /// Measured time at each rate.
    pub latency: Duration,
    /// Time without events.
    pub idle: Duration,
    /// Measured time with each bad endpoint, and without any.
    pub isolation: Duration,
    /// Events of the backlog.
    pub backlog: u64,
    /// Time of a new event now and then while the backlog lies with the retry scheduler.
    pub beside_backlog: Duration,
    /// Subscriptions to be held in memory.
    pub subscriptions: u32,
    /// Of these, endpoints that get events.
    pub active: u32,
    /// Measured time of events for them.
    pub among_many: Duration,
}

/// The times of a profile.
pub fn timing(profile: Profile) -> Timing {
    let seconds = Duration::from_secs;
    let quick = Timing {
        events: 120_000,
        runs: 1,
        warmup: seconds(2),
        floor: seconds(3),
        latency: seconds(8),
        idle: seconds(5),
        isolation: seconds(6),
        backlog: 200_000,
        beside_backlog: seconds(6),
        subscriptions: 100_000,
        active: 10_000,
        among_many: seconds(6),
    };
    match profile {
        Profile::Quick => quick,
        Profile::Standard => Timing {
            events: 150_000,
            runs: 3,
            floor: seconds(5),
            latency: seconds(20),
            idle: seconds(10),
            isolation: seconds(12),
            backlog: 500_000,
            beside_backlog: seconds(15),
            among_many: seconds(12),
            ..quick
        },
        Profile::Full => Timing {
            events: 300_000,
            runs: 5,
            floor: seconds(10),
            latency: seconds(60),
            idle: seconds(20),
            isolation: seconds(20),
            backlog: 1_000_000,
            beside_backlog: seconds(30),
            among_many: seconds(20),
            ..quick
        },
    }
}

/// What a scenario asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// How much at most, and at what cost.
    Saturation {
        /// Endpoints, each with a subscription of its own.
        endpoints: u32,
        /// Whether over TLS.
        tls: bool,
    },
    /// How long from request to arrival at so many events a second.
    Latency {
        /// Events per second.
        rate: u32,
    },
    /// What nothing costs.
    Idle,
    /// What one bad endpoint does to the others.
    Isolation(Badness),
    /// What a backlog for a hung endpoint does to others.
    Backlog,
    /// What many subscriptions take.
    Subscriptions,
}

/// How an endpoint is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Badness {
    /// It answers after 30 s, which is longer than an attempt may take.
    Hang,
    /// It answers a byte a second, without end.
    Drip,
    /// It answers 500.
    Fails,
    /// Nobody listens.
    Refuses,
    /// It answers after 10 s, and well.
    Slow,
}

/// One scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Name for the command line, unique.
    pub name: &'static str,
    /// What it asks.
    pub question: Question,
}

/// Endpoints where there are many; one of them is bad when isolation is measured.
pub const MANY_ENDPOINTS: u32 = 100;
/// Events per second while isolation is measured.
pub const ISOLATION_RATE: f64 = 1000.0;
/// Share of them for the endpoint that is bad.
pub const BAD_SHARE: f64 = 0.2;

/// Every scenario, in the order in which they run.
pub const SCENARIOS: [Scenario; 13] = {
    use Question::{Backlog, Idle, Isolation, Latency, Saturation, Subscriptions};
    const fn scenario(name: &'static str, question: Question) -> Scenario {
        Scenario { name, question }
    }
    [
        scenario("saturation", Saturation { endpoints: 1, tls: false }),
        scenario("saturation-100", Saturation { endpoints: MANY_ENDPOINTS, tls: false }),
        scenario("tls", Saturation { endpoints: 1, tls: true }),
        scenario("latency-300", Latency { rate: 300 }),
        scenario("latency-3000", Latency { rate: 3000 }),
        scenario("idle", Idle),
        scenario("isolation-hang", Isolation(Badness::Hang)),
        scenario("isolation-drip", Isolation(Badness::Drip)),
        scenario("isolation-500", Isolation(Badness::Fails)),
        scenario("isolation-refuse", Isolation(Badness::Refuses)),
        scenario("isolation-10s", Isolation(Badness::Slow)),
        scenario("backlog", Backlog),
        scenario("subscriptions", Subscriptions),
    ]
};

impl Scenario {
    /// What it does, in a few words.
    pub fn title(&self, timing: &Timing) -> String {
        let count = crate::report::count;
        match self.question {
            Question::Saturation { endpoints, tls } => format!(
                "{} events in the log when the dispatcher starts, {}{}",
                count(timing.events),
                if endpoints == 1 { "one endpoint".to_owned() } else { format!("{endpoints} endpoints") },
                if tls { ", over TLS" } else { "" },
            ),
            Question::Latency { rate } => {
                format!("{} events/s through ingest in an open loop, one endpoint", count(rate.into()))
            }
            Question::Idle => "no events".to_owned(),
            Question::Isolation(badness) => format!(
                "{} events/s to {MANY_ENDPOINTS} endpoints of one tenant, a fifth of them to one that {}",
                count(ISOLATION_RATE as u64),
                badness.in_words()
            ),
            Question::Backlog => format!(
                "{} events of another tenant, for an endpoint that hangs, in the log when the dispatcher starts",
                count(timing.backlog)
            ),
            Question::Subscriptions => format!(
                "{} subscriptions in memory, events for {} endpoints",
                count(timing.subscriptions.into()),
                count(timing.active.into())
            ),
        }
    }

    /// Scenarios of one kind share an installation; backlog and subscriptions leave too much behind.
    pub fn installation(&self) -> u8 {
        match self.question {
            Question::Backlog => 1,
            Question::Subscriptions => 2,
            _ => 0,
        }
    }
}

impl Badness {
    /// What it does, as the end of a sentence.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Hang => "hangs for 30 s",
            Self::Drip => "answers a byte a second without end",
            Self::Fails => "answers 500",
            Self::Refuses => "refuses connections",
            Self::Slow => "answers after 10 s",
        }
    }

    /// Path at the sink; none if nobody listens.
    pub fn path(self) -> Option<&'static str> {
        match self {
            Self::Hang => Some("/delay/30s"),
            Self::Drip => Some("/drip"),
            Self::Fails => Some("/status/500"),
            Self::Refuses => None,
            Self::Slow => Some("/delay/10s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::behaviour::Behaviour;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_installations_are_in_order() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(SCENARIOS.iter().map(Scenario::installation).is_sorted());
    }

    #[test]
    fn bad_endpoints_are_paths_that_the_sink_knows() {
        for badness in [Badness::Hang, Badness::Drip, Badness::Fails, Badness::Slow] {
            let path = format!("{}/0", badness.path().unwrap());
            assert!(Behaviour::of(&path, None).is_some(), "{path}");
        }
        assert_eq!(Badness::Refuses.path(), None);
    }
}
