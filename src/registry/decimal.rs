//! JSON numbers of any size by their exact value, read from their text without rounding.

use std::cmp::Ordering;
use std::hash::Hasher;

/// A number: its digits without zeros at either end, and the position of its point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decimal<'t> {
    is_negative: bool,
    /// The digits in two parts, because the text may have a point between them.
    digits: [&'t [u8]; 2],
    /// Power of ten by which `0.digits` is multiplied. Saturates at the limits of 64 bits.
    magnitude: i64,
}

impl<'t> Decimal<'t> {
    /// Reads the text of a JSON number.
    pub(super) fn of(text: &'t str) -> Self {
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(unsigned) => (true, unsigned),
            None => (false, text),
        };
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let beyond = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
        let exponent = exponent.parse::<i64>().unwrap_or(beyond);
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
        let (digits, places) = match (whole, fraction) {
            ("", "") => return Self { is_negative: false, digits: [&[], &[]], magnitude: 0 },
            ("", fraction) => {
                let digits = fraction.trim_start_matches('0');
                (["", digits], length(digits) - length(fraction))
            }
            (whole, "") => ([whole.trim_end_matches('0'), ""], length(whole)),
            (whole, fraction) => ([whole, fraction], length(whole)),
        };
        Self {
            is_negative,
            digits: digits.map(str::as_bytes),
            magnitude: exponent.saturating_add(places),
        }
    }

    fn digits(&self) -> impl Iterator<Item = u8> + 't {
        self.digits[0].iter().chain(self.digits[1]).copied()
    }

    fn digit_count(&self) -> i64 {
        i64::try_from(self.digits[0].len() + self.digits[1].len()).unwrap_or(i64::MAX)
    }

    fn is_zero(&self) -> bool {
        self.digit_count() == 0
    }

    /// Returns whether the number has no fraction. `1.0` and `1e2` have none.
    pub(super) fn is_integer(&self) -> bool {
        self.digit_count() <= self.magnitude || self.is_zero()
    }

    /// Returns whether the number is a multiple of the divisor.
    pub(super) fn is_multiple_of(&self, divisor: Divisor) -> bool {
        if self.is_zero() {
            return true;
        }
        let by = u128::from(divisor.coefficient);
        // Without the zeros at its end, the number is not a multiple of ten.
        let Ok(zeros) = u64::try_from(
            self.magnitude.saturating_sub(self.digit_count()).saturating_sub(divisor.exponent),
        ) else {
            return false;
        };
        let rest = self.digits().fold(0, |rest, digit| (rest * 10 + u128::from(digit - b'0')) % by);
        (rest * power_of_ten(zeros, by)).is_multiple_of(by)
    }

    /// Adds the value to a hash. Equal numbers have equal hashes.
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        hasher.write_u8(u8::from(self.is_negative));
        hasher.write_i64(self.magnitude);
        self.digits().for_each(|digit| hasher.write_u8(digit));
    }

    fn compare_sizes(&self, other: &Self) -> Ordering {
        match (self.is_zero(), other.is_zero()) {
            (false, false) => {
                self.magnitude.cmp(&other.magnitude).then_with(|| self.digits().cmp(other.digits()))
            }
            (is_zero, other_is_zero) => other_is_zero.cmp(&is_zero),
        }
    }
}

impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative, other.is_negative) {
            (false, false) => self.compare_sizes(other),
            (true, true) => other.compare_sizes(self),
            (is_negative, other_is_negative) => other_is_negative.cmp(&is_negative),
        }
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal<'_> {}

/// A divisor: a coefficient times a power of ten.
#[derive(Debug, Clone, Copy)]
pub(super) struct Divisor {
    coefficient: u64,
    exponent: i64,
}

impl Divisor {
    /// Returns the divisor, or `None` if the number is not above zero or exceeds 64 bits of digits.
    pub(super) fn of(number: Decimal<'_>) -> Option<Self> {
        let mut coefficient = 0_u64;
        for digit in number.digits() {
            coefficient = coefficient.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        }
        let is_positive = coefficient > 0 && !number.is_negative;
        is_positive.then(|| Self {
            coefficient,
            exponent: number.magnitude.saturating_sub(number.digit_count()),
        })
    }
}

/// Returns a power of ten, modulo a number of 64 bits.
fn power_of_ten(mut exponent: u64, modulus: u128) -> u128 {
    let (mut power, mut base) = (1 % modulus, 10 % modulus);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = power * base % modulus;
        }
        base = base * base % modulus;
        exponent >>= 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_compared_without_rounding() {
        let ascending = [
            "-1e400",
            "-9007199254740993",
            "-9007199254740992.5",
            "-1",
            "-0.1",
            "-1e-400",
            "0",
            "1e-400",
            "0.1",
            "0.10000000000000000001",
            "0.9",
            "1",
            "1.00000000000000000000001",
            "2",
            "10",
            "9007199254740992",
            "9007199254740993",
            "9007199254740993.5",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709551617",
            "1e400",
            "1.5e400",
            "1e99999999999999999999",
        ];
        for (at, first) in ascending.iter().enumerate() {
            for (other, second) in ascending.iter().enumerate() {
                assert_eq!(
                    Decimal::of(first).cmp(&Decimal::of(second)),
                    at.cmp(&other),
                    "{first} {second}"
                );
            }
        }
        for (first, second) in [
            ("1", "1.0"),
            ("1e3", "1000"),
            ("15", "1500e-2"),
            ("-0", "0e9"),
            ("0.05e2", "5"),
            ("9007199254740993.0", "9007199254740993"),
        ] {
            assert_eq!(Decimal::of(first), Decimal::of(second));
        }
    }

    #[test]
    fn decimals_detect_integers_and_multiples_by_all_their_digits() {
        for (text, expected) in [
            ("0.0", true),
            ("1e400", true),
            ("9007199254740993.5", false),
            ("1.00000000000000000001", false),
            ("15e-1", false),
            ("150e-1", true),
        ] {
            assert_eq!(Decimal::of(text).is_integer(), expected, "{text}");
        }
        for (text, divisor, expected) in [
            ("9007199254740994", "2", true),
            ("9007199254740993", "2", false),
            ("36893488147419103233", "3", true),
            ("36893488147419103234", "3", false),
            ("19.99", "0.01", true),
            ("19.999", "0.01", false),
            ("1e400", "0.01", true),
            ("1e400", "3", false),
            ("0", "7", true),
            ("-21", "7", true),
            ("4.5", "1.5", true),
            ("1e-9", "1e-8", false),
            ("12e1", "1e1", true),
        ] {
            let divisor = Divisor::of(Decimal::of(divisor)).unwrap();
            assert_eq!(Decimal::of(text).is_multiple_of(divisor), expected, "{text} {divisor:?}");
        }
        assert!(
            ["0", "-1", "99999999999999999999999"]
                .into_iter()
                .all(|text| Divisor::of(Decimal::of(text)).is_none())
        );
    }

    proptest! {
        #[test]
        fn decimals_order_and_divide_integers_as_machine_integers(a in any::<i64>(), b in any::<i64>(), by in 1_u64.., zeros in 0_usize..20) {
            let (text, other) = (format!("{a}.{}", "0".repeat(zeros + 1)), b.to_string());
            prop_assert_eq!(Decimal::of(&text).cmp(&Decimal::of(&other)), a.cmp(&b));
            let multiple = (i128::from(a) * i128::from(by)).to_string();
            let divisor = Divisor::of(Decimal::of(&by.to_string())).unwrap();
            prop_assert!(Decimal::of(&multiple).is_multiple_of(divisor));
            prop_assert_eq!(Decimal::of(&other).is_multiple_of(divisor), i128::from(b) % i128::from(by) == 0);
        }

        #[test]
        fn zeros_and_exponents_do_not_change_the_value_of_a_decimal(digits in "[1-9][0-9]{0,30}", fraction in "[0-9]{0,10}", power in 0_usize..10) {
            let plain = format!("{digits}{}.{fraction}0", "0".repeat(power));
            let scaled = format!("{digits}{}{fraction}e-{}", "0".repeat(power), fraction.len());
            prop_assert_eq!(Decimal::of(&plain), Decimal::of(&scaled));
        }
    }
}
