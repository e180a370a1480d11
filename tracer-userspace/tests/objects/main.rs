//! The object files themselves, held against what Linux 4.14 takes, down to what its verifier says of each program: there is no such kernel at
//! hand on which every build could be tried, and newer ones take what it refuses. In what `cargo xtask build` made, debug and release alike. Run by `cargo xtask test`.
#![cfg(feature = "live")]
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod instruction;
mod range;
mod verifier;
mod verifier_says;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use instruction::{ADD_NUMBER, CALL, COPY, EXIT, GO, Instruction, LOAD_LONG, STACK, class};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};
use verifier::{Cost, MAX_PROCESSED, Map, Program, Refusal, verify};

/// Instructions of a program: `BPF_MAXINSNS`, for everybody before 5.2.
const MAX_INSTRUCTIONS: usize = 4096;

/// Bytes of stack: `MAX_BPF_STACK`.
const MAX_STACK: i32 = 512;

/// Bytes of a value of a per-CPU map: `PCPU_MIN_UNIT_SIZE`.
const MAX_PER_CPU_VALUE: u32 = 32_768;

/// An object and what it may use beyond what 4.14 has.
struct Budget {
    name: &'static str,
    helpers: &'static [i32],
    maps: &'static [u32],
}

/// The objects that run on old kernels. The second needs 5.8, for one map and the helper that writes to it, and keeps to all else.
const BUDGETS: [Budget; 2] =
    [Budget { name: "socket", helpers: &[], maps: &[] }, Budget { name: "socket_ring", helpers: &[130], maps: &[RINGBUF] }];

/// Helpers of programs on kprobes in 4.14 (`kprobe_prog_func_proto` of the kernel), and those of 5.5 that the loader replaces by
/// older ones where they are missing: reads of user and kernel memory, and of strings there.
const HELPERS: [i32; 23] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 15, 16, 22, 25, 27, 35, 36, 37, 42, 45, 112, 113, 114];

/// Maps of 4.14: hash, array, programs, perf buffers, per-CPU hash and array, stack traces, LRU hashes.
const MAPS: [u32; 9] = [1, 2, 3, 4, 5, 6, 7, 9, 10];
const PERCPU_ARRAY: u32 = 6;
const RINGBUF: u32 = 27;

/// Bytes of a `bpf_map_def`.
const MAP_BYTES: usize = 28;

#[test]
fn every_program_keeps_to_what_linux_4_14_takes() {
    let mut faults = Vec::new();
    for folder in folders() {
        for budget in &BUDGETS {
            let path = folder.join(format!("{}.o", budget.name));
            let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask build` makes it", path.display()));
            let file = object::File::parse(&*bytes).unwrap();
            let found = check(&file, budget).into_iter().map(|fault| format!("{}: {fault}", path.display()));
            faults.extend(found);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Those of the debug and of the release build.
fn folders() -> [PathBuf; 2] {
    let object = Path::new(env!("KAFKA_TRACER_SOCKET_OBJECT"));
    let all = object.parent().and_then(Path::parent).unwrap();
    ["debug", "release"].map(|profile| {
        let folder = all.join(profile);
        assert!(folder.is_dir(), "{} is missing: `cargo xtask build` and `cargo xtask build --release` make both", folder.display());
        folder
    })
}

/// All that is wrong with an object. Prints what its programs need.
fn check(file: &object::File<'_>, budget: &Budget) -> Vec<String> {
    let mut faults = Vec::new();
    for section in file.sections() {
        let name = section.name().unwrap();
        // A reference to one of these is a map of its own, which the loader makes for the whole object, and 4.14 cannot.
        if [".rodata", ".data", ".bss"].iter().any(|data| name.starts_with(data)) && section.size() > 0 {
            faults.push(format!("has a section {name} of {} bytes", section.size()));
        }
        if section.kind() == SectionKind::Text && name != ".text" {
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let symbol = file.symbol_by_index(index).unwrap();
                let target = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
                let target = target.and_then(|section| section.name().ok().map(str::to_owned)).unwrap_or_default();
                if target != "maps" {
                    faults.push(format!("refers to {} in section `{target}` at byte {offset} of {name}", symbol.name().unwrap()));
                }
            }
        }
    }
    let maps = maps(file);
    for (index, Map { kind, value_bytes, .. }) in maps.iter().enumerate() {
        if !MAPS.contains(kind) && !budget.maps.contains(kind) {
            faults.push(format!("map {index} is of kind {kind}"));
        }
        if *kind == PERCPU_ARRAY && *value_bytes > MAX_PER_CPU_VALUE {
            faults.push(format!("per-CPU map {index} has values of {value_bytes} bytes"));
        }
    }
    let mut programs = 0;
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        if section.name() == Ok(".text") || symbol.size() == 0 {
            continue;
        }
        let code = section.data().unwrap();
        let (start, len) = (usize::try_from(symbol.address()).unwrap(), usize::try_from(symbol.size()).unwrap());
        let code: Vec<Instruction> = code.get(start..start + len).unwrap().as_chunks().0.iter().copied().map(Instruction::read).collect();
        let name = symbol.name().unwrap();
        let (stack, mut found) = check_program(&code, budget);
        let loads = loads(file, &section, start..start + len);
        let mut cost = Cost::default();
        match verify(&Program { code: &code, maps: &maps, loads: &loads }) {
            Ok(paid) => cost = paid,
            Err(Refusal { at, reason }) => found.push(format!("the verifier of 4.14 refuses it at instruction {at}: {reason}")),
        }
        println!(
            "{} {name}: {} instructions, {} of {MAX_PROCESSED} on all ways through it, {stack} bytes of stack",
            budget.name,
            code.len(),
            cost.processed
        );
        faults.extend(found.into_iter().map(|fault| format!("{name}: {fault}")));
        programs += 1;
    }
    if programs == 0 {
        faults.push("has no program".to_owned());
    }
    faults
}

/// The maps of an object, in their order.
fn maps(file: &object::File<'_>) -> Vec<Map> {
    let maps = file.section_by_name("maps").map(|section| section.data().unwrap().to_vec()).unwrap_or_default();
    let of_bytes = |map: &[u8]| {
        let number = |at: usize| u32::from_le_bytes(*map.get(at..).and_then(|rest| rest.first_chunk()).unwrap());
        Map { kind: number(0), key_bytes: number(4), value_bytes: number(8) }
    };
    maps.chunks_exact(MAP_BYTES).map(of_bytes).collect()
}

/// Which map each instruction of a part of a section loads.
fn loads(file: &object::File<'_>, section: &object::Section<'_, '_>, part: std::ops::Range<usize>) -> BTreeMap<usize, usize> {
    let mut loads = BTreeMap::new();
    for (offset, relocation) in section.relocations() {
        let (at, RelocationTarget::Symbol(index)) = (usize::try_from(offset).unwrap(), relocation.target()) else { continue };
        if part.contains(&at) {
            let symbol = file.symbol_by_index(index).unwrap();
            loads.insert((at - part.start) / 8, usize::try_from(symbol.address()).unwrap() / MAP_BYTES);
        }
    }
    loads
}

impl Instruction {
    /// Why 4.14 does not know it.
    fn fault(self, budget: &Budget) -> Option<String> {
        let (class, operation, mode) = (self.code & 7, self.code & 0xf0, self.code & 0xe0);
        match class {
            class::JUMP_32 => Some("compares 32 bits (instruction set 3)".to_owned()),
            // Conversions of byte order are of this class in every instruction set.
            class::ARITHMETIC_32 if operation != 0xd0 => {
                Some("computes with 32 bits (instruction set 3): the verifier of 4.14 loses the bounds".to_owned())
            }
            class::ARITHMETIC if operation == 0xd0 || self.offset != 0 => Some("is of instruction set 4".to_owned()),
            class::LOAD_FROM if mode != 0x60 => Some("loads with a sign (instruction set 4)".to_owned()),
            class::STORE_FROM if mode == 0xc0 && self.value != 0 => {
                Some("is an atomic operation that gives a value (instruction set 3)".to_owned())
            }
            class::JUMP if self.code == CALL && self.from != 0 => Some("calls another function (4.16)".to_owned()),
            class::JUMP if self.code == CALL && !HELPERS.contains(&self.value) && !budget.helpers.contains(&self.value) => {
                Some(format!("calls helper {}", self.value))
            }
            _ => None,
        }
    }
}

/// Bytes of stack, and all that is wrong with a program.
fn check_program(code: &[Instruction], budget: &Budget) -> (i32, Vec<String>) {
    let mut faults = Vec::new();
    if code.len() > MAX_INSTRUCTIONS {
        faults.push(format!("has {} instructions", code.len()));
    }
    let mut stack = 0;
    // Distance from the stack's end of what each register points to, where it does.
    let mut at: [Option<i32>; 16] = [None; 16];
    let mut is_second_half = false;
    for (index, instruction) in code.iter().enumerate() {
        if std::mem::take(&mut is_second_half) {
            continue;
        }
        is_second_half = instruction.code == LOAD_LONG;
        if let Some(fault) = instruction.fault(budget) {
            faults.push(format!("instruction {index} {fault}"));
        }
        let offset = i32::from(instruction.offset);
        let (to, from) = (usize::from(instruction.to), usize::from(instruction.from));
        match instruction.code & 7 {
            class::LOAD_FROM if instruction.from == STACK => stack = stack.max(-offset),
            class::STORE | class::STORE_FROM if instruction.to == STACK => stack = stack.max(-offset),
            _ => {}
        }
        let moved = match instruction.code {
            COPY => {
                if instruction.from == STACK {
                    Some(0)
                } else {
                    at.get(from).copied().flatten()
                }
            }
            ADD_NUMBER => at.get(to).copied().flatten().map(|place| place + instruction.value),
            _ => None,
        };
        if let Some(place) = moved {
            stack = stack.max(-place);
        }
        if matches!(instruction.code & 7, class::LOAD | class::LOAD_FROM | class::ARITHMETIC | class::ARITHMETIC_32)
            && let Some(register) = at.get_mut(to)
        {
            *register = moved;
        }
    }
    if stack > MAX_STACK {
        faults.push(format!("has {stack} bytes of stack"));
    }
    match check_ways(code) {
        Ways::Loop(index) => faults.push(format!("comes back to instruction {index}: a loop")),
        Ways::Unreachable(index) => faults.push(format!("has no way to instruction {index}")),
        Ways::Good => {}
    }
    (stack, faults)
}

/// What is wrong with the ways through a program, as the verifier looks for it (`check_cfg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    Good,
    /// An instruction can be reached from itself.
    Loop(usize),
    /// An instruction cannot be reached.
    Unreachable(usize),
}

fn check_ways(code: &[Instruction]) -> Ways {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; code.len()];
    let mut path = vec![(0, successors(code, 0))];
    if let Some(first) = marks.first_mut() {
        *first = Mark::OnPath;
    }
    while let Some((index, next)) = path.last_mut() {
        let Some(following) = next.pop() else {
            if let Some(mark) = marks.get_mut(*index) {
                *mark = Mark::Done;
            }
            path.pop();
            continue;
        };
        match marks.get_mut(following) {
            Some(Mark::OnPath) => return Ways::Loop(following),
            Some(mark @ Mark::New) => {
                *mark = Mark::OnPath;
                path.push((following, successors(code, following)));
            }
            Some(Mark::Done) | None => {}
        }
    }
    // The second half of a long load is no instruction.
    let is_half = |index: usize| index.checked_sub(1).and_then(|before| code.get(before)).is_some_and(|before| before.code == LOAD_LONG);
    let left_out = marks.iter().enumerate().position(|(index, mark)| *mark == Mark::New && !is_half(index));
    left_out.map_or(Ways::Good, Ways::Unreachable)
}

/// Where a program can go on from an instruction.
fn successors(code: &[Instruction], index: usize) -> Vec<usize> {
    let Some(instruction) = code.get(index) else { return Vec::new() };
    let jump = index.checked_add_signed(isize::from(instruction.offset) + 1).unwrap_or(usize::MAX);
    match instruction.code {
        EXIT => Vec::new(),
        GO => vec![jump],
        LOAD_LONG => vec![index + 2],
        CALL => vec![index + 1],
        code if code & 7 == class::JUMP || code & 7 == class::JUMP_32 => vec![index + 1, jump],
        _ => vec![index + 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING_MORE: Budget = Budget { name: "test", helpers: &[], maps: &[] };

    fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
        Instruction { code, to, from, offset, value }
    }

    fn faults(code: &[Instruction]) -> String {
        check_program(code, &NOTHING_MORE).1.join("; ")
    }

    #[test]
    fn what_4_14_does_not_take_is_told() {
        let exit = instruction(EXIT, 0, 0, 0, 0);
        assert_eq!(faults(&[exit]), "");
        for (name, code, wanted) in [
            ("a loop", vec![instruction(0x15, 1, 0, 1, 0), instruction(GO, 0, 0, -2, 0), exit], "a loop"),
            ("a comparison of 32 bits", vec![instruction(0x16, 1, 0, 0, 0), exit], "compares 32 bits"),
            ("a move of 32 bits", vec![instruction(0xbc, 1, 2, 0, 0), exit], "computes with 32 bits"),
            ("a call of a function", vec![instruction(CALL, 0, 1, 0, 5), exit], "calls another function"),
            ("a helper of 5.8", vec![instruction(CALL, 0, 0, 0, 130), exit], "calls helper 130"),
            ("a large stack", vec![instruction(0x7b, STACK, 1, -520, 0), exit], "520 bytes of stack"),
            ("one by address", vec![instruction(COPY, 2, STACK, 0, 0), instruction(ADD_NUMBER, 2, 0, 0, -600), exit], "600 bytes of stack"),
            ("what is never run", vec![exit, exit], "no way to instruction 1"),
            ("an atomic exchange", vec![instruction(0xdb, 1, 2, 0, 0xe1), exit], "atomic operation"),
        ] {
            assert!(faults(&code).contains(wanted), "{name}: {}", faults(&code));
        }
        let long = [vec![instruction(COPY, 1, 2, 0, 0); MAX_INSTRUCTIONS], vec![exit]].concat();
        assert!(faults(&long).contains("4097 instructions"));
    }

    #[test]
    fn a_jump_back_that_is_no_loop_is_taken() {
        // 0 -> 2 -> 1 -> exit.
        let code = [instruction(GO, 0, 0, 1, 0), instruction(EXIT, 0, 0, 0, 0), instruction(GO, 0, 0, -2, 0)];
        assert_eq!(faults(&code), "");
        let swap = [instruction(0xdc, 1, 0, 0, 16), instruction(0xdb, 1, 2, 0, 0), instruction(EXIT, 0, 0, 0, 0)];
        assert_eq!(faults(&swap), "", "byte order and atomic addition are old");
    }
}
