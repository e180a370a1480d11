//! Settings that travel to the programs through maps. They are read for each packet, so a change works at once.

/// What the programs read in entry 0 of the `CONFIG` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Raised when verdicts changed: each socket then looks for a new verdict once.
    pub epoch: u32,
    /// Segments with payload that are judged in one direction before the kernel stops looking.
    pub judged_segments: u32,
    /// 1 when the port map has entries: else it is not looked at.
    pub has_port_rules: u32,
    /// Always 0; keeps the size a multiple of eight.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Config>() == 16);

impl Config {
    /// The value as the map holds it.
    #[must_use]
    pub const fn to_words(self) -> [u32; 4] {
        [self.epoch, self.judged_segments, self.has_port_rules, self.reserved]
    }
}

/// What the programs do with a socket that has this port at either end: a value of the `PORTS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRule {
    /// Taken for Kafka without judging; user space can still dismiss it.
    Force = 1,
    /// Never looked at.
    Exclude = 2,
}
