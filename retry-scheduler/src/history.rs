//! Random histories of a shard, for its promises: nothing is stored behind the cursor, nothing is produced early, nothing
//! is lost. The log, the table, the clocks and the acknowledgements are what they would be without any cleverness; memory,
//! clamp and clock estimate are the real ones.
//!
//! There may be two owners at a time, of which the earlier does not know that it was replaced, and the database may come
//! back as it was some time before, which its owners notice only by the answers to their writes.

use crate::{
    clamp::{self, DbClock, Limits},
    pending::{Bounds, Pending},
};
use floodway_schemas::UnixMillis;
use floodway_store::{
    DbInstant,
    retry::{PendingRetry, Position},
};
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::{Duration, Instant},
};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
/// Where time starts, in microseconds: far enough from 0 for clocks that go wrong.
const START: i64 = 1_795_275_240_000_000;
const HORIZON: Duration = Duration::from_secs(60);
const FENCE_AGE: Duration = Duration::from_secs(5);
const LIMITS: Limits =
    Limits { tolerance: Duration::from_secs(5), max_delay: Duration::from_secs(30 * 86_400) };
const TOLERANCE: i64 = 5 * SECOND;

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Owner,
    /// The owner before, if it has not found out yet.
    Zombie,
}

#[derive(Debug, Clone)]
enum Event {
    /// A dispatcher whose clock is off by so much writes outcomes that ask for these delays.
    Write(i64, Vec<i64>),
    /// Time passes.
    Wait(i64),
    /// Stores so many outcomes.
    Store(Who, usize),
    /// Loads a page of at most so many rows.
    Page(Who, usize),
    /// Takes due rows and produces them.
    Take(Who),
    /// The acknowledgements are in; records whose bit is set failed.
    Settle(Who, u32),
    /// Stores the cursor.
    MoveCursor(Who),
    /// Another owner takes over, and this one does not know.
    TakeOver,
    /// The owner ends without a word, and another one takes over.
    Crash,
    /// The clock of the database steps.
    ClockStep(i64),
    /// A replica gets the state of the database.
    Replicate,
    /// The replica takes the place of the database.
    Failover,
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![4 => Just(Who::Owner), 1 => Just(Who::Zombie)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (-2 * TOLERANCE..2 * TOLERANCE, vec(0..90 * SECOND, 1..6)).prop_map(|(off, delays)| Event::Write(off, delays)),
        5 => (0..3 * SECOND).prop_map(Event::Wait),
        1 => (0..60 * SECOND).prop_map(Event::Wait),
        6 => (who(), 1usize..6).prop_map(|(who, n)| Event::Store(who, n)),
        6 => (who(), 1usize..6).prop_map(|(who, n)| Event::Page(who, n)),
        6 => who().prop_map(Event::Take),
        6 => (who(), prop_oneof![2 => Just(0), 1 => any::<u32>()]).prop_map(|(who, bits)| Event::Settle(who, bits)),
        6 => who().prop_map(Event::MoveCursor),
        2 => Just(Event::TakeOver),
        1 => Just(Event::Crash),
        1 => prop_oneof![-HOUR..HOUR, -SECOND..SECOND].prop_map(Event::ClockStep),
        1 => Just(Event::Replicate),
        1 => Just(Event::Failover),
    ]
}

/// An outcome in the log.
#[derive(Debug, Clone, Copy)]
struct Written {
    at: i64,
    delay: i64,
    dispatcher_off: i64,
}

/// What the database has.
#[derive(Debug, Clone)]
struct Database {
    epoch: i64,
    next: usize,
    cursor: Position,
    table: BTreeSet<Position>,
}

struct Owner {
    epoch: i64,
    next: usize,
    pending: Pending,
    firing: Vec<PendingRetry>,
    clock: DbClock,
    /// By how much the database's clock was off when the estimate was last corrected.
    clock_off: i64,
    fenced_at: Instant,
}

struct World {
    /// True time since the start, in microseconds.
    now: i64,
    /// What stands for zero on the monotonic clock.
    zero: Instant,
    /// By how much the schedulers' monotonic clocks run fast, in millionths.
    fast_ppm: i64,
    /// By how much the database's clock is off.
    off: i64,
    log: Vec<Written>,
    database: Database,
    replica: Option<Database>,
    owner: Owner,
    zombie: Option<Owner>,
    bounds: Bounds,
    /// By how much the database's clock was off when the row was stored.
    stored_off: BTreeMap<i64, i64>,
    acknowledged: BTreeSet<i64>,
}

fn row(position: Position) -> PendingRetry {
    PendingRetry { position, record_key: String::new(), record: vec![0; 8] }
}

impl World {
    fn new(rows: usize, fast_ppm: i64, off: i64) -> Self {
        let zero = Instant::now();
        let bounds = Bounds { rows, bytes: 10_000 };
        let cursor = Position { due: DbInstant(START + off), id: 0 };
        let mut database = Database { epoch: 0, next: 0, cursor, table: BTreeSet::new() };
        let clock = DbClock::new(DbInstant(START + off), zero);
        let owner = take_over(&mut database, bounds, 1, clock, off, zero);
        Self {
            now: 0,
            zero,
            fast_ppm,
            off,
            log: Vec::new(),
            database,
            replica: None,
            owner,
            zombie: None,
            bounds,
            stored_off: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
        }
    }

    fn db_now(&self) -> DbInstant {
        DbInstant(START + self.now + self.off)
    }

    fn instant(&self) -> Instant {
        let micros = self.now + self.now * self.fast_ppm / 1_000_000;
        self.zero + Duration::from_micros(micros.unsigned_abs())
    }

    fn take_over(&mut self) -> Owner {
        let instant = self.instant();
        let clock = DbClock::new(self.db_now(), instant);
        let new = take_over(&mut self.database, self.bounds, START + self.now, clock, self.off, instant);
        std::mem::replace(&mut self.owner, new)
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Write(dispatcher_off, delays) => {
                let (at, dispatcher_off) = (self.now, *dispatcher_off);
                self.log.extend(delays.iter().map(|&delay| Written { at, delay, dispatcher_off }));
            }
            Event::Wait(time) => self.now += time,
            Event::Store(who, n) => self.act(*who, |world, owner| world.store(owner, *n)),
            Event::Page(who, n) => self.act(*who, |world, owner| world.page(owner, *n)),
            Event::Take(who) => self.act(*who, Self::take),
            Event::Settle(who, bits) => self.act(*who, |world, owner| world.settle(owner, *bits)),
            Event::MoveCursor(who) => self.act(*who, Self::move_cursor),
            Event::TakeOver => {
                // One takeover per instant, as with the real clock.
                self.now += 1;
                self.zombie = Some(self.take_over());
            }
            Event::Crash => {
                self.now += 1;
                self.take_over();
            }
            Event::ClockStep(by) => self.off = (self.off + by).clamp(-HOUR, HOUR),
            Event::Replicate => self.replica = Some(self.database.clone()),
            Event::Failover => self.database = self.replica.clone().unwrap_or_else(|| self.database.clone()),
        }
    }

    /// Lets an owner do something; whoever finds out that it was replaced ends, and the owner takes over again.
    fn act(&mut self, who: Who, action: impl Fn(&mut Self, &mut Owner) -> bool) {
        let taken = match who {
            Who::Owner => {
                let blank = take_over(
                    &mut self.database.clone(),
                    self.bounds,
                    0,
                    self.owner.clock,
                    0,
                    self.owner.fenced_at,
                );
                Some(std::mem::replace(&mut self.owner, blank))
            }
            Who::Zombie => self.zombie.take(),
        };
        let Some(mut acting) = taken else { return };
        let owns = action(self, &mut acting);
        match who {
            Who::Owner => {
                self.owner = acting;
                if !owns {
                    self.now += 1;
                    self.take_over();
                }
            }
            Who::Zombie if owns => self.zombie = Some(acting),
            Who::Zombie => {}
        }
    }

    fn is_fenced(&self, owner: &Owner) -> bool {
        (owner.epoch, owner.next) != (self.database.epoch, self.database.next)
    }

    fn corrected(&self, owner: &mut Owner) {
        owner.clock = DbClock::new(self.db_now(), self.instant());
        owner.clock_off = self.off;
        owner.fenced_at = self.instant();
    }

    fn store(&mut self, owner: &mut Owner, n: usize) -> bool {
        let end = self.log.len().min(owner.next + n);
        if end <= owner.next {
            return true;
        }
        if self.is_fenced(owner) {
            return false;
        }
        let floor = owner.pending.floor().max(self.database.cursor);
        for id in owner.next..end {
            let Written { at, delay, dispatcher_off } = self.log[id];
            let produced_at = DbInstant(START + at + dispatcher_off).to_millis();
            let delay = Duration::from_micros(delay.unsigned_abs());
            let wanted = clamp::wanted(self.db_now(), delay, UnixMillis(produced_at.0), LIMITS);
            let due = clamp::clamp(wanted, self.db_now(), floor);
            let position = Position { due, id: id as i64 };
            assert!(position > self.database.cursor, "stored behind the cursor");
            self.database.table.insert(position);
            self.stored_off.insert(position.id, self.off);
            owner.pending.stored(|| row(position), position);
        }
        owner.next = end;
        self.database.next = end;
        self.corrected(owner);
        true
    }

    fn page(&mut self, owner: &mut Owner, limit: usize) -> bool {
        let now = owner.clock.now(self.instant());
        if owner.pending.has_room() && owner.pending.loaded().due < now.plus(HORIZON) {
            let until = now.plus(HORIZON);
            let after = (Bound::Excluded(owner.pending.ask()), Bound::Unbounded);
            let rows = self.database.table.range(after).filter(|position| position.due < until).take(limit);
            owner.pending.load(rows.map(|position| row(*position)).collect(), until);
        }
        true
    }

    fn take(&mut self, owner: &mut Owner) -> bool {
        if !owner.firing.is_empty() {
            return true;
        }
        if self.instant().saturating_duration_since(owner.fenced_at) >= FENCE_AGE && !self.move_cursor(owner)
        {
            return false;
        }
        owner.firing = owner.pending.take_due(owner.clock.now(self.instant()), 4, 10_000);
        owner.firing.iter().for_each(|row| self.is_not_early(owner, row.position.id));
        true
    }

    /// A retry comes early only by what clocks that differ by more than the tolerance cannot tell, and by a step that the
    /// database's clock made since the row was stored.
    fn is_not_early(&self, owner: &Owner, id: i64) {
        let Written { at, delay, dispatcher_off } = self.log[id as usize];
        let stored_off = self.stored_off[&id];
        let excess = (stored_off - dispatcher_off - TOLERANCE).max(0);
        let stepped = (owner.clock_off - stored_off).max(0);
        let drift = self.now * self.fast_ppm / 1_000_000;
        let rounding = 1_001;
        let early = at + delay - self.now;
        assert!(
            early <= excess + stepped + drift + rounding,
            "{early} µs early, {excess} + {stepped} allowed"
        );
    }

    fn settle(&mut self, owner: &mut Owner, failing: u32) -> bool {
        let rows = std::mem::take(&mut owner.firing);
        let (failed, done): (Vec<_>, Vec<_>) =
            rows.into_iter().enumerate().partition(|(index, _)| failing & (1 << index) != 0);
        self.acknowledged.extend(done.iter().map(|(_, row)| row.position.id));
        owner.pending.settle(failed.into_iter().map(|(_, row)| row).collect());
        true
    }

    fn move_cursor(&mut self, owner: &mut Owner) -> bool {
        let cursor = owner.pending.watermark(owner.clock.now(self.instant()));
        if self.is_fenced(owner) {
            return false;
        }
        let passed = self.database.table.range(..=cursor);
        let lost = passed.map(|position| position.id).find(|id| !self.acknowledged.contains(id));
        assert_eq!(lost, None, "the cursor passed a retry that was not produced");
        self.database.cursor = cursor;
        self.corrected(owner);
        owner.pending.cursor_moved(cursor);
        true
    }

    /// Lets everything go well until all must have fired.
    fn finish(&mut self) {
        let settle = Event::Settle(Who::Owner, 0);
        self.apply(&settle);
        let mut steps = vec![Event::Wait(20 * SECOND), Event::Store(Who::Owner, 100)];
        for _ in 0..4 {
            steps.extend([Event::Page(Who::Owner, 100), Event::Take(Who::Owner), settle.clone()]);
        }
        steps.push(Event::MoveCursor(Who::Owner));
        // Three hours and more: the clock may have stepped back by two of them.
        for _ in 0..4 * HOUR / (20 * SECOND) {
            steps.iter().for_each(|step| self.apply(step));
        }
    }
}

fn take_over(
    database: &mut Database,
    bounds: Bounds,
    epoch: i64,
    clock: DbClock,
    clock_off: i64,
    at: Instant,
) -> Owner {
    database.epoch = epoch.max(database.epoch + 1);
    Owner {
        epoch: database.epoch,
        next: database.next,
        pending: Pending::new(database.cursor, bounds),
        firing: Vec::new(),
        clock,
        clock_off,
        fenced_at: at,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_is_lost_or_early_or_behind_the_cursor_whatever_happens_to_clocks_owners_and_database(
        events in vec(event(), 0..150), rows in 1usize..8, fast_ppm in 0i64..200, off in -2 * TOLERANCE..2 * TOLERANCE,
    ) {
        let mut world = World::new(rows, fast_ppm, off);
        events.iter().for_each(|event| world.apply(event));
        world.finish();
        let all: BTreeSet<i64> = (0..world.log.len() as i64).collect();
        prop_assert_eq!(&world.acknowledged, &all);
        prop_assert_eq!(world.database.table.len(), all.len());
        prop_assert_eq!(world.owner.pending.len(), 0);
    }
}
