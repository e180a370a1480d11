//! The jobs of the project: `cargo xtask` runs them, the live tests use the same building blocks.
//!
//! Each job brings along what it needs. What is downloaded or built as a tool lies under the user's cache directory, keyed by version
//! (see [`workspace::cache_dir`]); nothing else of the machine is changed, but for the `core` sources that [`setup`] adds to the Rust
//! toolchain.
#![forbid(unsafe_code)]

pub mod apt;
pub mod bench;
pub mod build;
pub mod checks;
pub mod cli;
pub mod demo;
pub mod fuzz;
pub mod lab;
pub mod setup;
pub mod step;
pub mod tools;
pub mod vm;
pub mod workspace;
