//! Finding the subscriptions of an event: by tenant, then by type, among 100,000.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use floodway_schemas::pattern::{TypeIndex, TypePattern};
use std::{hint::black_box, sync::Arc};

fn patterns(texts: &[String]) -> Vec<TypePattern> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// An index of `count` subscriptions, each to a type of its own, and one to `order.*`.
fn index(count: usize) -> TypeIndex<Arc<usize>> {
    let mut index = TypeIndex::default();
    index.insert(&patterns(&["order.*".to_owned()]), &Arc::new(count));
    for number in 0..count {
        index.insert(&patterns(&[format!("invoice.kind{number}.paid")]), &Arc::new(number));
    }
    index
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("matching");
    group.throughput(Throughput::Elements(1));
    for count in [10, 10_000, 100_000] {
        let index = index(count);
        for (name, event_type) in [
            ("no subscription", "user.profile.changed"),
            ("one by prefix", "order.created"),
            ("one by type", "invoice.kind7.paid"),
        ] {
            group.bench_function(format!("{name} of {count} others"), |b| {
                b.iter(|| index.matching(black_box(event_type)).count());
            });
        }
        let (types, added) = (patterns(&["invoice.new".to_owned()]), Arc::new(0));
        group.bench_function(format!("a change beside {count}"), |b| {
            b.iter_batched_ref(|| index.clone(), |copy| copy.insert(&types, &added), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, matching);
criterion_main!(benches);
