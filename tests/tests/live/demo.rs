//! The README's demo.

use anyhow::Result;

use crate::{daemon, turn};

#[test]
#[ignore = "needs root and a broker: `cargo xtask test`"]
fn the_demo_joins_what_both_libraries_produce_with_what_they_consume() -> Result<()> {
    let _turn = turn();
    xtask::demo::with(&daemon())
}
