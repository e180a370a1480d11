//! What the verifier of Linux 4.14 says of a program on a kprobe. Newer verifiers take what it refuses: they follow numbers through the stack,
//! see that a branch cannot be taken, allow sizes of 0 and keys that lie in maps. And they give up later: 4.14 does after 131,072 instructions on
//! all ways through a program, and knows fewer ways to be the same.
//!
//! The rules are those of `kernel/bpf/verifier.c` of 4.14's longterm releases, for a loader with all rights; where it is stricter than 4.14.0,
//! the stricter one holds. Of what no program here uses (packets, 32 bits, maps in maps) nothing is known: it is refused.

use std::collections::BTreeMap;

use super::instruction::{CALL, EXIT, GO, Instruction, LOAD_LONG, STACK, class, condition, operation};
use super::range::{Range, turned};

/// `BPF_COMPLEXITY_LIMIT_INSNS`, `BPF_COMPLEXITY_LIMIT_STACK`.
pub(crate) const MAX_PROCESSED: usize = 131_072;
const MAX_WAITING: usize = 1024;

/// `MAX_BPF_STACK`, `BPF_MAX_VAR_OFF`, `BPF_MAX_VAR_SIZ`.
const STACK_BYTES: i64 = 512;
const MAX_OFFSET: i64 = 1 << 29;
const MAX_SIZE: u64 = 1 << 29;

/// `sizeof(struct pt_regs)` of x86-64, the smallest of those that programs are built for.
const CONTEXT_BYTES: i64 = 168;

/// A map that a program refers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) kind: u32,
    pub(crate) key_bytes: u32,
    pub(crate) value_bytes: u32,
}

/// `BPF_MAP_TYPE_PROG_ARRAY`, `BPF_MAP_TYPE_PERF_EVENT_ARRAY`, and of 5.8, `BPF_MAP_TYPE_RINGBUF`.
pub(crate) const PROGRAMS: u32 = 3;
pub(crate) const EVENTS: u32 = 4;
const RING: u32 = 27;

/// A program as the loader hands it over.
pub(crate) struct Program<'a> {
    pub(crate) code: &'a [Instruction],
    pub(crate) maps: &'a [Map],
    /// Which map the long load at an index loads.
    pub(crate) loads: &'a BTreeMap<usize, usize>,
}

/// What a program that is taken costs the verifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Instructions on all ways through it.
    pub(crate) processed: usize,
    /// Most branches that waited to be looked at.
    pub(crate) waiting: usize,
}

/// Why it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) at: usize,
    pub(crate) reason: String,
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Number,
    Context,
    Stack,
    Map(usize),
    Value {
        map: usize,
    },
    /// A value, or null: all of one number are the same.
    Found {
        map: usize,
        number: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    kind: Kind,
    /// Of a pointer, the known part of where it points to, from where it was had.
    offset: i64,
    /// The number, or the unknown part of that.
    range: Range,
}

impl Register {
    const NOTHING: Self = Self { kind: Kind::Nothing, offset: 0, range: Range::UNKNOWN };
    const UNKNOWN: Self = Self::number(Range::UNKNOWN);

    const fn number(range: Range) -> Self {
        Self { kind: Kind::Number, offset: 0, range }
    }

    const fn pointer(kind: Kind) -> Self {
        Self { kind, offset: 0, range: Range::of(0) }
    }

    fn is_pointer(self) -> bool {
        !matches!(self.kind, Kind::Nothing | Kind::Number)
    }
}

/// A byte of stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    Unset,
    Data,
    Pointer,
}

/// Eight bytes of stack; the first is the last in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    bytes: [Byte; 8],
    pointer: Register,
}

const UNSET: Slot = Slot { bytes: [Byte::Unset; 8], pointer: Register::NOTHING };

/// Which registers and slots were read, or written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marks {
    registers: u16,
    slots: u64,
}

#[derive(Clone, Debug)]
struct State {
    registers: [Register; 11],
    stack: Vec<Slot>,
    /// Since the state that it came from.
    written: Marks,
    /// The state that it came from, by its place among those that were seen.
    parent: Option<usize>,
}

impl State {
    fn holds_pointer(&self, slot: usize) -> bool {
        self.stack.get(slot).is_some_and(|slot| slot.bytes.first() == Some(&Byte::Pointer))
    }

    fn slots_with_pointers(&self) -> u64 {
        (0..self.stack.len()).filter(|slot| self.holds_pointer(*slot)).map(|slot| 1 << slot).sum()
    }
}

/// A state that was seen, and what of it was read on the ways from there.
struct Seen {
    state: State,
    read: Marks,
}

/// Looks at a program as 4.14 does.
pub(crate) fn verify(program: &Program<'_>) -> Result<Cost, Refusal> {
    let mut registers = [Register::NOTHING; 11];
    registers[1] = Register::pointer(Kind::Context);
    registers[10] = Register::pointer(Kind::Stack);
    let state = State { registers, stack: Vec::new(), written: Marks::default(), parent: None };
    let verifier = Verifier {
        program,
        state,
        seen: Vec::new(),
        at_instruction: BTreeMap::new(),
        waiting: Vec::new(),
        marked: marked(program.code),
        accesses: BTreeMap::new(),
        numbers: 0,
        cost: Cost::default(),
    };
    verifier.run()
}

/// Where states are compared with those that were seen before: at conditional jumps and their targets, and behind calls and jumps.
fn marked(code: &[Instruction]) -> Vec<bool> {
    let mut marked = vec![false; code.len()];
    let mut mark = |at: Option<usize>| {
        if let Some(mark) = at.and_then(|at| marked.get_mut(at)) {
            *mark = true;
        }
    };
    for (at, instruction) in code.iter().enumerate().filter(|(_, instruction)| instruction.class() == class::JUMP) {
        match instruction.code {
            EXIT => {}
            CALL | GO => mark(at.checked_add(1)),
            _ => {
                mark(Some(at));
                mark(at.checked_add_signed(isize::from(instruction.offset) + 1));
            }
        }
    }
    marked
}

/// What goes on after an instruction.
enum Next {
    At(usize),
    End,
}

type Step<T> = Result<T, String>;

struct Verifier<'a> {
    program: &'a Program<'a>,
    state: State,
    seen: Vec<Seen>,
    at_instruction: BTreeMap<usize, Vec<usize>>,
    waiting: Vec<(usize, State)>,
    marked: Vec<bool>,
    /// Whether an instruction reads or writes the context: then it may reach nothing else.
    accesses: BTreeMap<usize, bool>,
    numbers: u32,
    cost: Cost,
}

impl Verifier<'_> {
    fn run(mut self) -> Result<Cost, Refusal> {
        let mut at = 0;
        loop {
            let next = self.step(at).map_err(|reason| Refusal { at, reason })?;
            at = match next {
                Next::At(at) => at,
                Next::End => match self.waiting.pop() {
                    Some((at, state)) => {
                        self.state = state;
                        at
                    }
                    None => return Ok(self.cost),
                },
            };
        }
    }

    fn step(&mut self, at: usize) -> Step<Next> {
        let instruction = *self.program.code.get(at).ok_or("goes on behind its end")?;
        self.cost.processed += 1;
        if self.cost.processed > MAX_PROCESSED {
            return Err(format!("takes more than {MAX_PROCESSED} instructions on all ways"));
        }
        if self.was_seen(at) {
            return Ok(Next::End);
        }
        match instruction.class() {
            class::ARITHMETIC => self.arithmetic(instruction)?,
            // Conversions of byte order alone.
            class::ARITHMETIC_32 if instruction.operation() == operation::BYTE_ORDER => {
                self.read(instruction.to)?;
                self.write(instruction.to, Register::UNKNOWN)?;
            }
            class::LOAD if instruction.code == LOAD_LONG => {
                self.load_long(at, instruction)?;
                return Ok(Next::At(at + 2));
            }
            class::LOAD_FROM => {
                let base = self.read(instruction.from)?;
                self.one_kind(at, base)?;
                let (register, is_written) = self.load(base, i64::from(instruction.offset), instruction.bytes())?;
                self.write(instruction.to, register)?;
                if !is_written {
                    self.state.written.registers &= !(1 << instruction.to);
                }
            }
            class::STORE | class::STORE_FROM => {
                let value = if instruction.class() == class::STORE { Register::UNKNOWN } else { self.read(instruction.from)? };
                let base = self.read(instruction.to)?;
                self.one_kind(at, base)?;
                if base.kind == Kind::Context {
                    return Err("writes to the context".to_owned());
                }
                // An atomic addition reads what it writes.
                let is_atomic = instruction.class() == class::STORE_FROM && instruction.code & 0xe0 == 0xc0;
                if is_atomic {
                    self.load(base, i64::from(instruction.offset), instruction.bytes())?;
                }
                let value = if is_atomic { Register::UNKNOWN } else { value };
                self.store(base, i64::from(instruction.offset), instruction.bytes(), value)?;
            }
            class::JUMP => return self.jump(at, instruction),
            _ => return Err(format!("has an instruction of code {:#x}, of which nothing is known here", instruction.code)),
        }
        Ok(Next::At(at + 1))
    }

    /// Whether the state is one of those that were seen here and led to a good end. Remembers it if not.
    fn was_seen(&mut self, at: usize) -> bool {
        if self.marked.get(at) != Some(&true) {
            return false;
        }
        let known = self.at_instruction.entry(at).or_default();
        // The newest first.
        let same = known.iter().rev().find(|index| self.seen.get(**index).is_some_and(|seen| is_covered(seen, &self.state))).copied();
        if let Some(same) = same {
            self.pass_on_reads(same);
            return true;
        }
        let index = self.seen.len();
        known.push(index);
        self.seen.push(Seen { state: self.state.clone(), read: Marks::default() });
        self.state.parent = Some(index);
        self.state.written = Marks::default();
        false
    }

    /// What is read on the ways from a state that was seen is read on the ways from this one.
    fn pass_on_reads(&mut self, same: usize) {
        let Some(Seen { read, state }) = self.seen.get(same) else { return };
        let pointers = state.slots_with_pointers() & self.state.slots_with_pointers();
        let mut marks =
            Marks { registers: read.registers & !self.state.written.registers, slots: read.slots & pointers & !self.state.written.slots };
        let mut parent = self.state.parent;
        while let Some(seen) = parent.and_then(|index| self.seen.get_mut(index)) {
            marks.slots &= seen.state.slots_with_pointers();
            let new = Marks { registers: marks.registers & !seen.read.registers, slots: marks.slots & !seen.read.slots };
            if new == Marks::default() {
                return;
            }
            seen.read.registers |= new.registers;
            seen.read.slots |= new.slots;
            marks = Marks {
                registers: seen.read.registers & !seen.state.written.registers,
                slots: seen.read.slots & !seen.state.written.slots,
            };
            parent = seen.state.parent;
        }
    }

    /// Marks what is read in all states that it comes from.
    fn mark_read(&mut self, read: Marks) {
        let left =
            |read: Marks, written: Marks| Marks { registers: read.registers & !written.registers, slots: read.slots & !written.slots };
        let mut read = left(read, self.state.written);
        let mut parent = self.state.parent;
        while read != Marks::default()
            && let Some(seen) = parent.and_then(|index| self.seen.get_mut(index))
        {
            seen.read.registers |= read.registers;
            seen.read.slots |= read.slots;
            read = left(read, seen.state.written);
            parent = seen.state.parent;
        }
    }

    fn register(&self, number: u8) -> Step<Register> {
        self.state.registers.get(usize::from(number)).copied().ok_or_else(|| format!("names register {number}"))
    }

    fn read(&mut self, number: u8) -> Step<Register> {
        let register = self.register(number)?;
        if register.kind == Kind::Nothing {
            return Err(format!("reads register {number}, which holds nothing"));
        }
        if number != STACK {
            self.mark_read(Marks { registers: 1 << number, slots: 0 });
        }
        Ok(register)
    }

    fn write(&mut self, number: u8, register: Register) -> Step<()> {
        if number == STACK {
            return Err("writes the register of the stack".to_owned());
        }
        *self.state.registers.get_mut(usize::from(number)).ok_or_else(|| format!("names register {number}"))? = register;
        self.state.written.registers |= 1 << number;
        Ok(())
    }

    fn load_long(&mut self, at: usize, instruction: Instruction) -> Step<()> {
        let high = self.program.code.get(at + 1).ok_or("ends within a long load")?.value;
        let register = if let Some(map) = self.program.loads.get(&at) {
            Register { kind: Kind::Map(*map), ..Register::UNKNOWN }
        } else {
            let low = u64::from(instruction.value.cast_unsigned());
            Register::number(Range::of(u64::from(high.cast_unsigned()) << 32 | low))
        };
        self.write(instruction.to, register)
    }

    fn arithmetic(&mut self, instruction: Instruction) -> Step<()> {
        let number = Register::number(Range::of(i64::from(instruction.value).cast_unsigned()));
        let other = if instruction.takes_register() { self.read(instruction.from)? } else { number };
        match instruction.operation() {
            operation::MOVE => return self.write(instruction.to, other),
            operation::NEGATE => {
                self.read(instruction.to)?;
                return self.write(instruction.to, Register::UNKNOWN);
            }
            operation::BYTE_ORDER => return Err("changes the byte order by an instruction of set 4".to_owned()),
            _ => {}
        }
        let what = instruction.operation();
        let one = self.read(instruction.to)?;
        let result = match (one.is_pointer(), other.is_pointer()) {
            (false, false) => Register::number(one.range.compute(what, other.range)),
            (true, true) if what == operation::SUBTRACT => Register::UNKNOWN,
            (true, true) => return Err("computes with two pointers".to_owned()),
            (true, false) => moved(one, what, other.range)?,
            (false, true) if what == operation::SUBTRACT => return Err("subtracts a pointer from a number".to_owned()),
            (false, true) => moved(other, what, one.range)?,
        };
        self.write(instruction.to, result)
    }

    /// An instruction that reaches the context is rewritten, and may reach nothing else on other ways.
    fn one_kind(&mut self, at: usize, base: Register) -> Step<()> {
        let is_context = base.kind == Kind::Context;
        if *self.accesses.entry(at).or_insert(is_context) == is_context {
            return Ok(());
        }
        Err("reaches the context on one way and something else on another".to_owned())
    }

    /// What a load gives, and whether it counts as written.
    fn load(&mut self, base: Register, offset: i64, bytes: i64) -> Step<(Register, bool)> {
        match base.kind {
            Kind::Value { map } => {
                self.check_value(base, map, offset, bytes)?;
                Ok((Register::number(Range::of_bytes(bytes)), true))
            }
            Kind::Context => {
                if base.offset != 0 || base.range.known() != Some(0) {
                    return Err("reads the context through a pointer that was moved".to_owned());
                }
                if offset < 0 || offset + bytes > CONTEXT_BYTES || offset % bytes != 0 {
                    return Err(format!("reads {bytes} bytes at {offset} of the context"));
                }
                Ok((Register::number(Range::of_bytes(bytes)), true))
            }
            Kind::Stack => {
                let place = stack_place(base, offset, bytes)?;
                let Some(slot) = self.state.stack.get(place / 8).copied() else {
                    return Err("reads stack that was not written".to_owned());
                };
                if self.state.holds_pointer(place / 8) {
                    if bytes != 8 || slot.bytes != [Byte::Pointer; 8] {
                        return Err("reads a part of a pointer on the stack".to_owned());
                    }
                    let mark = 1 << (place / 8);
                    self.mark_read(Marks { registers: 0, slots: mark });
                    return Ok((slot.pointer, self.state.written.slots & mark != 0));
                }
                for byte in 0..usize::try_from(bytes).unwrap_or(0) {
                    if slot.bytes.get((place - byte) % 8) != Some(&Byte::Data) {
                        return Err("reads stack that was not written".to_owned());
                    }
                }
                // A number that was kept on the stack has lost its bounds.
                Ok((Register::number(Range::of_bytes(bytes)), true))
            }
            kind => Err(format!("reads memory through {kind:?}")),
        }
    }

    fn store(&mut self, base: Register, offset: i64, bytes: i64, value: Register) -> Step<()> {
        match base.kind {
            Kind::Value { map } => self.check_value(base, map, offset, bytes),
            Kind::Stack => {
                let place = stack_place(base, offset, bytes)?;
                if self.state.stack.len() <= place / 8 {
                    self.state.stack.resize(place / 8 + 1, UNSET);
                }
                let Some(slot) = self.state.stack.get_mut(place / 8) else { return Ok(()) };
                if value.is_pointer() {
                    if bytes != 8 {
                        return Err("keeps a part of a pointer on the stack".to_owned());
                    }
                    *slot = Slot { bytes: [Byte::Pointer; 8], pointer: value };
                    self.state.written.slots |= 1 << (place / 8);
                    return Ok(());
                }
                slot.pointer = Register::NOTHING;
                for byte in 0..usize::try_from(bytes).unwrap_or(0) {
                    if let Some(byte) = slot.bytes.get_mut((place - byte) % 8) {
                        *byte = Byte::Data;
                    }
                }
                self.state.written.slots &= !(1 << (place / 8));
                Ok(())
            }
            kind => Err(format!("writes memory through {kind:?}")),
        }
    }

    /// The whole range of places lies in the map's value.
    fn check_value(&self, base: Register, map: usize, offset: i64, bytes: i64) -> Step<()> {
        let value_bytes = i64::from(self.program.maps.get(map).ok_or("no such map")?.value_bytes);
        let offset = offset + base.offset;
        let fits = |at: i64| at >= 0 && bytes > 0 && at + bytes <= value_bytes;
        let least = base.range.least_signed;
        if least < 0 && least.checked_add(offset).is_none_or(|at| at < 0) {
            return Err("reaches a map's value at what may be a negative place".to_owned());
        }
        if !fits(least.saturating_add(offset)) {
            return Err(format!("reaches {bytes} bytes at {} of a map's value of {value_bytes}", least.saturating_add(offset)));
        }
        match i64::try_from(base.range.most).ok().filter(|most| *most < MAX_OFFSET) {
            Some(most) if fits(most + offset) => Ok(()),
            Some(most) => Err(format!("may reach {bytes} bytes at {} of a map's value of {value_bytes}", most + offset)),
            None => Err("reaches a map's value at a place without bound".to_owned()),
        }
    }

    fn jump(&mut self, at: usize, instruction: Instruction) -> Step<Next> {
        let target = at.checked_add_signed(isize::from(instruction.offset) + 1).ok_or("jumps before its start")?;
        match instruction.code {
            EXIT => {
                self.read(0)?;
                return Ok(Next::End);
            }
            GO => return Ok(Next::At(target)),
            CALL => {
                self.call(instruction.value)?;
                return Ok(Next::At(at + 1));
            }
            _ => {}
        }
        let how = instruction.operation();
        let other = if instruction.takes_register() {
            self.read(instruction.from)?
        } else {
            Register::number(Range::of(i64::from(instruction.value).cast_unsigned()))
        };
        let one = self.read(instruction.to)?;
        let (is_equality, is_equal) = (matches!(how, condition::EQUAL | condition::NOT_EQUAL), how == condition::EQUAL);
        // The only branch that 4.14 sees not to be taken.
        if !instruction.takes_register() && is_equality && one.kind == Kind::Number && one.range.known() == other.range.known() {
            return Ok(Next::At(if is_equal { target } else { at + 1 }));
        }
        let mut taken = self.state.clone();
        if one.kind == Kind::Number && other.kind == Kind::Number {
            let set = |state: &mut State, number: u8, range: Range| {
                if let Some(register) = state.registers.get_mut(usize::from(number)) {
                    register.range = range;
                }
            };
            if let Some(value) = other.range.known() {
                let (holds, fails) = one.range.compared(how, value);
                set(&mut taken, instruction.to, holds);
                set(&mut self.state, instruction.to, fails);
            } else if let Some(value) = one.range.known() {
                let (holds, fails) = other.range.compared(turned(how), value);
                set(&mut taken, instruction.from, holds);
                set(&mut self.state, instruction.from, fails);
            } else if is_equality {
                let both = one.range.intersect(other.range);
                let state = if is_equal { &mut taken } else { &mut self.state };
                set(state, instruction.to, both);
                set(state, instruction.from, both);
            }
        } else if let Kind::Found { number, .. } = one.kind
            && !instruction.takes_register()
            && instruction.value == 0
            && is_equality
        {
            resolve(&mut taken, number, is_equal);
            resolve(&mut self.state, number, !is_equal);
        }
        self.waiting.push((target, taken));
        self.cost.waiting = self.cost.waiting.max(self.waiting.len());
        if self.waiting.len() > MAX_WAITING {
            return Err(format!("has more than {MAX_WAITING} branches that wait"));
        }
        Ok(Next::At(at + 1))
    }

    /// A call of a helper, with the arguments that 4.14 asks for (`kernel/trace/bpf_trace.c`).
    fn call(&mut self, helper: i32) -> Step<()> {
        let mut result = Register::UNKNOWN;
        match helper {
            // map_lookup_elem, map_update_elem, map_delete_elem.
            1..=3 => {
                let map = self.map_argument(1)?;
                let Map { kind, key_bytes, value_bytes } = *self.program.maps.get(map).ok_or("no such map")?;
                if matches!(kind, PROGRAMS | EVENTS | RING) {
                    return Err(format!("hands a map of kind {kind} to helper {helper}"));
                }
                self.stack_argument(2, i64::from(key_bytes))?;
                if helper == 2 {
                    self.stack_argument(3, i64::from(value_bytes))?;
                    self.read(4)?;
                }
                if helper == 1 {
                    self.numbers += 1;
                    result = Register::pointer(Kind::Found { map, number: self.numbers });
                }
            }
            // probe_read, and those of 5.5 that the loader makes it of: memory to write to, its size, an address.
            4 | 112 | 113 => {
                self.memory_argument(1, true)?;
                self.read(3)?;
            }
            // ktime_get_ns, get_smp_processor_id, get_current_pid_tgid.
            5 | 8 | 14 => {}
            // tail_call: context, programs, index.
            12 => {
                self.context_argument()?;
                self.map_of_kind(2, PROGRAMS)?;
                self.read(3)?;
                result = Register::NOTHING;
            }
            // perf_event_output: context, buffers, flags, memory, its size.
            25 => {
                self.context_argument()?;
                self.map_of_kind(2, EVENTS)?;
                self.read(3)?;
                self.memory_argument(4, false)?;
            }
            // ringbuf_output, for the object that needs 5.8: ring, memory, its size, flags.
            130 => {
                self.map_of_kind(1, RING)?;
                self.memory_argument(2, false)?;
                self.read(4)?;
            }
            _ => return Err(format!("calls helper {helper}, of which nothing is known here")),
        }
        for number in 1..=5 {
            self.write(number, Register::NOTHING)?;
        }
        self.write(0, result)
    }

    fn context_argument(&mut self) -> Step<()> {
        let context = self.read(1)?;
        if context != Register::pointer(Kind::Context) {
            return Err("hands over something else than the context".to_owned());
        }
        Ok(())
    }

    fn map_argument(&mut self, number: u8) -> Step<usize> {
        match self.read(number)?.kind {
            Kind::Map(map) => Ok(map),
            kind => Err(format!("hands over {kind:?} in place of a map")),
        }
    }

    fn map_of_kind(&mut self, number: u8, kind: u32) -> Step<()> {
        let map = self.map_argument(number)?;
        if self.program.maps.get(map).is_some_and(|map| map.kind == kind) {
            return Ok(());
        }
        Err(format!("hands over a map of another kind than {kind}"))
    }

    /// A key or value: on the stack, and written.
    fn stack_argument(&mut self, number: u8, bytes: i64) -> Step<()> {
        let register = self.read(number)?;
        if register.kind != Kind::Stack {
            return Err(format!("hands over {:?} in place of a key or value on the stack", register.kind));
        }
        self.check_stack(register, bytes, false)
    }

    /// Memory in one argument and its size in the next.
    fn memory_argument(&mut self, number: u8, is_written: bool) -> Step<()> {
        let memory = self.read(number)?;
        let size = self.read(number + 1)?;
        if !matches!(memory.kind, Kind::Stack | Kind::Value { .. }) {
            return Err(format!("hands over {:?} in place of memory", memory.kind));
        }
        if size.kind != Kind::Number {
            return Err("hands over a pointer in place of a size".to_owned());
        }
        if size.range.least_signed < 0 {
            return Err("hands over a size that may be negative".to_owned());
        }
        if size.range.least == 0 {
            return Err("hands over a size that may be 0".to_owned());
        }
        if size.range.most >= MAX_SIZE {
            return Err("hands over a size without bound".to_owned());
        }
        let bytes = i64::try_from(size.range.most).unwrap_or(i64::MAX);
        match memory.kind {
            Kind::Value { map } => self.check_value(memory, map, 0, bytes),
            _ => self.check_stack(memory, bytes, is_written && size.range.known().is_some()),
        }
    }

    fn check_stack(&mut self, register: Register, bytes: i64, is_written: bool) -> Step<()> {
        let Some(moved) = register.range.known() else { return Err("hands over stack at a place that is not known".to_owned()) };
        let start = register.offset + moved.cast_signed();
        if !(-STACK_BYTES..0).contains(&start) || start + bytes > 0 || bytes <= 0 {
            return Err(format!("hands over {bytes} bytes at {start} of the stack"));
        }
        for at in start..start + bytes {
            if is_written {
                self.store(register, at - register.offset - moved.cast_signed(), 1, Register::UNKNOWN)?;
                continue;
            }
            let place = usize::try_from(-at - 1).unwrap_or(usize::MAX);
            if self.state.stack.get(place / 8).and_then(|slot| slot.bytes.get(place % 8)) != Some(&Byte::Data) {
                return Err(format!("hands over stack of which byte {at} was not written, or is a part of a pointer"));
            }
        }
        Ok(())
    }
}

/// A pointer that a number is added to or subtracted from.
fn moved(pointer: Register, what: u8, by: Range) -> Step<Register> {
    if by.is_empty() {
        return Ok(Register::UNKNOWN);
    }
    if matches!(pointer.kind, Kind::Found { .. } | Kind::Map(_)) {
        return Err(format!("computes with {:?}", pointer.kind));
    }
    let is_sane = |offset: i64, range: Range| {
        let known = range.known().map_or(0, u64::cast_signed);
        known.abs() < MAX_OFFSET && offset.abs() < MAX_OFFSET && range.least_signed != i64::MIN && range.least_signed.abs() < MAX_OFFSET
    };
    if !is_sane(0, by) || !is_sane(pointer.offset, pointer.range) {
        return Err("moves a pointer by a number without bounds".to_owned());
    }
    let mut result = pointer;
    match (what, by.known()) {
        (operation::ADD, Some(value)) => result.offset += value.cast_signed(),
        (operation::ADD, None) => result.range = pointer.range.plus(by),
        (operation::SUBTRACT, _) if pointer.kind == Kind::Stack => return Err("subtracts from a pointer to the stack".to_owned()),
        (operation::SUBTRACT, Some(value)) => result.offset -= value.cast_signed(),
        (operation::SUBTRACT, None) => result.range = pointer.range.minus(by),
        _ => return Err("computes with a pointer".to_owned()),
    }
    if !is_sane(result.offset, result.range) {
        return Err("moves a pointer by a number without bounds".to_owned());
    }
    result.range.settle();
    Ok(result)
}

/// How far below the stack's end the first byte of an access is, less one. Within the stack, and at a multiple of its size.
fn stack_place(base: Register, offset: i64, bytes: i64) -> Step<usize> {
    let Some(moved) = base.range.known() else { return Err("reaches the stack at a place that is not known".to_owned()) };
    let at = base.offset + offset + moved.cast_signed();
    if at % bytes != 0 {
        return Err(format!("reaches {bytes} bytes at {at} of the stack, which is no multiple"));
    }
    if !(-STACK_BYTES..0).contains(&at) {
        return Err(format!("reaches {at} of the stack"));
    }
    usize::try_from(-at - 1).map_err(|error| error.to_string())
}

/// All copies of what a lookup gave are a value, or null.
fn resolve(state: &mut State, wanted: u32, is_null: bool) {
    let resolve = |register: &mut Register| {
        if let Kind::Found { map, number } = register.kind
            && number == wanted
        {
            register.kind = if is_null { Kind::Number } else { Kind::Value { map } };
        }
    };
    state.registers.iter_mut().for_each(resolve);
    for slot in state.stack.iter_mut().filter(|slot| slot.bytes.first() == Some(&Byte::Pointer)) {
        resolve(&mut slot.pointer);
    }
}

/// Whether all that holds of a state that was seen, as far as it was read, holds of this one.
fn is_covered(seen: &Seen, state: &State) -> bool {
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    let mut is_safe = |old: Register, new: Register, is_read: bool| {
        if !is_read || old == new || old.kind == Kind::Nothing {
            return true;
        }
        match (old.kind, new.kind) {
            (Kind::Number, Kind::Number) => old.range.contains(new.range),
            (Kind::Value { map }, Kind::Value { map: other }) => map == other && old.offset == new.offset && old.range.contains(new.range),
            (Kind::Found { map, number }, Kind::Found { map: other, number: new_number }) => {
                map == other && old.offset == new.offset && *numbers.entry(number).or_insert(new_number) == new_number
            }
            _ => false,
        }
    };
    let registers = seen.state.registers.iter().zip(&state.registers).enumerate();
    for (number, (old, new)) in registers {
        if !is_safe(*old, *new, seen.read.registers >> number & 1 == 1) {
            return false;
        }
    }
    if seen.state.stack.len() > state.stack.len() {
        return false;
    }
    for (number, (old, new)) in seen.state.stack.iter().zip(&state.stack).enumerate() {
        let same = old.bytes.iter().zip(new.bytes).all(|(old, new)| *old == Byte::Unset || *old == new);
        if !same || seen.state.holds_pointer(number) && !is_safe(old.pointer, new.pointer, seen.read.slots >> number & 1 == 1) {
            return false;
        }
    }
    true
}
