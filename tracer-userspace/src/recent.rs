//! A bounded table of what came last, for what is put down often and looked for seldom.
//!
//! In: values with the hash of what they are looked for by; who looks compares the rest. What has been there longest is forgotten
//! first. A value costs a place in a queue, in the order of time, and four bytes in a table; nothing is allocated for it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Values of one hash that are found at once: more of them take the places of the oldest, so that looking stays cheap whatever comes.
const MAX_OF_A_HASH: usize = 8;

/// As many as numbers of 32 bits tell apart, with room.
const MOST: usize = 1 << 24;

/// The table.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    max: usize,
    /// With their hashes.
    entries: VecDeque<(u64, T)>,
    /// Number of `entries[0]`; numbers count up, and after the largest begin with 0 again.
    first: u32,
    /// Numbers by hash. What another took the place of has none.
    numbers: HashTable<u32>,
}

impl<T> Recent<T> {
    /// For so many values.
    pub(crate) fn new(max: usize) -> Self {
        Self { max: max.clamp(1, MOST), entries: VecDeque::new(), first: 0, numbers: HashTable::new() }
    }

    /// The latest value of this hash that is wanted.
    pub(crate) fn latest(&self, hash: u64, wanted: impl Fn(&T) -> bool) -> Option<&T> {
        let there = self.of(hash).filter(|(_, value)| wanted(value));
        there.max_by_key(|(age, _)| *age).map(|(_, value)| value)
    }

    /// Puts a value down, in the place of the known one that is the same.
    pub(crate) fn put(&mut self, hash: u64, value: T, same: impl Fn(&T, &T) -> bool) {
        if self.entries.len() >= self.max {
            self.forget_oldest();
        }
        let number = self.number(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        if let Some(before) = self.replaced_by(hash, |known| same(known, &value)).map(|age| self.number(age)) {
            if let Ok(entry) = self.numbers.find_entry(hash, |known| *known == before) {
                *entry.into_mut() = number;
            }
        } else {
            let (entries, first) = (&self.entries, self.first);
            let rehash = |known: &u32| entries.get(known.wrapping_sub(first) as usize).map_or(0, |(hash, _)| *hash);
            self.numbers.insert_unique(hash, number, rehash);
        }
        self.entries.push_back((hash, value));
    }

    /// Takes the latest value of this hash that is wanted: it is not found again.
    pub(crate) fn take(&mut self, hash: u64, wanted: impl Fn(&T) -> bool) -> Option<&T> {
        let age = self.of(hash).filter(|(_, value)| wanted(value)).map(|(age, _)| age).max()?;
        let number = self.number(age);
        self.numbers.find_entry(hash, |known| *known == number).ok()?.remove();
        self.entries.get(age as usize).map(|(_, value)| value)
    }

    /// What has been there longest.
    pub(crate) fn oldest(&self) -> Option<&T> {
        self.entries.front().map(|(_, value)| value)
    }

    /// Forgets what has been there longest.
    pub(crate) fn forget_oldest(&mut self) {
        let Some((hash, _)) = self.entries.pop_front() else { return };
        // Unless a later one has taken its place.
        if let Ok(entry) = self.numbers.find_entry(hash, |number| *number == self.first) {
            entry.remove();
        }
        self.first = self.number(1);
    }

    /// Age counts from the oldest.
    fn number(&self, age: u32) -> u32 {
        self.first.wrapping_add(age)
    }

    /// All values of a hash, with their ages.
    fn of(&self, hash: u64) -> impl Iterator<Item = (u32, &T)> {
        self.numbers.iter_hash(hash).filter_map(move |number| {
            let age = number.wrapping_sub(self.first);
            self.entries.get(age as usize).filter(|(of, _)| *of == hash).map(|(_, value)| (age, value))
        })
    }

    /// The age of the value whose place one takes: the same, or the oldest where there are many.
    fn replaced_by(&self, hash: u64, same: impl Fn(&T) -> bool) -> Option<u32> {
        let (mut count, mut oldest) = (0, None);
        for (age, value) in self.of(hash) {
            if same(value) {
                return Some(age);
            }
            count += 1;
            oldest = Some(oldest.map_or(age, |before: u32| before.min(age)));
        }
        oldest.filter(|_| count >= MAX_OF_A_HASH)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put(u8, u16),
        Take(u8),
        Forget,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let key = 0..24_u8;
        let step = prop_oneof![8 => (key.clone(), any::<u16>()).prop_map(|(key, value)| Step::Put(key, value)), 2 => key.prop_map(Step::Take), 1 => Just(Step::Forget)];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Beside a list that is searched from its end. Keys share eight hashes, three keys each: fewer than a hash may have.
        #[test]
        fn finds_what_a_list_would(steps in steps(), first in prop_oneof![Just(0), Just(u32::MAX - 50)], max in 1_usize..40) {
            let hash = |key: u8| u64::from(key % 8) << 57 | u64::from(key % 8);
            let mut recent: Recent<(u8, u16)> = Recent { first, ..Recent::new(max) };
            // A taken value keeps its place in the queue.
            let mut list: VecDeque<(u8, u16, bool)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        if list.len() >= max {
                            list.pop_front();
                        }
                        list.push_back((key, value, true));
                        recent.put(hash(key), (key, value), |(of, _), (key, _)| of == key);
                    }
                    Step::Take(key) => {
                        let found = recent.take(hash(key), |(of, _)| *of == key).map(|(_, value)| *value);
                        let expected = list.iter().rev().find(|(of, ..)| *of == key).filter(|(.., there)| *there).map(|(_, value, _)| *value);
                        prop_assert_eq!(found, expected);
                        list.iter_mut().filter(|(of, ..)| *of == key).for_each(|(.., there)| *there = false);
                    }
                    Step::Forget => {
                        list.pop_front();
                        recent.forget_oldest();
                    }
                }
                prop_assert_eq!(recent.oldest().copied(), list.front().map(|(key, value, _)| (*key, *value)));
                for key in 0..24 {
                    let found = recent.latest(hash(key), |(of, _)| *of == key).map(|(_, value)| *value);
                    let expected = list.iter().rev().find(|(of, ..)| *of == key).filter(|(.., there)| *there).map(|(_, value, _)| *value);
                    prop_assert_eq!(found, expected, "{}", key);
                }
                prop_assert!(recent.numbers.len() <= recent.entries.len() && recent.entries.len() <= max);
            }
        }
    }

    #[test]
    fn of_one_hash_the_latest_few_are_found() {
        let mut recent = Recent::new(64);
        for value in 1..=40 {
            recent.put(5, value, |_, _| false);
        }
        for value in 1..=40 {
            assert_eq!(recent.latest(5, |of| *of == value).is_some(), value > 32, "{value}");
        }
        assert_eq!((recent.latest(5, |_| true), recent.numbers.len(), recent.entries.len()), (Some(&40), MAX_OF_A_HASH, 40));
    }
}
