//! Strings that come again and again (topics, groups, client ids), kept once and bounded.

#![forbid(unsafe_code)]

use std::sync::Arc;

use hashlink::LruCache;

/// Longest name that is remembered anywhere. Topics have 249 characters at most; groups and clients may have more, but what
/// would have to be remembered of those that do (memberships, redeliveries, metrics) is not.
pub const MAX_REMEMBERED_BYTES: usize = 255;

/// Gives the same `Arc<str>` for the same text while it is among the last `capacity` ones.
#[derive(Debug)]
pub(super) struct Names {
    known: LruCache<Arc<str>, Arc<str>>,
}

impl Names {
    /// Remembers at most `capacity` names.
    pub(super) fn new(capacity: usize) -> Self {
        Self { known: LruCache::new(capacity) }
    }

    /// The shared copy of `text`. Texts longer than [`MAX_REMEMBERED_BYTES`] get a copy of their own each time.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if text.len() > MAX_REMEMBERED_BYTES {
            return Arc::from(text);
        }
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        let name: Arc<str> = Arc::from(text);
        self.known.insert(Arc::clone(&name), Arc::clone(&name));
        name
    }

    /// As [`Self::intern`], for what may be null.
    pub(super) fn intern_option(&mut self, text: Option<&str>) -> Option<Arc<str>> {
        text.map(|t| self.intern(t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_allocation_until_pushed_out() {
        let mut names = Names::new(2);
        let first = names.intern("orders");
        names.intern("other");
        assert!(Arc::ptr_eq(&first, &names.intern("orders")));
        names.intern("third"); // "other" was the oldest
        assert!(Arc::ptr_eq(&first, &names.intern("orders")));
        for i in 0..10 {
            names.intern(&i.to_string());
        }
        assert!(!Arc::ptr_eq(&first, &names.intern("orders")));
        assert_eq!(names.known.len(), 2);
    }
}
