//! What user space decided about a socket or session, in a table that both sides reach through shared memory. A slot holds the last verdict of
//! all numbers that fall on it: one that was overwritten before it was taken is missing, and its socket stays a candidate.

#![expect(clippy::inline_always, reason = "the programs are one function each: the verifier follows nothing else")]

/// Slots of the table.
pub const SLOTS: u32 = 1 << 16;

/// Where the verdict of a number is.
#[inline(always)]
#[must_use]
pub const fn slot(id: u64) -> u32 {
    // Numbers count up above the bits of a CPU: folded together, and spread by the golden ratio, those that follow each other lie apart.
    ((id ^ (id >> 12)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
}

/// What a slot holds: the number, but for its two highest bits, and a [`crate::socket::State`].
#[inline(always)]
#[must_use]
pub const fn word(id: u64, state: u32) -> u64 {
    id << 2 | (state & 3) as u64
}

/// The state, if the slot holds this number's verdict.
#[inline(always)]
#[must_use]
pub const fn state_of(id: u64, word: u64) -> Option<u32> {
    if word != 0 && word >> 2 << 2 == id << 2 { Some((word & 3) as u32) } else { None }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use super::*;
    use crate::socket::State;

    #[test]
    fn a_slot_gives_its_verdict_to_its_number_alone() {
        for id in [1, 4097, 1 << 63 | 5, u64::MAX >> 2] {
            let held = word(id, State::Ignored as u32);
            assert_eq!(state_of(id, held), Some(State::Ignored as u32));
            assert_eq!(state_of(id ^ 4, held), None);
            assert!(slot(id) < SLOTS);
        }
        assert_eq!(state_of(0, 0), None);
    }

    #[test]
    fn numbers_that_follow_each_other_have_slots_of_their_own() {
        let numbers = (1..=1_000_u64).flat_map(|count| (0..4).map(move |cpu| count << 12 | cpu));
        let slots: HashSet<u32> = numbers.map(slot).collect();
        assert_eq!(slots.len(), 4_000);
    }
}
