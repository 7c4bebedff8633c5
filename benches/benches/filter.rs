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
    let order = |lines: usize| {
        let lines = vec![r#"{"sku":"abc-123","n":5,"price":12.5}"#; lines].join(",");
        envelope(&format!("{{\"type\":\"t\",\"data\":{{\"lines\":[{lines}]}}}}"))
    };
    let list = |count| envelope(&format!("{{\"type\":\"t\",\"data\":[{}]}}", vec!["1"; count].join(",")));
    // Each of the last ones is just below the budget.
    let (small, large, pairs, deep) = (order(20), order(1_800), list(85), {
        let names: Vec<String> = ('a'..='p').map(|name| format!("{{\"{name}\":")).collect();
        let item = format!("{}1{}", names.concat(), "}".repeat(names.len()));
        envelope(&format!("{{\"type\":\"t\",\"data\":[{}]}}", vec![item.as_str(); 1_050].join(",")))
    });
    let by_lines = "data.lines.exists(l, l.sku.startsWith('VIP-') && l.n > 3)";
    let cases = [
        ("by attributes", "event.type == 'x' || event.source.startsWith('/shop')", &usual),
        ("by data", "has(data.missing) || data.missing == 1 || event.type == 'x'", &usual),
        ("by 20 lines", by_lines, &small),
        ("by 1,800 lines", by_lines, &large),
        ("by 7,225 pairs", "data.all(x, data.all(y, x <= y))", &pairs),
        ("by deep members", "data.all(x, x.a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p == 1)", &deep),
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
