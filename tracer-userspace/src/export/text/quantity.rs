//! Numbers as people read them.

#![forbid(unsafe_code)]

use std::time::Duration;

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 MB`, in powers of a thousand.
pub(super) fn bytes(number: u64) -> String {
    if number < 1_000 {
        return format!("{number} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = number as f64 / 1_000.0;
    for unit in ["kB", "MB", "GB"] {
        if value < 999.5 {
            return format!("{} {unit}", three_digits(value));
        }
        value /= 1_000.0;
    }
    format!("{} TB", three_digits(value))
}

/// `3.10 ms`: three digits, in the unit that fits.
pub(super) fn duration(duration: Duration) -> String {
    seconds(duration.as_secs_f64())
}

/// As [`duration`], of seconds that may be below zero.
pub(super) fn seconds(seconds: f64) -> String {
    let sign = if seconds < 0.0 { "-" } else { "" };
    let value = seconds.abs();
    if value < 999.5e-6 {
        format!("{sign}{:.0} µs", value * 1e6)
    } else if value < 999.5e-3 {
        format!("{sign}{} ms", three_digits(value * 1e3))
    } else if value < 119.5 {
        format!("{sign}{} s", three_digits(value))
    } else if value < 119.5 * 60.0 {
        format!("{sign}{:.0} min", value / 60.0)
    } else {
        format!("{sign}{} h", three_digits(value / 3_600.0))
    }
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// How often values occurred, to a percent of their size, in bounded memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Distribution {
    buckets: std::collections::BTreeMap<i32, u64>,
    total: u64,
    negative: u64,
}

/// Ratio of one bucket's upper to its lower bound.
const GROWTH: f64 = 1.02;
/// Bucket of 1 µs, and of about four months: what lies outside is put there.
const LOWEST: i32 = -698;
const HIGHEST: i32 = 814;

impl Distribution {
    /// Adds a value (in seconds) that occurred `times` times. Below zero it is only counted.
    pub(super) fn add(&mut self, value: f64, times: u64) {
        if value < 0.0 || !value.is_finite() {
            self.negative += times;
            return;
        }
        let place = (value.max(1e-9).ln() / GROWTH.ln()).floor();
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a finite number above 1e-9 is small")]
        let bucket = (place as i32).clamp(LOWEST, HIGHEST);
        *self.buckets.entry(bucket).or_default() += times;
        self.total += times;
    }

    /// The value that this share (0 to 1) of the values does not exceed, to a percent; `None` without any.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a rank, good enough to 53 bits")]
        let rank = share * self.total as f64;
        let mut seen = 0_u64;
        for (bucket, times) in &self.buckets {
            seen += times;
            #[expect(clippy::cast_precision_loss, reason = "a rank, good enough to 53 bits")]
            if seen as f64 >= rank {
                return Some(GROWTH.powf(f64::from(*bucket) + 0.5));
            }
        }
        None
    }

    /// How many lay below zero, where two clocks disagree.
    pub(super) const fn negative(&self) -> u64 {
        self.negative
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_given_a_unit() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [999, 1_000, 12_340, 999_400, 999_600, 1_500_000_000, 7_000_000_000_000_000].map(bytes),
            ["999 B", "1.00 kB", "12.3 kB", "999 kB", "1.00 MB", "1.50 GB", "7000 TB"]
        );
        assert_eq!(
            [0.0, 0.000_8, 0.003_1, 0.012_34, 0.999_9, 1.0, 65.0, 600.0, 9_000.0, -0.002].map(seconds),
            ["0 µs", "800 µs", "3.10 ms", "12.3 ms", "1.00 s", "1.00 s", "65.0 s", "10 min", "2.50 h", "-2.00 ms"]
        );
    }

    #[test]
    fn quantiles_are_right_to_two_percent() {
        let mut distribution = Distribution::default();
        assert_eq!(distribution.quantile(0.5), None);
        for millisecond in 1..=1_000 {
            distribution.add(f64::from(millisecond) / 1_000.0, 3);
        }
        distribution.add(-1.0, 5);
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            let found = distribution.quantile(share).unwrap();
            assert!((found / expected - 1.0).abs() < 0.02, "{share}: {found}");
        }
        assert_eq!(distribution.negative(), 5);
    }

    #[test]
    fn any_number_finds_a_bucket() {
        let mut distribution = Distribution::default();
        for value in [0.0, f64::MIN_POSITIVE, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0] {
            distribution.add(value, 1);
        }
        assert_eq!((distribution.total, distribution.negative()), (4, 3));
        assert!(distribution.buckets.len() <= 2);
    }
}
