//! Arrays that programs on probes and the daemon both read and write, through shared memory: while a system call for a map is at work on a
//! CPU, the kernel runs no program on a probe there (`bpf_disable_instrumentation`, `kernel/bpf/syscall.c`), and a thread that loses its CPU within
//! such a call (kernels from 6.13 on let that happen) takes bytes of whoever comes next. By system calls where the kernel has no such memory.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, Pod};
use rustix::mm::{MapFlags, ProtFlags};

use super::load::chain;
use super::{SourceError, StartError};

/// Values begin at multiples of this.
const ALIGNMENT: usize = 8;

/// An array of a known number of values.
pub(super) struct Cells<T: Pod> {
    name: &'static str,
    array: Array<MapData, T>,
    memory: Option<Memory>,
    entries: u32,
}

/// The array's memory.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is the kernel's and stays mapped as long as this lives; nothing of it belongs to a thread.
#[expect(unsafe_code, reason = "a pointer to mapped memory")]
unsafe impl Send for Memory {}

impl<T: Pod> Cells<T> {
    /// Takes an array of `entries` values out of the object.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str, entries: u32) -> Result<Self, StartError> {
        let map = ebpf.take_map(name).ok_or(StartError::Object { what: name })?;
        let memory = if let Map::Array(data) = &map { Memory::of::<T>(data, entries) } else { None };
        let array = Array::try_from(map).map_err(|error| StartError::Map { map: name, reason: chain(&error) })?;
        if array.len() != entries {
            return Err(StartError::Object { what: name });
        }
        Ok(Self { name, array, memory, entries })
    }

    /// How many values there are.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Where a value lies.
    fn place(&self, index: u32) -> Option<NonNull<T>> {
        let memory = self.memory.as_ref().filter(|_| index < self.entries)?;
        let at = stride::<T>() * index as usize;
        // SAFETY: so many strides were mapped.
        #[expect(unsafe_code, reason = "a place in mapped memory")]
        let place = unsafe { memory.start.add(at) };
        Some(place.cast())
    }

    /// Reads a value. One of several words can be half old, half new.
    pub(super) fn get(&self, index: u32) -> Result<T, SourceError> {
        match self.place(index) {
            // SAFETY: a value of plain numbers lies there, at a multiple of eight.
            #[expect(unsafe_code, reason = "mapped memory is read by pointer")]
            Some(place) => Ok(unsafe { place.read_volatile() }),
            None => self.array.get(&index, 0).map_err(|error| self.failed(&error)),
        }
    }

    /// Writes a value. Programs can see one of several words half old, half new.
    pub(super) fn set(&mut self, index: u32, value: T) -> Result<(), SourceError> {
        match self.place(index) {
            Some(place) => {
                // SAFETY: a value of plain numbers lies there, at a multiple of eight; any of its values is a right one for whoever reads it.
                #[expect(unsafe_code, reason = "mapped memory is written by pointer")]
                unsafe {
                    place.write_volatile(value);
                }
                Ok(())
            }
            None => self.array.set(index, value, 0).map_err(|error| SourceError::Map { map: self.name, reason: chain(&error) }),
        }
    }

    fn failed(&self, error: &aya::maps::MapError) -> SourceError {
        SourceError::Map { map: self.name, reason: chain(error) }
    }
}

const fn stride<T>() -> usize {
    size_of::<T>().next_multiple_of(ALIGNMENT)
}

impl Memory {
    /// None where the kernel does not share the array.
    fn of<T>(map: &MapData, entries: u32) -> Option<Self> {
        const { assert!(align_of::<T>() <= ALIGNMENT, "values lie at multiples of eight") };
        let bytes = (stride::<T>() * entries as usize).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping, wherever the kernel has room.
        #[expect(unsafe_code, reason = "memory is mapped")]
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map.fd().as_fd(), 0)
        };
        Some(Self { start: NonNull::new(start.ok()?.cast())?, bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped with this size, and no reference into it is left.
        #[expect(unsafe_code, reason = "memory is given back")]
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// How many CPUs the kernel can have: as many entries have arrays with one for each.
pub(super) fn possible_cpus() -> Result<u32, StartError> {
    let count = aya::util::nr_cpus().map_err(|(what, source)| StartError::System {
        what: "count CPUs",
        source: { std::io::Error::new(source.kind(), format!("{what}: {source}")) },
    })?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The sum of counters over all CPUs.
pub(super) fn sums<const N: usize>(counts: &Cells<[u64; N]>) -> Result<[u64; N], SourceError> {
    let mut sums = [0_u64; N];
    for cpu in 0..counts.entries() {
        for (sum, count) in sums.iter_mut().zip(counts.get(cpu)?) {
            *sum = sum.wrapping_add(count);
        }
    }
    Ok(sums)
}
