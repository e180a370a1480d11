//! Tables of observations and the spans they give.
