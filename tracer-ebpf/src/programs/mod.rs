//! The programs, one file per family of hooks.

mod packet;
mod packet_owner;
