//! A capture file of any bytes: an end or an error, never more events than bytes, no panic.

use tracer_userspace::source::EventKind;
use tracer_userspace::source::pcap::PcapSource;

use crate::seeds::Recorded;

pub(super) fn run(data: &[u8]) {
    let Ok(mut source) = PcapSource::open(data) else { return };
    let mut bytes_seen = 0;
    while let Ok(true) = source.next_packet(&mut |event| {
        if let EventKind::Data { bytes, .. } = event.kind {
            bytes_seen += bytes.len();
        }
    }) {}
    assert!(bytes_seen <= data.len());
    assert!(matches!(source.next_packet(&mut |_| ()), Ok(false)));
}

pub(super) fn seeds(recorded: &Recorded) -> Vec<Vec<u8>> {
    recorded.files.clone()
}
