//! What the programs of both objects for socket calls have in common.

pub(crate) mod filter;
pub(crate) mod memory;
pub(crate) mod walk;

/// Repeats a block once for each token: the kernel takes no loop before 5.3.
macro_rules! times {
    ($block:block;) => {};
    ($block:block; $first:tt $($rest:tt)*) => { $block $crate::call::times!($block; $($rest)*) };
}
pub(crate) use times;
