//! Draining a partition's queue: the body of its thread.
//!
//! Backpressure is not draining: librdkafka stops fetching for a queue that nobody polls. `pause()` would throw away what was fetched.

use crate::{
    backlog::{Backlog, Reading},
    intake::{Intake, is_fatal},
    ownership::Owner,
    partition::Partition,
    repeats::Repeats,
    route::Record,
};
use bytes::Bytes;
use floodway_schemas::UnixMillis;
use rdkafka::{Message, consumer::base_consumer::PartitionQueue};
use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Longest wait for a record before the thread looks whether it is to end. There may be many such threads, each of which costs
/// something when it looks, and giving partitions up takes so long.
const POLL_WAIT: Duration = Duration::from_millis(500);
/// Records after which workers are told of them although more are at hand: their deliveries begin meanwhile.
const BURST: usize = 64;
/// Longest wait for room in a tracker's window before the thread looks whether it is to end.
const WINDOW_WAIT: Duration = Duration::from_millis(100);

/// Hands the records of a partition to the router until the partition is given up. `broken` is set when it cannot be consumed.
pub(crate) fn drain(
    queue: &PartitionQueue<Owner>,
    partition: &Arc<Partition>,
    intake: &Intake,
    broken: &AtomicBool,
) {
    let mut unsignalled = 0;
    let mut repeats = Repeats::new(intake.repeat_window, intake.repeat_ids);
    let mut backlog = Backlog::default();
    while !partition.is_stopped() && intake.life.is_running() {
        if let Reading::Pauses(pause) = intake.router.work_off(&mut backlog) {
            std::thread::sleep(pause);
            continue;
        }
        if !intake.router.wait_for_room(intake.topic) {
            continue;
        }
        if !partition.wait_for_room(Duration::ZERO) {
            intake.router.make_way();
            partition.wait_for_room(backlog.patience(WINDOW_WAIT));
            continue;
        }
        // Workers are told of what was at hand once, and before this thread waits for more.
        let at_hand = (unsignalled < BURST).then(|| queue.poll(Duration::ZERO)).flatten();
        let polled = at_hand.or_else(|| {
            if mem::take(&mut unsignalled) > 0 {
                intake.router.signal();
            }
            queue.poll(backlog.patience(POLL_WAIT))
        });
        unsignalled += 1;
        match polled {
            None => {}
            Some(Ok(message)) => {
                let record = Record {
                    topic: intake.topic,
                    offset: message.offset(),
                    timestamp: UnixMillis(message.timestamp().to_millis().unwrap_or(0)),
                    payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
                };
                intake.router.accept(partition, &record, &mut repeats, &mut backlog);
            }
            Some(Err(error)) if is_fatal(&error) => {
                tracing::error!(topic = intake.topic.base_name(), partition = partition.id(), %error, "a partition cannot be consumed");
                broken.store(true, Ordering::Release);
                return;
            }
            Some(Err(error)) => intake.health.suspect(intake.group, &error.to_string()),
        }
    }
    intake.router.leave(partition, backlog);
}
