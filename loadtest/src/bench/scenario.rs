//! What is measured, and for how long.

use super::BenchError;
use crate::load::Encoding;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How thorough a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// About four minutes: each scenario once, for seconds.
    Quick,
    /// About a quarter of an hour: three short runs of each scenario, ten minutes of endurance.
    Standard,
    /// About half an hour: five runs of each scenario, ten minutes of endurance.
    Full,
}

/// How long each part takes, and how often it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Warm-up of each run.
    pub warmup: Duration,
    /// Measured time of a run at saturation.
    pub saturation: Duration,
    /// Runs of a scenario at saturation, of which the median is told.
    pub runs: usize,
    /// Warm-up of each floor.
    pub floor_warmup: Duration,
    /// Measured time of each floor.
    pub floor: Duration,
    /// Measured time at half of the saturation.
    pub latency: Duration,
    /// Measured time of each step of the sweep.
    pub step: Duration,
    /// Time before the spike, of the spike, and after it.
    pub spike: [Duration; 3],
    /// Measured time of each content encoding.
    pub encoding: Duration,
    /// Measured time of the endurance run.
    pub endurance: Duration,
}

impl Profile {
    /// The profile's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Full => "full",
        }
    }

    /// The profile's times.
    pub fn timing(self) -> Timing {
        let seconds = Duration::from_secs;
        match self {
            Self::Quick => Timing {
                warmup: seconds(2),
                saturation: seconds(8),
                runs: 1,
                floor_warmup: seconds(1),
                floor: seconds(4),
                latency: seconds(10),
                step: seconds(4),
                spike: [seconds(3), seconds(3), seconds(6)],
                encoding: seconds(5),
                endurance: seconds(20),
            },
            Self::Standard => {
                Timing { runs: 3, latency: seconds(20), endurance: seconds(600), ..Self::Quick.timing() }
            }
            Self::Full => Timing {
                warmup: seconds(4),
                saturation: seconds(15),
                runs: 5,
                floor_warmup: seconds(2),
                floor: seconds(10),
                latency: seconds(60),
                step: seconds(10),
                spike: [seconds(10), seconds(10), seconds(40)],
                encoding: seconds(15),
                endurance: seconds(600),
            },
        }
    }
}

/// What a scenario asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// How much at most, and at what cost: a closed loop, beside both floors.
    Saturation,
    /// How fast at half of the saturation: an open loop.
    Latency,
    /// How latency grows with load, and where it stops being usable.
    Sweep,
    /// What a tenfold rate for a moment does.
    Spike,
    /// What compressed bodies cost: a closed loop.
    Compressed(Encoding),
    /// Whether speed lasts, and whether every acknowledged event is on the topic.
    Endurance,
}

/// One scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Name for the command line, unique.
    pub name: &'static str,
    /// What it asks.
    pub question: Question,
    /// Events of one request.
    pub events_per_request: usize,
    /// Connections.
    pub connections: usize,
}

/// Every scenario, in the order in which they run.
pub const SCENARIOS: [Scenario; 11] = {
    use Question::{Compressed, Endurance, Latency, Saturation, Spike, Sweep};
    const fn scenario(
        name: &'static str,
        question: Question,
        events_per_request: usize,
        connections: usize,
    ) -> Scenario {
        Scenario { name, question, events_per_request, connections }
    }
    [
        scenario("batch-100", Saturation, 100, 64),
        scenario("batch-10", Saturation, 10, 64),
        scenario("single-512", Saturation, 1, 512),
        scenario("single-64", Saturation, 1, 64),
        scenario("batch-1000", Saturation, 1000, 16),
        scenario("latency", Latency, 1, 512),
        scenario("sweep", Sweep, 1, 512),
        scenario("spike", Spike, 1, 512),
        scenario("gzip", Compressed(Encoding::Gzip), 100, 64),
        scenario("zstd", Compressed(Encoding::Zstd), 100, 64),
        scenario("endurance", Endurance, 100, 64),
    ]
};

/// Share of the saturation that the latency scenario offers.
pub const HALF: f64 = 0.5;
/// Share of the saturation that the endurance scenario offers: what can be kept up while the machine has other things to do.
pub const ENDURANCE_SHARE: f64 = 0.6;
/// What a spike multiplies the rate by.
pub const SPIKE_FACTOR: f64 = 10.0;
/// Share of the saturation before the spike: during it, what is offered is just what was the most.
pub const SPIKE_BASE: f64 = 0.1;
/// Shares of the saturation that the sweep offers.
pub const SWEEP: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// The scenarios that are wanted by name; all of them without names.
///
/// # Errors
/// When there is none of a name; the error has the list.
pub fn choose<S: Copy>(
    all: &[S],
    name: fn(&S) -> &'static str,
    only: &[String],
) -> Result<Vec<S>, BenchError> {
    if let Some(unknown) = only.iter().find(|wanted| all.iter().all(|scenario| name(scenario) != *wanted)) {
        let names = all.iter().map(name).collect::<Vec<_>>().join(", ");
        return Err(BenchError::Setting(format!("there is no scenario {unknown}; there are {names}")));
    }
    let is_wanted = |scenario: &&S| only.is_empty() || only.iter().any(|wanted| name(scenario) == wanted);
    Ok(all.iter().filter(is_wanted).copied().collect())
}

impl Scenario {
    /// What it does, in a few words.
    pub fn title(&self) -> String {
        let events = match self.events_per_request {
            1 => "1 event per request".to_owned(),
            number => format!("{number} events per request"),
        };
        let shape = format!("{events}, {} connections", self.connections);
        match self.question {
            Question::Saturation => format!("{shape}, closed loop"),
            Question::Latency => format!("{shape}, open loop at half of the saturation"),
            Question::Sweep => format!("{shape}, open loop at growing rates"),
            Question::Spike => format!("{shape}, open loop, ten times the rate for a moment"),
            Question::Compressed(Encoding::Gzip) => format!("{shape}, closed loop, gzip"),
            Question::Compressed(Encoding::Zstd) => format!("{shape}, closed loop, zstd"),
            Question::Compressed(Encoding::Identity) => format!("{shape}, closed loop, not compressed"),
            Question::Endurance => {
                format!("{shape}, open loop, every event looked up on the topic afterwards")
            }
        }
    }

    /// About how long its parts take together, floors included.
    pub fn duration(&self, timing: &Timing) -> Duration {
        let runs = u32::try_from(timing.runs).unwrap_or(u32::MAX);
        let steps = SWEEP.len() as u32;
        match self.question {
            Question::Saturation => {
                (timing.warmup + timing.saturation) * runs + (timing.floor_warmup + timing.floor) * 2
            }
            Question::Latency => timing.warmup + timing.latency,
            Question::Sweep => (timing.floor_warmup + timing.step) * steps,
            Question::Spike => timing.warmup + timing.spike.iter().sum::<Duration>(),
            Question::Compressed(_) => timing.warmup + timing.encoding,
            Question::Endurance => timing.warmup + timing.endurance,
        }
    }

    /// The most events per second that one core was seen to take in this shape, rounded up: to know how much disk a
    /// run may need before it is measured.
    pub fn assumed_events_per_core(&self) -> f64 {
        match self.events_per_request {
            1 => 40_000.0,
            2..=10 => 120_000.0,
            _ => 300_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_the_shares_grow() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        assert!(SWEEP.is_sorted() && SWEEP.iter().all(|share| (0.0..=1.0).contains(share)));
    }

    #[test]
    fn each_profile_measures_for_as_long_as_it_says_starting_and_reading_aside() {
        let whole = |profile: Profile| -> Duration {
            SCENARIOS.iter().map(|scenario| scenario.duration(&profile.timing())).sum()
        };
        for (profile, minutes) in
            [(Profile::Quick, 3..4), (Profile::Standard, 14..16), (Profile::Full, 24..28)]
        {
            let whole = whole(profile);
            assert!(minutes.contains(&(whole.as_secs() / 60)), "{profile:?}: {whole:?}");
        }
    }
}
