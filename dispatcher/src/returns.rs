//! When deliveries come back that were put off because their endpoint gets nothing. Pure: time is an argument.
//!
//! They come back in waves, each in the order of arrival and at a bounded rate, so that an endpoint that answers again gets its
//! backlog in order and not all at once. The time between two waves grows with the time that the endpoint has been away, and is
//! never shorter than the wave itself: so what an outage costs the retry scheduler is bounded by the rate however large the
//! backlog is, and by the number of waves however long the outage takes.
//!
//! What has come back before goes to the front of the next wave, what is new to its end. Some come back ahead of their wave, one for
//! each probe that the breaker may want until then: without them, the end of an outage would be noticed by new deliveries only. The
//! delivery that is the probe is not put off when it fails, so they are planned as long as there is something to put off.
//!
//! What comes back while a probe is under way waits for what that finds out, and not for the next wave: mostly it is the wave whose first
//! delivery is the probe.

use crate::lane::MIN_DEFERRAL;
use std::time::{Duration, Instant};

/// Part of the time that the endpoint has been away, written as its divisor, that is added until the next wave: each is half as long
/// again after the outage's beginning as the one before.
const GROWTH: u32 = 2;

/// What bounds the waves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReturnLimits {
    /// Deliveries of one endpoint that come back in a second, at most; above 0.
    pub(crate) rate: f64,
    /// Longest time until the next wave begins, unless the one before takes longer.
    pub(crate) longest: Duration,
}

/// What is known of the endpoint's outage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outage {
    /// When it began.
    pub(crate) since: Instant,
    /// When a request is made next, to find out; `None` while one is under way.
    pub(crate) probes_at: Option<Instant>,
    /// How long it gets nothing at first.
    pub(crate) pause: Duration,
    /// Longest time between two probes.
    pub(crate) between: Duration,
}

/// What was put off in one outage, as far as this process did it.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    /// When the next wave begins.
    next: Option<Instant>,
    /// Size of the wave before it, which is coming back.
    coming: u32,
    /// Deliveries of the next wave that came back before, and that are new.
    again: u32,
    first: u32,
    /// When the last of those comes back that are sent ahead.
    ahead: Option<Instant>,
    /// When those come back that wait for a probe, and how many they are.
    held: Option<(Instant, u32)>,
}

impl Returns {
    /// When a delivery comes back that is put off now; `again` says that it came back before.
    pub(crate) fn put_off(
        &mut self,
        again: bool,
        outage: &Outage,
        limits: &ReturnLimits,
        now: Instant,
    ) -> Instant {
        let soonest = now + MIN_DEFERRAL;
        let next = match self.next {
            Some(next) if now < next => next,
            Some(_) if outage.probes_at.is_none() => return self.wait_for_probe(outage, limits, now),
            _ => self.turn(outage, limits, now),
        };
        if let Some(probe) = self.next_probe(outage, next, now) {
            let at = probe.max(soonest);
            self.ahead = Some(at);
            return at;
        }
        let place = if again { self.again } else { self.coming.max(self.again).saturating_add(self.first) };
        let count = if again { &mut self.again } else { &mut self.first };
        *count = count.saturating_add(1);
        (next + Duration::from_secs_f64(f64::from(place) / limits.rate)).max(soonest)
    }

    /// The next probe before `next` for which nothing comes back yet.
    fn next_probe(&self, outage: &Outage, next: Instant, now: Instant) -> Option<Instant> {
        match (self.ahead.filter(|&ahead| ahead > now), outage.probes_at) {
            (None, probes_at) => Some(probes_at.unwrap_or(now + outage.pause)),
            (Some(ahead), Some(probe)) if ahead < probe => Some(probe),
            (Some(ahead), _) => Some(ahead + outage.between).filter(|&probe| probe < next),
        }
    }

    /// When a delivery comes back whose wave has begun, and is waiting for the first of it.
    fn wait_for_probe(&mut self, outage: &Outage, limits: &ReturnLimits, now: Instant) -> Instant {
        let (until, before) =
            self.held.filter(|(until, _)| now < *until).unwrap_or((now + outage.pause.max(MIN_DEFERRAL), 0));
        self.held = Some((until, before.saturating_add(1)));
        until + Duration::from_secs_f64(f64::from(before) / limits.rate)
    }

    /// The next wave begins: what is put off from now on is for the one after it.
    fn turn(&mut self, outage: &Outage, limits: &ReturnLimits, now: Instant) -> Instant {
        self.coming = self.again.saturating_add(self.first);
        (self.again, self.first) = (0, 0);
        let lasts = Duration::from_secs_f64(f64::from(self.coming) / limits.rate);
        let grown = (now.saturating_duration_since(outage.since) / GROWTH).min(limits.longest);
        let next = (now + lasts.max(grown)).max(outage.probes_at.unwrap_or(now + outage.pause));
        self.next = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIMITS: ReturnLimits = ReturnLimits { rate: 100.0, longest: Duration::from_secs(1_800) };
    const PAUSE: Duration = Duration::from_secs(60);

    /// An endpoint that is away, and the deliveries for it by the time at which they come back.
    struct World {
        start: Instant,
        returns: Returns,
        pending: BTreeMap<(Instant, u32), Delivery>,
        sequence: u32,
        ahead: usize,
        most_waves: u32,
    }

    #[derive(Debug, Clone, Copy)]
    struct Delivery {
        number: u32,
        rounds: u32,
        waves: u32,
        is_ahead: bool,
    }

    impl World {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                returns: Returns::default(),
                pending: BTreeMap::new(),
                sequence: 0,
                ahead: 0,
                most_waves: 0,
            }
        }

        /// The breaker as it is at `now`: a probe per pause, none of which is answered.
        fn outage(&self, now: Instant) -> Outage {
            let pauses = now.duration_since(self.start).as_secs() / PAUSE.as_secs() + 1;
            let probes_at = self.start + PAUSE * u32::try_from(pauses).unwrap();
            Outage { since: self.start, probes_at: Some(probes_at), pause: PAUSE, between: PAUSE }
        }

        fn put_off(&mut self, delivery: Delivery, now: Instant) {
            let outage = self.outage(now);
            let known = self.returns.ahead;
            let at = self.returns.put_off(delivery.rounds > 0, &outage, &LIMITS, now);
            assert!(at >= now + MIN_DEFERRAL);
            let is_ahead = known != self.returns.ahead;
            self.ahead += usize::from(is_ahead);
            let (rounds, waves) = (delivery.rounds + 1, delivery.waves + u32::from(!is_ahead));
            self.most_waves = self.most_waves.max(waves);
            self.sequence += 1;
            self.pending.insert((at, self.sequence), Delivery { rounds, waves, is_ahead, ..delivery });
        }

        /// Lets deliveries come back that are due before `until`.
        fn go_on(&mut self, until: Instant) {
            while let Some(entry) = self.pending.first_entry()
                && entry.key().0 < until
            {
                let ((at, _), delivery) = entry.remove_entry();
                self.put_off(delivery, at);
            }
        }
    }

    #[test]
    fn a_long_outage_of_a_small_backlog_costs_few_rounds() {
        let mut world = World::new();
        for number in 0..50 {
            world.put_off(Delivery { number, rounds: 0, waves: 0, is_ahead: false }, world.start);
        }
        let three_days = Duration::from_secs(3 * 86_400);
        world.go_on(world.start + three_days);
        // One per half hour once that is the longest time, and a few dozen before; one of them per pause comes ahead.
        let waves = three_days.as_secs() / LIMITS.longest.as_secs() + 30;
        let rounds = world.sequence as u64;
        let ahead = three_days.as_secs() / PAUSE.as_secs() + 1;
        assert!(rounds <= 50 * waves + ahead, "{rounds} rounds");
    }

    #[test]
    fn a_probe_is_planned_for_every_pause_until_the_next_wave() {
        let start = Instant::now();
        let now = start + Duration::from_secs(3_600);
        let outage = Outage { since: start, probes_at: Some(now + PAUSE), pause: PAUSE, between: PAUSE };
        let mut returns = Returns::default();
        let back: Vec<Instant> = (0..50).map(|_| returns.put_off(true, &outage, &LIMITS, now)).collect();
        // The next wave begins half an hour later. What comes ahead of it may be a probe that fails, and is not put off again then.
        let wave = now + LIMITS.longest;
        let ahead: Vec<Instant> = back.iter().copied().filter(|at| *at < wave).collect();
        assert_eq!(ahead, (1..30).map(|pause| now + PAUSE * pause).collect::<Vec<_>>());
        assert_eq!(back[29], wave);
    }

    #[test]
    fn a_wave_waits_for_its_own_probe_and_not_for_the_next_wave() {
        let start = Instant::now();
        let mut returns = Returns::default();
        let mut outage =
            Outage { since: start, probes_at: Some(start + PAUSE), pause: PAUSE, between: PAUSE };
        for _ in 0..10 {
            returns.put_off(false, &outage, &LIMITS, start);
        }
        let wave = returns.next.unwrap();
        outage.probes_at = None;
        let held: Vec<Duration> = (1u32..10)
            .map(|place| {
                returns.put_off(true, &outage, &LIMITS, wave + Duration::from_millis(10) * place) - wave
            })
            .collect();
        let first = PAUSE + Duration::from_millis(10);
        assert_eq!(
            held,
            (0u32..9).map(|place| first + Duration::from_millis(10) * place).collect::<Vec<_>>()
        );
        // The probe failed: there is another wave.
        let now = wave + 2 * PAUSE;
        outage.probes_at = Some(now + PAUSE);
        returns.put_off(true, &outage, &LIMITS, now);
        assert!(returns.next.unwrap() > now);
    }

    #[test]
    fn a_large_backlog_costs_no_more_per_second_than_the_rate() {
        let mut world = World::new();
        for number in 0..30_000 {
            let now = world.start + Duration::from_micros(20) * number;
            world.put_off(Delivery { number, rounds: 0, waves: 0, is_ahead: false }, now);
        }
        let first = world.sequence;
        let seconds = 3_600;
        world.go_on(world.start + Duration::from_secs(seconds));
        let rounds = u64::from(world.sequence - first);
        assert!(rounds <= seconds * 100 + 100, "{rounds} rounds in an hour");
        // A wave takes five minutes, and no delivery is in more of them than there are.
        assert!(world.most_waves <= 13 + 2, "{} waves", world.most_waves);
    }

    proptest! {
        #[test]
        fn an_endpoint_that_answers_again_gets_its_backlog_in_order_and_at_the_rate(
            gaps in proptest::collection::vec(0u64..2_000, 10..600), waves in 1usize..6,
        ) {
            let mut world = World::new();
            let mut now = world.start;
            let mut seen = 0;
            let mut next = None;
            for (number, gap) in (0..20_000).zip(gaps.iter().cycle()) {
                now += Duration::from_millis(*gap);
                // The outage ends when a wave is about to begin.
                if let Some(begins) = world.returns.next.filter(|begins| now >= *begins) {
                    world.go_on(begins);
                    seen += usize::from(next.replace(begins) != Some(begins));
                    if seen > waves {
                        break;
                    }
                }
                world.go_on(now);
                world.put_off(Delivery { number, rounds: 0, waves: 0, is_ahead: false }, now);
            }
            let back: Vec<(Instant, u32)> = world
                .pending
                .iter()
                .filter(|(_, delivery)| !delivery.is_ahead)
                .map(|(key, delivery)| (key.0, delivery.number))
                .collect();
            let rate = LIMITS.rate as usize;
            for window in back.windows(rate + 2) {
                prop_assert!(window[rate + 1].0 - window[0].0 >= Duration::from_millis(990));
            }
            // One that came ahead for a probe lost its place.
            let disorder = back.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
            prop_assert!(disorder <= world.ahead, "{} of {} out of order", disorder, back.len());
        }
    }
}
