//! What the verifier of Linux 4.14 knows of a number: which bits are known (`struct tnum`, `kernel/bpf/tnum.c`), and its bounds, unsigned and
//! signed (`struct bpf_reg_state`, `kernel/bpf/verifier.c`).

use super::instruction::{condition, operation};

/// Bits of a number: those that are set in `mask` are not known, the others are those of `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    pub(crate) value: u64,
    mask: u64,
}

impl Bits {
    const UNKNOWN: Self = Self { value: 0, mask: u64::MAX };

    const fn of(value: u64) -> Self {
        Self { value, mask: 0 }
    }

    fn is_known(self) -> bool {
        self.mask == 0
    }

    /// All that numbers of an unsigned range have in common.
    fn between(least: u64, most: u64) -> Self {
        let differing = 64 - (least ^ most).leading_zeros();
        if differing > 63 {
            return Self::UNKNOWN;
        }
        let mask = (1 << differing) - 1;
        Self { value: least & !mask, mask }
    }

    fn both(self, other: Self) -> Self {
        let mask = self.mask & other.mask;
        Self { value: (self.value | other.value) & !mask, mask }
    }

    fn add(self, other: Self) -> Self {
        let value = self.value.wrapping_add(other.value);
        let carried = self.mask.wrapping_add(other.mask).wrapping_add(value) ^ value;
        let mask = carried | self.mask | other.mask;
        Self { value: value & !mask, mask }
    }

    fn subtract(self, other: Self) -> Self {
        let value = self.value.wrapping_sub(other.value);
        let borrowed = value.wrapping_add(self.mask) ^ value.wrapping_sub(other.mask);
        let mask = borrowed | self.mask | other.mask;
        Self { value: value & !mask, mask }
    }

    fn and(self, other: Self) -> Self {
        let value = self.value & other.value;
        Self { value, mask: (self.value | self.mask) & (other.value | other.mask) & !value }
    }

    fn or(self, other: Self) -> Self {
        let value = self.value | other.value;
        Self { value, mask: (self.mask | other.mask) & !value }
    }

    fn contains(self, other: Self) -> bool {
        other.mask & !self.mask == 0 && other.value & !self.mask == self.value
    }
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    bits: Bits,
    pub(crate) least: u64,
    pub(crate) most: u64,
    pub(crate) least_signed: i64,
    most_signed: i64,
}

impl Range {
    pub(crate) const UNKNOWN: Self = Self { bits: Bits::UNKNOWN, least: 0, most: u64::MAX, least_signed: i64::MIN, most_signed: i64::MAX };

    pub(crate) const fn of(value: u64) -> Self {
        let signed = value.cast_signed();
        Self { bits: Bits::of(value), least: value, most: value, least_signed: signed, most_signed: signed }
    }

    /// The number, where only one is possible.
    pub(crate) fn known(self) -> Option<u64> {
        self.bits.is_known().then_some(self.bits.value)
    }

    /// No number is possible: a branch that cannot be taken led here.
    pub(crate) fn is_empty(self) -> bool {
        let is_torn = self.bits.is_known() && (self.least != self.most || self.least_signed != self.most_signed);
        is_torn || self.least > self.most || self.least_signed > self.most_signed
    }

    /// Every number of the other range is one of this.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.least <= other.least
            && self.most >= other.most
            && self.least_signed <= other.least_signed
            && self.most_signed >= other.most_signed
            && self.bits.contains(other.bits)
    }

    /// Bounds from the bits.
    fn bound(&mut self) {
        let (least, most) = (self.bits.value, self.bits.value | self.bits.mask);
        let sign = 1 << 63;
        self.least_signed = self.least_signed.max((least | self.bits.mask & sign).cast_signed());
        self.most_signed = self.most_signed.min((least | self.bits.mask & !sign).cast_signed());
        self.least = self.least.max(least);
        self.most = self.most.min(most);
    }

    /// Unsigned bounds from signed ones, or the other way round.
    fn deduce(&mut self) {
        let least = self.least.max(self.least_signed.cast_unsigned());
        let most = self.most.min(self.most_signed.cast_unsigned());
        if self.least_signed >= 0 || self.most_signed < 0 {
            self.set_least(least);
            self.set_most(most);
        } else if self.most.cast_signed() >= 0 {
            self.set_least(self.least);
            self.set_most(most);
        } else if self.least.cast_signed() < 0 {
            self.set_least(least);
            self.set_most(self.most);
        }
    }

    fn set_least(&mut self, least: u64) {
        (self.least, self.least_signed) = (least, least.cast_signed());
    }

    fn set_most(&mut self, most: u64) {
        (self.most, self.most_signed) = (most, most.cast_signed());
    }

    /// Bits from the bounds.
    fn narrow(&mut self) {
        self.bits = self.bits.both(Bits::between(self.least, self.most));
    }

    pub(crate) fn settle(&mut self) {
        self.bound();
        self.deduce();
        self.narrow();
    }

    /// What a load of so few bytes leaves: the others are zero.
    pub(crate) fn of_bytes(bytes: i64) -> Self {
        match bytes {
            1 => Self::up_to(0xff),
            2 => Self::up_to(0xffff),
            4 => Self::up_to(0xffff_ffff),
            _ => Self::UNKNOWN,
        }
    }

    fn up_to(most: u64) -> Self {
        Self { bits: Bits { value: 0, mask: most }, least: 0, most, least_signed: 0, most_signed: most.cast_signed() }
    }

    fn forget_sign(&mut self) {
        (self.least_signed, self.most_signed) = (i64::MIN, i64::MAX);
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let mut sum = Self::UNKNOWN;
        if let (Some(least), Some(most)) =
            (self.least_signed.checked_add(other.least_signed), self.most_signed.checked_add(other.most_signed))
        {
            (sum.least_signed, sum.most_signed) = (least, most);
        }
        if let (Some(least), Some(most)) = (self.least.checked_add(other.least), self.most.checked_add(other.most)) {
            (sum.least, sum.most) = (least, most);
        }
        sum.bits = self.bits.add(other.bits);
        sum
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        let mut difference = Self::UNKNOWN;
        if let (Some(least), Some(most)) =
            (self.least_signed.checked_sub(other.most_signed), self.most_signed.checked_sub(other.least_signed))
        {
            (difference.least_signed, difference.most_signed) = (least, most);
        }
        if let Some(least) = self.least.checked_sub(other.most) {
            (difference.least, difference.most) = (least, self.most.wrapping_sub(other.least));
        }
        difference.bits = self.bits.subtract(other.bits);
        difference
    }

    /// Sign bounds of a bitwise operation of two numbers.
    fn take_sign(&mut self, are_positive: bool) {
        if are_positive {
            (self.least_signed, self.most_signed) = (self.least.cast_signed(), self.most.cast_signed());
        } else {
            self.forget_sign();
        }
        self.bound();
    }

    /// The result of an operation on two numbers.
    pub(crate) fn compute(self, what: u8, other: Self) -> Self {
        let is_of_ranges = matches!(what, operation::ADD | operation::SUBTRACT | operation::AND);
        if other.is_empty() || !is_of_ranges && !other.bits.is_known() {
            return Self::UNKNOWN;
        }
        let are_positive = self.least_signed >= 0 && other.least_signed >= 0;
        let mut result = self;
        match what {
            operation::ADD => result = self.plus(other),
            operation::SUBTRACT => result = self.minus(other),
            operation::AND => {
                if let (Some(one), Some(other)) = (self.known(), other.known()) {
                    return Self::of(one & other);
                }
                result.bits = self.bits.and(other.bits);
                (result.least, result.most) = (result.bits.value, self.most.min(other.most));
                result.take_sign(are_positive);
            }
            operation::OR => {
                if let (Some(one), Some(other)) = (self.known(), other.known()) {
                    return Self::of(one | other);
                }
                result.bits = self.bits.or(other.bits);
                (result.least, result.most) = (self.least.max(other.least), result.bits.value | result.bits.mask);
                result.take_sign(are_positive);
            }
            operation::SHIFT_LEFT if other.most < 64 => {
                result.forget_sign();
                if self.most > 1 << (63 - other.most) {
                    (result.least, result.most) = (0, u64::MAX);
                } else {
                    (result.least, result.most) = (self.least << other.least, self.most << other.most);
                }
                result.bits = Bits { value: self.bits.value << other.least, mask: self.bits.mask << other.least };
                result.bound();
            }
            operation::SHIFT_RIGHT if other.most < 64 => {
                result.forget_sign();
                (result.least, result.most) = (self.least >> other.most, self.most >> other.least);
                result.bits = Bits { value: self.bits.value >> other.least, mask: self.bits.mask >> other.least };
                result.bound();
            }
            // Signed shifts, multiplication and all else: 4.14 follows multiplication a little, which no program needs.
            _ => return Self::UNKNOWN,
        }
        result.settle();
        result
    }

    /// What is known of a number where its comparison with `value` holds, and where it does not.
    pub(crate) fn compared(self, how: u8, value: u64) -> (Self, Self) {
        let (mut holds, mut fails) = (self, self);
        let signed = value.cast_signed();
        // One more and one less, as the kernel computes them: around the ends.
        let (more, less) = (value.wrapping_add(1), value.wrapping_sub(1));
        match how {
            condition::EQUAL => holds = Self::of(value),
            condition::NOT_EQUAL => fails = Self::of(value),
            condition::GREATER => (fails.most, holds.least) = (fails.most.min(value), holds.least.max(more)),
            condition::GREATER_OR_EQUAL => (fails.most, holds.least) = (fails.most.min(less), holds.least.max(value)),
            condition::LESS => (fails.least, holds.most) = (fails.least.max(value), holds.most.min(less)),
            condition::LESS_OR_EQUAL => (fails.least, holds.most) = (fails.least.max(more), holds.most.min(value)),
            condition::GREATER_SIGNED => {
                fails.most_signed = fails.most_signed.min(signed);
                holds.least_signed = holds.least_signed.max(more.cast_signed());
            }
            condition::GREATER_OR_EQUAL_SIGNED => {
                fails.most_signed = fails.most_signed.min(less.cast_signed());
                holds.least_signed = holds.least_signed.max(signed);
            }
            condition::LESS_SIGNED => {
                fails.least_signed = fails.least_signed.max(signed);
                holds.most_signed = holds.most_signed.min(less.cast_signed());
            }
            condition::LESS_OR_EQUAL_SIGNED => {
                fails.least_signed = fails.least_signed.max(more.cast_signed());
                holds.most_signed = holds.most_signed.min(signed);
            }
            _ => {}
        }
        for range in [&mut holds, &mut fails] {
            range.deduce();
            range.narrow();
            range.bound();
        }
        (holds, fails)
    }

    /// What is known of two numbers that are equal.
    pub(crate) fn intersect(self, other: Self) -> Self {
        let mut both = Self {
            bits: self.bits.both(other.bits),
            least: self.least.max(other.least),
            most: self.most.min(other.most),
            least_signed: self.least_signed.max(other.least_signed),
            most_signed: self.most_signed.min(other.most_signed),
        };
        both.settle();
        both.bound();
        both
    }
}

/// The comparison with its sides changed: `5 > x` is `x < 5`.
pub(crate) fn turned(how: u8) -> u8 {
    match how {
        condition::GREATER => condition::LESS,
        condition::LESS => condition::GREATER,
        condition::GREATER_OR_EQUAL => condition::LESS_OR_EQUAL,
        condition::LESS_OR_EQUAL => condition::GREATER_OR_EQUAL,
        condition::GREATER_SIGNED => condition::LESS_SIGNED,
        condition::LESS_SIGNED => condition::GREATER_SIGNED,
        condition::GREATER_OR_EQUAL_SIGNED => condition::LESS_OR_EQUAL_SIGNED,
        condition::LESS_OR_EQUAL_SIGNED => condition::GREATER_OR_EQUAL_SIGNED,
        how => how,
    }
}
