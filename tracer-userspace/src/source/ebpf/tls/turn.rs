//! Who attaches and who detaches: the kernel lets one at a time, and waits for all CPUs with each that is detached (some 100 ms on two busy
//! CPUs of Linux 6.18, where attaching takes 40 us).
//!
//! Attaching is urgent, since plaintext goes by unseen meanwhile. Detaching is not: what is attached to a process that is gone costs its
//! place and no more. So it waits until nobody has attached for a while, or until too much waits; then nothing new is attached.

#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nobody has to have attached.
const QUIET: Duration = Duration::from_secs(5);

/// Attachments that may wait to be undone. Each call into the same function goes through all of them.
const MAX_WAITING: usize = 512;

/// Shared by those who attach and those who detach.
#[derive(Debug, Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_attaching: bool,
    is_detaching: bool,
    last_attached: Option<Instant>,
    waiting: usize,
    is_over: bool,
}

impl State {
    /// How long to wait at least before something is detached; None when it may be.
    fn wait(&self, now: Instant) -> Option<Duration> {
        if self.is_attaching {
            return Some(QUIET);
        }
        if self.is_over || self.waiting > MAX_WAITING {
            return None;
        }
        let quiet_from = self.last_attached? + QUIET;
        (quiet_from > now).then(|| quiet_from.saturating_duration_since(now))
    }
}

/// Nothing is detached while it lives.
#[derive(Debug)]
pub(super) struct Attaching<'a>(&'a Turn);

impl Turn {
    /// Waits for what is being detached, which is one attachment at most.
    pub(super) fn attach(&self) -> Attaching<'_> {
        let mut state = self.lock();
        state.is_attaching = true;
        drop(self.changed.wait_while(state, |state| state.is_detaching).unwrap_or_else(PoisonError::into_inner));
        Attaching(self)
    }

    /// So many attachments will be given to [`Self::detach`].
    pub(super) fn announce(&self, attachments: usize) {
        self.lock().waiting += attachments;
        self.changed.notify_all();
    }

    /// Whether so much waits to be undone that nothing new should be attached.
    pub(super) fn is_behind(&self) -> bool {
        self.lock().waiting > MAX_WAITING
    }

    /// Undoes one attachment when there is time.
    pub(super) fn detach<T>(&self, attachment: T) {
        let mut state = self.lock();
        while let Some(wait) = state.wait(Instant::now()) {
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_detaching = true;
        state.waiting = state.waiting.saturating_sub(1);
        drop(state);
        drop(attachment);
        self.lock().is_detaching = false;
        self.changed.notify_all();
    }

    /// Nobody will attach any more: nothing has to wait.
    pub(super) fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_attaching = false;
        state.last_attached = Some(Instant::now());
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detaching_waits_for_quiet_unless_too_much_waits_or_the_end_has_come() {
        let now = Instant::now();
        let state = |is_attaching, since: Option<u64>, waiting, is_over| State {
            is_attaching,
            is_detaching: false,
            last_attached: since.and_then(|milliseconds| now.checked_sub(Duration::from_millis(milliseconds))),
            waiting,
            is_over,
        };
        for (state, wait_ms) in [
            (state(false, None, 1, false), None),
            (state(false, Some(400), MAX_WAITING, false), Some(4600)),
            (state(false, Some(5001), 1, false), None),
            (state(false, Some(400), MAX_WAITING + 1, false), None),
            (state(false, Some(400), 1, true), None),
            (state(true, None, MAX_WAITING + 1, true), Some(5000)),
        ] {
            assert_eq!(state.wait(now), wait_ms.map(Duration::from_millis), "{state:?}");
        }
    }

    #[test]
    fn one_goes_at_a_time() {
        let turn = Turn::default();
        turn.end();
        std::thread::scope(|scope| {
            let attaching = turn.attach();
            let detached = scope.spawn(|| turn.detach(()));
            assert!(!detached.is_finished());
            drop(attaching);
            detached.join().unwrap();
        });
        drop(turn.attach());
    }
}
