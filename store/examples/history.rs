//! Fills a database with history, counts and dead letters by COPY, brings it into the state that maintenance leaves, and asks
//! what the API asks: `history fill 10000000`, `history ask`, `history drop`. `make bench-history` runs all three.
//!
//! The rows are of 48 hours up to now, so the last hour is still open and has one index. `FLOODWAY_DATABASE_URL` names the
//! server; the database is `floodway_bench_history`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people at a terminal, and for nothing else"
)]

use floodway_schemas::{
    UnixMillis,
    ids::{SubscriptionId, TenantId},
};
use floodway_store::{
    DbInstant, Pool, count_levels,
    counts::{self, CountFilter},
    dead_letters::{self, DeadLetterFilter},
    deliveries::{self, DeliveryFilter},
    delivery_indexes, migrate,
    page::HistoryCursor,
    partitions::{self, Plan, Retention},
    pool::READ_POOL_SIZE,
};
use secrecy::SecretString;
use std::{
    fmt::Write as _,
    pin::{Pin, pin},
    time::{Duration, Instant},
};
use tokio_postgres::{
    binary_copy::BinaryCopyInWriter,
    types::{ToSql, Type},
};
use uuid::Uuid;

const DATABASE: &str = "floodway_bench_history";
const HOURS: i64 = 48;
const HOUR_MS: i64 = 3_600_000;
/// Rows of one batch of the scheduler: they have one instant.
const BATCH_ROWS: u64 = 200;
const DAY: Duration = Duration::from_secs(86_400);
/// Half of the rows are the first tenant's.
const TENANTS: u64 = 200;
const SUBSCRIPTIONS: u64 = 1_000;
const EXCHANGE: &str = r#"{"address":"192.0.2.1:443","reused":true,"timings":{"first_byte_us":900,"total_us":950},"request_headers":[{"name":"content-type","value":"application/json"},{"name":"webhook-id","value":"msg"}],"response_headers":[{"name":"content-type","value":"text/plain"}]}"#;

fn tenant(n: u64) -> TenantId {
    TenantId(Uuid::from_u128(0x0193_8f2e_0000_7000_8000_0000_0000_0000 | u128::from(n)))
}

fn subscription(n: u64) -> SubscriptionId {
    SubscriptionId(Uuid::from_u128(0x0193_8f2f_0000_7000_8000_0000_0000_0000 | u128::from(n)))
}

/// Numbers that look random and are the same in every run.
fn spread(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn event_id(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(spread(n)) << 64 | u128::from(spread(n ^ 0x5555)))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let server = std::env::var("FLOODWAY_DATABASE_URL").unwrap();
    let (address, _) = server.rsplit_once('/').unwrap();
    let url: SecretString = format!("{address}/{DATABASE}").into();
    match arguments.next().as_deref() {
        Some("fill") => {
            let rows = arguments.next().map_or(10_000_000, |rows| rows.parse().unwrap());
            execute(&server.into(), &format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).await;
            execute(
                &std::env::var("FLOODWAY_DATABASE_URL").unwrap().into(),
                &format!("CREATE DATABASE {DATABASE}"),
            )
            .await;
            fill(&url, rows).await;
        }
        Some("ask") => ask(&url).await,
        Some("drop") => {
            execute(&server.into(), &format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).await
        }
        _ => println!("history fill [ROWS] | ask | drop"),
    }
}

async fn execute(url: &SecretString, sql: &str) {
    let client = Pool::new(url, "bench", 1).unwrap().get().await.unwrap();
    client.batch_execute("SET statement_timeout = 0; SET transaction_timeout = 0").await.unwrap();
    client.batch_execute(sql).await.unwrap();
}

async fn now(url: &SecretString) -> i64 {
    let client = Pool::new(url, "bench", 1).unwrap().get().await.unwrap();
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn fill(url: &SecretString, rows: u64) {
    migrate::migrate(url).await.unwrap();
    let pool = Pool::new(url, "bench", 4).unwrap();
    let mut maintainer = partitions::lock(&pool).await.unwrap().unwrap();
    let retention = Retention { deliveries: 183 * DAY, counts: 396 * DAY, dead_letters: 183 * DAY };
    let now = now(url).await;
    make_past_partitions(url, now).await;
    partitions::maintain(&mut maintainer, Plan::default(), retention).await.unwrap();

    let step = HOURS * HOUR_MS / (rows / BATCH_ROWS).max(1) as i64;
    let at =
        |n: u64| DbInstant::from_millis(UnixMillis(now - HOURS * HOUR_MS + (n / BATCH_ROWS) as i64 * step));
    const DELIVERY: [(&str, Type); 15] = [
        ("recorded_at", Type::TIMESTAMPTZ),
        ("shard", Type::INT4),
        ("id", Type::INT8),
        ("at", Type::TIMESTAMPTZ),
        ("tenant_id", Type::UUID),
        ("subscription_id", Type::UUID),
        ("event_id", Type::TEXT),
        ("event_type", Type::TEXT),
        ("attempt", Type::INT4),
        ("kind", Type::TEXT),
        ("status", Type::INT4),
        ("error", Type::TEXT),
        ("duration_ms", Type::INT4),
        ("response", Type::TEXT),
        ("wire", Type::TEXT),
    ];
    copy(url, "delivery", &DELIVERY, rows, async |writer, n| {
        let (r, at) = (spread(n), at(n));
        let kind = match r % 1_000 {
            0 => "disable",
            1..=50 => "dead",
            51..=350 => "delivered",
            _ => "retry",
        };
        // One in 100,000 is a teapot.
        let (status, error) = match (kind, (r >> 16) % 100_000) {
            ("delivered", _) => (Some(200), None),
            (_, 0) => (Some(418), Some("status")),
            (_, 1..=20_000) => (None, Some("timeout")),
            (_, 20_001..=20_010) => (None, Some("tls")),
            _ => (Some(503), Some("status")),
        };
        let values: [&(dyn ToSql + Sync); DELIVERY.len()] = [
            &at,
            &(((n / BATCH_ROWS) % 8) as i32),
            &(n as i64),
            &at,
            &tenant_of(r).0,
            &subscription_of(r).0,
            &event_id(n).to_string(),
            &type_of(r),
            &((1 + r % 5) as i32),
            &kind,
            &status,
            &error,
            &((r % 900) as i32),
            &"upstream unavailable, try again later",
            &EXCHANGE,
        ];
        writer.write(&values).await
    })
    .await;
    // As many deltas of counts, and a tenth of dead letters.
    const COUNT: [(&str, Type); 5] = [
        ("minute", Type::TIMESTAMPTZ),
        ("tenant_id", Type::UUID),
        ("subscription_id", Type::UUID),
        ("kind", Type::TEXT),
        ("n", Type::INT8),
    ];
    copy(url, "delivery_count", &COUNT, rows, async |writer, n| {
        let r = spread(n);
        let minute = DbInstant(at(n).0 - at(n).0.rem_euclid(60_000_000));
        writer.write(&[&minute, &tenant_of(r).0, &subscription_of(r).0, &"delivered", &3_i64]).await
    })
    .await;
    const LETTER: [(&str, Type); 15] = [
        ("recorded_at", Type::TIMESTAMPTZ),
        ("shard", Type::INT4),
        ("id", Type::INT8),
        ("at", Type::TIMESTAMPTZ),
        ("since", Type::TIMESTAMPTZ),
        ("tenant_id", Type::UUID),
        ("subscription_id", Type::UUID),
        ("event_id", Type::TEXT),
        ("event_type", Type::TEXT),
        ("record_key", Type::TEXT),
        ("attempts", Type::INT4),
        ("reason", Type::TEXT),
        ("status", Type::INT4),
        ("error", Type::TEXT),
        ("event", Type::BYTEA),
    ];
    copy(url, "dead_letter", &LETTER, rows / 10, async |writer, n| {
        let (r, at) = (spread(n), at(n * 10));
        let values: [&(dyn ToSql + Sync); LETTER.len()] = [
            &at,
            &0_i32,
            &(n as i64),
            &at,
            &at,
            &tenant_of(r).0,
            &subscription_of(r).0,
            &event_id(n).to_string(),
            &type_of(r),
            &"k",
            &9_i32,
            &"attempts_exhausted",
            &503_i32,
            &"status",
            &b"{}".as_slice(),
        ];
        writer.write(&values).await
    })
    .await;
    let begun = Instant::now();
    let rolled_up = count_levels::roll_up(&mut maintainer).await.unwrap();
    println!("rolled up {rolled_up:?} in {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let mut hours = 0;
    loop {
        let built = delivery_indexes::build(&mut maintainer).await.unwrap();
        hours += built.len();
        if built.is_empty() {
            break;
        }
    }
    println!("indexed {hours} hours in {:.1} s", begun.elapsed().as_secs_f64());
    for table in ["dead_letter", "delivery_count", "delivery_count_hour"] {
        execute(url, &format!("VACUUM (ANALYZE) {table}")).await;
    }
}

fn tenant_of(r: u64) -> TenantId {
    if r & 0x80 == 0 { tenant(0) } else { tenant(1 + (r >> 40) % (TENANTS - 1)) }
}

fn subscription_of(r: u64) -> SubscriptionId {
    subscription((r >> 8) % SUBSCRIPTIONS)
}

fn type_of(r: u64) -> String {
    format!("order.type{}", (r >> 24) % 40)
}

/// What the scheduler would have created, hour by hour; counts begin where the rows do.
async fn make_past_partitions(url: &SecretString, now: i64) {
    let first = now - now.rem_euclid(HOUR_MS) - HOURS * HOUR_MS;
    let first_day = first - first.rem_euclid(24 * HOUR_MS);
    let mut sql = String::new();
    let mut partition = |table: &str, name: String, from: i64, to: i64| {
        let (from, to) = (UnixMillis(from).to_rfc3339(), UnixMillis(to).to_rfc3339());
        let _ = writeln!(
            sql,
            "CREATE TABLE {table}_{name} PARTITION OF {table} FOR VALUES FROM ('{from}') TO ('{to}');"
        );
    };
    let digits = |at: i64, n: usize| {
        UnixMillis(at).to_rfc3339().chars().filter(char::is_ascii_digit).take(n).collect::<String>()
    };
    for hour in 0..HOURS {
        let from = first + hour * HOUR_MS;
        partition(
            "delivery",
            format!("{}_{}", digits(from, 8), &digits(from, 10)[8..]),
            from,
            from + HOUR_MS,
        );
    }
    let mut day = first_day;
    while day + 24 * HOUR_MS <= now {
        partition("delivery_count", digits(day, 8), day, day + 24 * HOUR_MS);
        day += 24 * HOUR_MS;
    }
    let start = UnixMillis(first_day).to_rfc3339();
    let _ = writeln!(
        sql,
        "UPDATE delivery_count_progress SET hours_to = '{start}', days_to = '{start}', minutes_from = '{start}', hours_from = '{start}';"
    );
    execute(url, &sql).await;
}

/// Writes rows by COPY on one connection, and says how fast.
async fn copy(
    url: &SecretString,
    table: &str,
    columns: &[(&str, Type)],
    rows: u64,
    write: impl AsyncFn(Pin<&mut BinaryCopyInWriter>, u64) -> Result<(), tokio_postgres::Error>,
) {
    let begun = Instant::now();
    let client = Pool::new(url, "bench", 1).unwrap().get().await.unwrap();
    client.batch_execute("SET statement_timeout = 0; SET transaction_timeout = 0").await.unwrap();
    let (names, types): (Vec<&str>, Vec<Type>) = columns.iter().cloned().unzip();
    let sink =
        client.copy_in(&format!("COPY {table} ({}) FROM STDIN BINARY", names.join(", "))).await.unwrap();
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &types));
    for n in 0..rows {
        write(writer.as_mut(), n).await.unwrap();
    }
    writer.finish().await.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    println!("{rows} rows into {table} in {seconds:.1} s, {:.0} per second", rows as f64 / seconds);
}

/// One question, asked of cold connections' caches and then of warm ones: the median and the longest of ten.
async fn time<F: Future<Output = usize>>(what: &str, mut question: impl FnMut() -> F) {
    let mut times = Vec::new();
    let mut found = 0;
    for _ in 0..11 {
        let begun = Instant::now();
        found = question().await;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    println!("| {what} | {found} | {first:.1} | {:.1} | {:.1} |", times[5], times[9]);
}

async fn ask(url: &SecretString) {
    let pool = Pool::read_only(url, "bench", READ_POOL_SIZE).unwrap();
    let now = now(url).await;
    let counts_of = async |table: &str| -> i64 {
        let client = Pool::new(url, "bench", 1).unwrap().get().await.unwrap();
        let sql = format!(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = '{table}'::regclass"
        );
        client.query_one(&sql, &[]).await.unwrap().get(0)
    };
    println!(
        "rows: {} of history, {} deltas of counts, {} dead letters\n",
        counts_of("delivery").await,
        counts_of("delivery_count").await,
        counts_of("dead_letter").await
    );
    println!("| query | found | first, ms | median, ms | longest, ms |\n|---|---|---|---|---|");
    let of = |n| DeliveryFilter::of(tenant(n));
    let ago = |hours: i64| Some(UnixMillis(now - hours * HOUR_MS));
    let text = |text: &str| Some(text.to_owned());
    let old_event = event_id(BATCH_ROWS * 7 + 3).to_string();
    let questions = [
        ("the newest of half of all rows", of(0)),
        ("the newest of a small tenant", of(17)),
        ("a day ago", DeliveryFilter { to: ago(24), ..of(0) }),
        (
            "a subscription of a small tenant",
            DeliveryFilter { subscription: Some(subscription(77)), ..of(17) },
        ),
        ("a subscription", DeliveryFilter { subscription: Some(subscription(77)), ..of(0) }),
        (
            "a subscription that has none",
            DeliveryFilter { subscription: Some(subscription(5_000_000)), ..of(0) },
        ),
        ("an event of two days ago", DeliveryFilter { event_id: Some(old_event), ..of(0) }),
        ("an event that is not there", DeliveryFilter { event_id: text("none"), ..of(0) }),
        ("a type", DeliveryFilter { event_type: text("order.type7"), ..of(0) }),
        ("a type that is not there", DeliveryFilter { event_type: text("none"), ..of(0) }),
        ("given up", DeliveryFilter { kind: text("dead"), ..of(0) }),
        ("given up for 410, one in a thousand", DeliveryFilter { kind: text("disable"), ..of(0) }),
        ("status 503", DeliveryFilter { status: Some(503), ..of(0) }),
        ("status 418, one in 100,000", DeliveryFilter { status: Some(418), ..of(0) }),
        ("status 599, none", DeliveryFilter { status: Some(599), ..of(0) }),
        ("timeouts", DeliveryFilter { error: text("timeout"), ..of(0) }),
        ("TLS, one in 10,000", DeliveryFilter { error: text("tls"), ..of(0) }),
        (
            "subscription, type and kind",
            DeliveryFilter {
                subscription: Some(subscription(77)),
                event_type: text("order.type7"),
                kind: text("dead"),
                ..of(0)
            },
        ),
        (
            "type and a status, none",
            DeliveryFilter { event_type: text("order.type7"), status: Some(599), ..of(0) },
        ),
    ];
    let list = async |filter: &DeliveryFilter, cursor: Option<HistoryCursor>| {
        let client = pool.get().await.unwrap();
        deliveries::list(&client, filter, cursor, 100).await.unwrap()
    };
    for (what, filter) in &questions {
        time(what, || async { list(filter, None).await.items.len() }).await;
    }
    let mut cursor = None;
    for _ in 0..20 {
        cursor = list(&of(0), cursor).await.next_cursor.map(|cursor| cursor.parse().unwrap());
    }
    time("page 21", || async { list(&of(0), cursor).await.items.len() }).await;
    for (what, from, to) in [
        ("counts of all time", None, None),
        ("counts of a day, by the minute", ago(30).map(|at| UnixMillis(at.0 + 61_000)), ago(6)),
        ("counts of the last hour", ago(1), None),
    ] {
        time(what, || async {
            let mut client = pool.get().await.unwrap();
            let filter = CountFilter { tenant: tenant(0), subscription: None, from, to };
            counts::count(&mut client, &filter).await.unwrap().subscriptions.len()
        })
        .await;
    }
    let letters = |n| DeadLetterFilter::of(tenant(n));
    for (what, filter) in [
        ("dead letters", letters(0)),
        ("dead letters not asked for again", DeadLetterFilter { replayed: Some(false), ..letters(0) }),
        (
            "dead letters of a subscription",
            DeadLetterFilter { subscription: Some(subscription(77)), ..letters(0) },
        ),
        (
            "dead letters of a type that is not there",
            DeadLetterFilter { event_type: text("none"), ..letters(0) },
        ),
    ] {
        time(what, || async {
            let client = pool.get().await.unwrap();
            dead_letters::list(&client, &filter, None, 100).await.unwrap().items.len()
        })
        .await;
    }
    time("preview of a replay, 10,000 counted", || async {
        let client = pool.get().await.unwrap();
        dead_letters::places(&client, &letters(0), None, 10_000).await.unwrap().items.len()
    })
    .await;
    plans(url, &questions).await;
}

/// The plans of the same statements over the last six hours, as the server logs them to the client that asks.
async fn plans(url: &SecretString, questions: &[(&str, DeliveryFilter)]) {
    let client = Pool::read_only(url, "bench", 1).unwrap().get().await.unwrap();
    println!();
    for (what, filter) in questions {
        let plan = deliveries::explain(&client, filter, Duration::from_secs(6 * 3_600)).await.unwrap();
        println!("### {what}\n\n```\n{}\n```\n", plan.join("\n"));
    }
}
