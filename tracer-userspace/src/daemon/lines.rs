//! Text on its way to standard output without making the line wait for a slow terminal.
//!
//! In: text, as a [`Write`]. Out: the same on standard output, by a thread of its own; what that cannot keep up with is
//! dropped in whole pieces and counted.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// Pieces that may wait.
const MAX_PIECES: usize = 256;
/// A piece is handed over when it is this large, or flushed.
const PIECE_BYTES: usize = 64 * 1_024;

/// The writing end.
#[derive(Debug)]
pub(super) struct Lines {
    piece: Vec<u8>,
    sender: Sender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// Set once nobody reads any more.
    closed: bool,
}

/// The thread that writes, to be waited for.
#[derive(Debug)]
pub(super) struct Writer {
    thread: JoinHandle<()>,
    ended: Receiver<()>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts to write to `out`.
    pub(super) fn start(mut out: impl Write + Send + 'static) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = bounded::<Vec<u8>>(MAX_PIECES);
        let (ending, ended) = bounded(1);
        let thread = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            for piece in &receiver {
                if out.write_all(&piece).and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
            drop(ending);
        })?;
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = Self { piece: Vec::new(), sender, dropped: Arc::clone(&dropped), closed: false };
        Ok((lines, Writer { thread, ended, dropped }))
    }

    fn hand_over(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        let piece = std::mem::take(&mut self.piece);
        if let Err(TrySendError::Full(piece) | TrySendError::Disconnected(piece)) = self.sender.try_send(piece) {
            let lines = piece.iter().fold(0_u64, |lines, byte| lines + u64::from(*byte == b'\n'));
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// Waits for room: for what comes last and must not be lost.
    fn hand_over_for_sure(&mut self, limit: Duration) {
        if !self.piece.is_empty() && !self.closed {
            self.closed = self.sender.send_timeout(std::mem::take(&mut self.piece), limit).is_err();
        }
    }

    /// Hands over what is left and waits, at most `limit`, until all is written. Ends the writing.
    pub(super) fn finish(mut self, writer: Writer, limit: Duration) {
        self.hand_over_for_sure(limit);
        drop(self.sender);
        let _ = writer.ended.recv_timeout(limit);
        if writer.is_unread() {
            let _ = writer.thread.join();
        }
    }
}

impl Writer {
    /// True once nobody reads what is written (`| head`).
    pub(super) fn is_unread(&self) -> bool {
        self.ended.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
    }

    /// Lines dropped because writing is slower than they come.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.hand_over();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes nothing until it is let.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_is_written_in_order() {
        let out = Shared::default();
        let (mut lines, writer) = Lines::start(out.clone()).unwrap();
        let mut expected = Vec::new();
        for number in 0..10_000 {
            writeln!(lines, "line {number}").unwrap();
            writeln!(expected, "line {number}").unwrap();
        }
        assert_eq!(writer.dropped(), 0);
        lines.finish(writer, Duration::from_secs(10));
        assert!(*out.0.lock().unwrap() == expected);
    }

    #[test]
    fn a_reader_that_went_away_is_noticed() {
        struct Closed;

        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let (mut lines, writer) = Lines::start(Closed).unwrap();
        assert!(!writer.is_unread());
        writeln!(lines, "a line").unwrap();
        lines.flush().unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !writer.is_unread() {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        writeln!(lines, "another").unwrap();
        lines.finish(writer, Duration::from_secs(10));
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_and_no_time() {
        let (release, gate) = channel();
        let (mut lines, writer) = Lines::start(Stuck(gate)).unwrap();
        for _ in 0..1_000 {
            writeln!(lines, "a line").unwrap();
            lines.flush().unwrap();
        }
        assert!((1_000 - u64::try_from(MAX_PIECES).unwrap() - 1..1_000).contains(&writer.dropped()), "{}", writer.dropped());
        writeln!(lines, "the last").unwrap();
        let begun = std::time::Instant::now();
        lines.finish(writer, Duration::from_millis(50));
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(release);
    }
}
