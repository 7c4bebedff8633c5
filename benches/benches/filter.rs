//! Content filters: what one evaluation costs, usual ones and the worst that is allowed.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_benches::{defaults, sample_event};
use floodway_schemas::{
    event::{Event, EventInput},
    filter::{Filter, Subject},
};
use std::hint::black_box;

fn envelope(input: &str) -> Vec<u8> {
    let mut record = Vec::new();
    if let Ok(event) = EventInput::parse(input.as_bytes()) {
        event.complete(defaults()).encode(&mut record);
    }
    record
}

fn filters(c: &mut Criterion) {
    let usual = envelope(&sample_event(1, 500));
    // Everything is compared with everything, and differs at the end: just below the budget.
    let row = format!("[{}]", (0..24).map(|number| number.to_string()).collect::<Vec<_>>().join(","));
    let table = format!("[{}]", vec![row.as_str(); 24].join(","));
    let large = envelope(&format!("{{\"type\":\"t\",\"data\":[{}]}}", vec![table.as_str(); 40].join(",")));
    let cases = [
        ("by attributes", "event.type == 'x' || event.source.startsWith('/shop')", &usual),
        ("by data", "has(data.missing) || data.missing == 1 || event.type == 'x'", &usual),
        ("the worst", "data.exists(x, data.exists(y, x == y && y == x && 1 == 2))", &large),
    ];
    let mut group = c.benchmark_group("filter");
    group.throughput(Throughput::Elements(1));
    for (name, text, record) in cases {
        let (Ok(event), Ok(filter)) = (Event::decode(record), Filter::compile(text)) else { continue };
        group.bench_function(name, |b| {
            b.iter(|| filter.passes(&mut Subject::new(black_box(&event))));
        });
    }
    group.bench_function("compile", |b| b.iter(|| Filter::compile(black_box(cases[0].1)).is_ok()));
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
