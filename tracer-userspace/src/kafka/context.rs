//! Trace contexts that records carry in their headers.

#![forbid(unsafe_code)]

/// How a context was written into the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagator {
    /// W3C `traceparent`.
    TraceContext,
    /// `b3`, one header.
    B3,
    /// `x-b3-traceid` and its kin.
    B3Multi,
    /// `uber-trace-id`.
    Jaeger,
    /// `x-amzn-trace-id`.
    XRay,
}

/// A valid context that a record carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CarriedContext {
    /// Trace id, 64-bit ids padded on the left; never all zero.
    pub trace_id: [u8; 16],
    /// Span id; never all zero.
    pub span_id: [u8; 8],
    /// The trace flags as written (tracecontext), else 1 when sampled and 0 when not.
    pub flags: u8,
    /// Who wrote it.
    pub propagator: Propagator,
    /// `tracestate`, as far as it is valid; only of tracecontext.
    pub tracestate: Option<std::sync::Arc<str>>,
}

impl CarriedContext {
    /// The sampled flag.
    pub const fn sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}
