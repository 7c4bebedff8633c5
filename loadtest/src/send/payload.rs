//! The events that are sent: a function of their number, so that a repeat is byte for byte the same.

use std::io::Write;

/// Types of the sample events, in the order in which they take turns.
pub const SAMPLE_TYPES: [&str; 6] = [
    "order.created",
    "invoice.paid",
    "customer.updated",
    "order.shipped",
    "order.created",
    "invoice.overdue",
];

/// What the events hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A shop's events of about 500 bytes, of several types; every third has a partition key.
    Sample,
    /// One type, and data of about this many bytes.
    Sized {
        /// Type of every event.
        event_type: String,
        /// Size of `data`, at least that of an object with the event's number.
        bytes: usize,
    },
}

impl Payload {
    /// Appends event `number` as JSON. `run` must need no escaping in JSON.
    pub fn write(&self, out: &mut Vec<u8>, run: &str, number: u64) {
        match self {
            Self::Sample => write_sample(out, run, number),
            Self::Sized { event_type, bytes } => write_sized(out, run, number, event_type, *bytes),
        }
    }
}

fn write_sized(out: &mut Vec<u8>, run: &str, number: u64, event_type: &str, bytes: usize) {
    append(out, format_args!("{{\"type\":\"{event_type}\",\"id\":\"{run}-{number}\",\"data\":"));
    let start = out.len();
    append(out, format_args!("{{\"n\":{number},\"pad\":\""));
    // Two bytes close the string and the object.
    let padded = out.len().max((start + bytes).saturating_sub(2));
    out.resize(padded, b'x');
    out.extend_from_slice(b"\"}}");
}

fn write_sample(out: &mut Vec<u8>, run: &str, number: u64) {
    let event_type = SAMPLE_TYPES[(number % SAMPLE_TYPES.len() as u64) as usize];
    let mix = scramble(number);
    let customer = mix % 997;
    append(out, format_args!("{{\"type\":\"{event_type}\",\"id\":\"{run}-{number}\""));
    if number.is_multiple_of(3) {
        append(out, format_args!(",\"partitionkey\":\"customer-{customer}\""));
    }
    out.extend_from_slice(b",\"data\":");
    let (euros, cents, quantity) = (mix % 900 + 10, mix % 100, mix % 5 + 1);
    match event_type.split('.').next() {
        Some("order") => append(
            out,
            format_args!(
                "{{\"order\":\"ord_{mix:016x}\",\"customer\":\"cus_{customer:06}\",\"status\":\"{event_type}\",\
                 \"currency\":\"EUR\",\"total\":{euros}.{cents:02},\"lines\":[{{\"sku\":\"TEA-{quantity:03}\",\
                 \"name\":\"Green tea, loose leaf, 250 g\",\"quantity\":{quantity},\"price\":4.90}},\
                 {{\"sku\":\"CUP-{cents:03}\",\"name\":\"Cup, porcelain, “Überfluss”\",\"quantity\":1,\"price\":12.50}}],\
                 \"shipping\":{{\"method\":\"standard\",\"city\":\"Sønderborg\",\"postcode\":\"{customer:04}\",\
                 \"country\":\"DK\"}},\"note\":\"Leave it at the door if nobody is in.\"}}"
            ),
        ),
        Some("invoice") => append(
            out,
            format_args!(
                "{{\"invoice\":\"inv_{mix:016x}\",\"customer\":\"cus_{customer:06}\",\"status\":\"{event_type}\",\
                 \"currency\":\"EUR\",\"net\":{euros}.{cents:02},\"tax\":{{\"rate\":0.19,\"country\":\"DE\"}},\
                 \"period\":{{\"from\":\"2026-01-01\",\"to\":\"2026-01-31\"}},\"payment\":{{\"method\":\"sepa_debit\",\
                 \"reference\":\"RF{mix:020}\",\"attempts\":{quantity}}},\
                 \"lines\":[{{\"text\":\"Subscription, monthly\",\"amount\":{euros}.{cents:02}}}],\
                 \"pdf\":\"https://example.com/invoices/inv_{mix:016x}.pdf\"}}"
            ),
        ),
        _ => append(
            out,
            format_args!(
                "{{\"customer\":\"cus_{customer:06}\",\"changed\":[\"email\",\"address\",\"consent\"],\
                 \"before\":{{\"email\":\"old.{mix:08x}@example.com\",\"city\":\"Kraków\",\"consent\":false}},\
                 \"after\":{{\"email\":\"new.{mix:08x}@example.com\",\"city\":\"Łódź\",\"consent\":true}},\
                 \"segment\":\"returning\",\"lifetime_value\":{euros}.{cents:02},\
                 \"by\":{{\"actor\":\"customer\",\"channel\":\"web\",\"session\":\"{mix:016x}{mix:016x}\"}}}}"
            ),
        ),
    }
    out.push(b'}');
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a vector never fails.
    let _ = out.write_fmt(text);
}

/// Spreads consecutive numbers over 64 bits (SplitMix64's finisher), so that values look unrelated.
fn scramble(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn event(payload: &Payload, number: u64) -> (Vec<u8>, Value) {
        let mut bytes = Vec::new();
        payload.write(&mut bytes, "run", number);
        let value = serde_json::from_slice(&bytes).unwrap();
        (bytes, value)
    }

    #[test]
    fn sample_events_are_json_of_about_500_bytes_with_their_number_as_id() {
        for number in 0..1000 {
            let (bytes, value) = event(&Payload::Sample, number);
            assert_eq!(value["id"], format!("run-{number}"));
            assert!(SAMPLE_TYPES.contains(&value["type"].as_str().unwrap()));
            assert_eq!(value.get("partitionkey").is_some(), number % 3 == 0);
            assert!((400..700).contains(&bytes.len()), "{} bytes: {value}", bytes.len());
            assert_eq!(event(&Payload::Sample, number).0, bytes);
        }
    }

    #[test]
    fn sized_events_have_data_of_the_size_asked_for() {
        for bytes in [32, 500, 100_000] {
            let payload = Payload::Sized { event_type: "load.event".into(), bytes };
            let (_, value) = event(&payload, 7);
            assert_eq!(serde_json::to_vec(&value["data"]).unwrap().len(), bytes);
        }
        assert!(event(&Payload::Sized { event_type: "t".into(), bytes: 0 }, 7).1["data"]["n"] == 7);
    }
}
