//! When a certificate ends, read from its DER: the one field that operators must be warned of in time.

use time::{Date, Month, PrimitiveDateTime, Time};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Explicit tag 0: the certificate's version, which very old certificates leave out.
const VERSION: u8 = 0xa0;

/// The certificate's `notAfter` in seconds since 1970, if it can be made out.
pub(crate) fn unix_seconds(certificate: &[u8]) -> Option<i64> {
    let mut certificate = Elements(certificate).contents(SEQUENCE)?;
    let mut signed = certificate.contents(SEQUENCE)?;
    if signed.0.first() == Some(&VERSION) {
        signed.contents(VERSION)?;
    }
    signed.contents(INTEGER)?;
    // The signature's algorithm and the issuer.
    signed.contents(SEQUENCE)?;
    signed.contents(SEQUENCE)?;
    let mut validity = signed.contents(SEQUENCE)?;
    let _not_before = validity.next()?;
    let (tag, text) = validity.next()?;
    let text = std::str::from_utf8(text.0).ok()?.strip_suffix('Z')?;
    match tag {
        UTC_TIME => {
            let years: i32 = number(text.get(..2)?)?;
            seconds(if years < 50 { 2000 + years } else { 1900 + years }, text.get(2..)?)
        }
        GENERALIZED_TIME => seconds(number(text.get(..4)?)?, text.get(4..)?),
        _ => None,
    }
}

/// DER elements, one after the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The next element's tag and contents.
    fn next(&mut self) -> Option<(u8, Elements<'a>)> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let mut length = usize::from(*first);
        if length >= 0x80 {
            // A long length; four bytes are more than any certificate has.
            let (bytes, after) = rest.split_at_checked(length & 0x7f).filter(|(b, _)| b.len() <= 4)?;
            length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            rest = after;
        }
        let (contents, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((*tag, Elements(contents)))
    }

    /// The next element's contents, if it has this tag.
    fn contents(&mut self, tag: u8) -> Option<Elements<'a>> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, contents)| contents)
    }
}

/// `MMDDhhmmss` of a year.
fn seconds(year: i32, rest: &str) -> Option<i64> {
    let pair = |at: usize| number::<u8>(rest.get(at..at + 2)?);
    let date = Date::from_calendar_date(year, Month::try_from(pair(0)?).ok()?, pair(2)?).ok()?;
    let time = Time::from_hms(pair(4)?, pair(6)?, pair(8)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

fn number<N: std::str::FromStr>(digits: &str) -> Option<N> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 1);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_time_are_read() {
        // 2049 is the last year of the short form.
        assert_eq!(unix_seconds(&certificate(2049)), Some(2_498_169_600));
        assert_eq!(unix_seconds(&certificate(2050)), Some(2_529_705_600));
    }

    #[test]
    fn a_certificate_cut_off_anywhere_has_no_end() {
        let whole = certificate(2040);
        assert!((0..whole.len()).all(|length| unix_seconds(&whole[..length]).is_none()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            unix_seconds(&bytes);
        }

        #[test]
        fn a_spoiled_certificate_never_panics(at in 0_usize..300, byte in any::<u8>()) {
            let mut spoiled = certificate(2040);
            if let Some(target) = spoiled.get_mut(at) {
                *target = byte;
            }
            unix_seconds(&spoiled);
        }
    }
}
