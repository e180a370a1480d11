//! Programs and libraries as files (ELF, 64 bits): where their functions are, and where those return.
//!
//! In: bytes of a file, which may be anybody's. Out: [`Function`]s, and places in the file where code lies. Nothing is believed but after a
//! check: no input makes it panic, read outside of the file, or take memory that the file does not account for.

#![forbid(unsafe_code)]

mod code;
mod pclntab;

use std::fmt::Write;

use memchr::memmem;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym, SymbolTable};
use object::{Endian, Endianness, Object, ObjectSection, ReadRef, SectionIndex, SymbolIndex, elf};

use code::Machine;
use pclntab::{FunctionTable, Span};

/// The largest table that is read: symbols, their names, Go's functions.
const MAX_TABLE_BYTES: u64 = 256 << 20;

/// The largest function that is gone through.
const MAX_FUNCTION_BYTES: u64 = 64 << 10;

/// Names of functions in Rust that are looked at: a program has some dozen with the wanted parts.
const MAX_RUST_NAMES: usize = 1024;

/// The longest such name, in the file and in the sources.
const MAX_RUST_NAME_BYTES: usize = 1024;

/// `moduledata.text`, in words: behind the header's address, six slices, and three addresses (Go 1.26, the first with that section).
const MODULE_TEXT: u64 = 22 * 8;

/// A function of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is once the file is mapped, seen from where the file is mapped to.
    pub address: u64,
    /// How long it is, padding behind it included; 0 where the file does not say.
    pub bytes: u64,
}

/// Where a function of Go is entered, and left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFunction {
    /// The instruction behind the check for room on the stack, as a place in the file: the check may be gone through twice in a call.
    pub entry: u64,
    /// The instructions that return, likewise.
    pub returns: Vec<u64>,
}

/// A file.
pub struct Binary<'data, R: ReadRef<'data>> {
    elf: ElfFile64<'data, Endianness, R>,
}

impl<'data, R: ReadRef<'data>> Binary<'data, R> {
    /// None if it is no ELF file of 64 bits for this kind of machine, or damaged.
    pub fn parse(data: R) -> Option<Self> {
        Some(Self { elf: ElfFile64::parse(data).ok()? })
    }

    /// The functions of these names among those that the file exports.
    pub fn exported<const N: usize>(&self, names: &[&str; N]) -> [Option<Function>; N] {
        self.hashed(names).unwrap_or_else(|| self.find(self.elf.elf_dynamic_symbol_table(), names))
    }

    /// The functions of these names among all that the file has, where that table was left in.
    pub fn symbols<const N: usize>(&self, names: &[&str; N]) -> [Option<Function>; N] {
        self.find(self.elf.elf_symbol_table(), names)
    }

    /// The functions of these names, written in Go for the ABI that passes arguments in registers: by symbols, or else by the table that
    /// every Go program needs to run. Nothing if one of them is not what it should be.
    pub fn go_functions<const N: usize>(&self, names: &[&str; N]) -> [Option<GoFunction>; N] {
        self.go_functions_if_any(names).unwrap_or([const { None }; N])
    }

    /// The functions in Rust that `pick` wants, with what it says of each: a function may stand in a file more than once. `pick` gets the name
    /// as it stands in the sources; only those with `part` and one of `others` in them are shown to it.
    pub fn rust_functions<T>(&self, part: &str, others: &[&str], mut pick: impl FnMut(&str) -> Option<T>) -> Vec<(T, Function)> {
        let endian = self.elf.endian();
        let table = self.elf.elf_symbol_table();
        let Some(strings) = self.table(table.string_section()) else { return Vec::new() };
        let part = memmem::Finder::new(part);
        let others: Vec<_> = others.iter().map(memmem::Finder::new).collect();
        let named = table.iter().filter_map(|symbol| {
            let is_function = symbol.st_type() == elf::STT_FUNC && !symbol.is_undefined(endian);
            let rest = strings.get(symbol.st_name(endian) as usize..).filter(|_| is_function)?;
            let name = rest.get(..memchr::memchr(0, rest.get(..MAX_RUST_NAME_BYTES).unwrap_or(rest))?)?;
            part.find(name).filter(|_| others.iter().any(|other| other.find(name).is_some()))?;
            Some((std::str::from_utf8(name).ok()?, Function { address: symbol.st_value(endian), bytes: symbol.st_size(endian) }))
        });
        let picked = named.take(MAX_RUST_NAMES).filter_map(|(name, function)| Some((pick(&demangled(name)?)?, function)));
        picked.collect()
    }

    fn go_functions_if_any<const N: usize>(&self, names: &[&str; N]) -> Option<[Option<GoFunction>; N]> {
        let machine = self.machine()?;
        let table = self.function_table()?;
        // Registers came to AArch64 a version later, with the table's next form.
        if machine == Machine::Aarch64 && table.has_addresses() {
            return None;
        }
        if let Some(found) = self.seen_through(self.symbols(names), machine) {
            return Some(found);
        }
        let spans = table.find(names);
        self.text_starts(&table).into_iter().find_map(|start| {
            let function = |Span { begin, end }| Function { address: start.wrapping_add(begin), bytes: end - begin };
            self.seen_through(spans.map(|span| span.map(function)), machine)
        })
    }

    /// Where in the file the code at an address lies, as the kernel wants it.
    pub fn offset(&self, address: u64) -> Option<u64> {
        let endian = self.elf.endian();
        let segment = self.elf.elf_program_headers().iter().find(|segment| {
            let begin = segment.p_vaddr(endian);
            segment.p_type(endian) == elf::PT_LOAD
                && segment.p_flags(endian) & elf::PF_X != 0
                && (begin..begin.saturating_add(segment.p_filesz(endian))).contains(&address)
        })?;
        (address - segment.p_vaddr(endian)).checked_add(segment.p_offset(endian))
    }

    /// Where in its argument a function finds the word that it returns, if it does that and nothing else.
    pub fn member_that_is_returned(&self, function: Function) -> Option<u32> {
        code::member_that_is_returned(self.code(function)?, self.machine()?)
    }

    fn machine(&self) -> Option<Machine> {
        let endian = self.elf.endian();
        match (self.elf.elf_header().e_machine(endian), endian) {
            (elf::EM_X86_64, Endianness::Little) => Some(Machine::X86_64),
            (elf::EM_AARCH64, Endianness::Little) => Some(Machine::Aarch64),
            _ => None,
        }
    }

    fn find<const N: usize>(
        &self,
        table: &SymbolTable<'data, elf::FileHeader64<Endianness>, R>,
        names: &[&str; N],
    ) -> [Option<Function>; N] {
        let mut found = [None; N];
        let endian = self.elf.endian();
        // Name by name, a file would be read in hundreds of thousands of pieces.
        let Some(strings) = self.table(table.string_section()) else { return found };
        for symbol in table.iter() {
            let at = symbol.st_name(endian) as usize;
            if symbol.st_type() != elf::STT_FUNC || symbol.is_undefined(endian) {
                continue;
            }
            for (name, place) in names.iter().zip(&mut found) {
                if place.is_none() && is_name(strings, at, name) {
                    *place = Some(Function { address: symbol.st_value(endian), bytes: symbol.st_size(endian) });
                }
            }
        }
        found
    }

    /// What is exported, by the table of hashes that the loader looks into: a large program has tens of thousands of names. None without one.
    fn hashed<const N: usize>(&self, names: &[&str; N]) -> Option<[Option<Function>; N]> {
        let endian = self.elf.endian();
        let mut sections = self.elf.elf_section_table().enumerate();
        let table = self.table(sections.find(|(_, section)| section.sh_type(endian) == elf::SHT_GNU_HASH)?.0)?;
        let symbols = self.elf.elf_dynamic_symbol_table();
        let strings = self.table(symbols.string_section())?;
        let word = |at: usize| Some(endian.read_u32(*table.get(at.checked_mul(4)?..)?.first_chunk()?));
        // Numbers of chains, of the first symbol with a hash, and of words of 64 bits in a filter; a shift for it; then all three.
        let (chains, first, filter) = (word(0)?, word(1)? as usize, word(2)? as usize);
        let begins = 4_usize.checked_add(filter.checked_mul(2)?)?;
        let hashes = begins.checked_add(chains as usize)?;
        let function = |name: &str| {
            let hash = elf::gnu_hash(name.as_bytes());
            let mut index = word(begins.checked_add(hash.checked_rem(chains)? as usize)?)? as usize;
            // The last hash of a chain is odd.
            loop {
                let found = word(hashes.checked_add(index.checked_sub(first)?)?)?;
                if found | 1 == hash | 1 {
                    let symbol = symbols.symbol(SymbolIndex(index)).ok()?;
                    let is_function = symbol.st_type() == elf::STT_FUNC && !symbol.is_undefined(endian);
                    if is_function && is_name(strings, symbol.st_name(endian) as usize, name) {
                        return Some(Function { address: symbol.st_value(endian), bytes: symbol.st_size(endian) });
                    }
                }
                if found & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        };
        Some(names.map(function))
    }

    /// The bytes of a section that is not larger than what is read.
    fn table(&self, section: SectionIndex) -> Option<&'data [u8]> {
        let header = self.elf.elf_section_table().section(section).ok()?;
        (header.sh_size(self.elf.endian()) <= MAX_TABLE_BYTES).then_some(())?;
        header.data(self.elf.endian(), self.elf.data()).ok()
    }

    /// Go's table of functions. In a program that can be mapped anywhere its section has another name; was that one linked by the C
    /// compiler, the section became part of another.
    fn function_table(&self) -> Option<FunctionTable<'data>> {
        let read = |name| {
            let section = self.elf.section_by_name(name)?;
            let data = self.table(section.index())?;
            Some((section.address(), data))
        };
        for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
            if let Some(table) = read(name).and_then(|(address, data)| FunctionTable::parse(data, address)) {
                return Some(table);
            }
        }
        let (address, data) = read(".data.rel.ro")?;
        FunctionTable::parse_within(data, address)
    }

    /// Where what the table counts from may be.
    fn text_starts(&self, table: &FunctionTable<'_>) -> Vec<u64> {
        if table.has_addresses() {
            return vec![0];
        }
        let module =
            self.elf.section_by_name(".go.module").and_then(|section| self.loaded_word(section.address().checked_add(MODULE_TEXT)?));
        let stored = table.text_start_at().and_then(|address| self.loaded_word(address));
        let text = self.elf.section_by_name(".text").map(|section| section.address());
        [stored, module, text].into_iter().flatten().filter(|&start| start != 0).collect()
    }

    /// The word at an address once the file is mapped to where it says.
    fn loaded_word(&self, address: u64) -> Option<u64> {
        let endian = self.elf.endian();
        for (index, section) in self.elf.elf_section_table().enumerate() {
            if section.sh_type(endian) != elf::SHT_RELA || self.table(index).is_none() {
                continue;
            }
            let Ok(Some((relocations, _))) = section.rela(endian, self.elf.data()) else { continue };
            if let Some(found) = relocations.iter().find(|relocation| relocation.r_offset.get(endian) == address) {
                return u64::try_from(found.r_addend.get(endian)).ok();
            }
        }
        let segment = self.elf.elf_program_headers().iter().find_map(|segment| {
            segment.data_range(endian, self.elf.data(), address, 8).ok().flatten().filter(|_| segment.p_type(endian) == elf::PT_LOAD)
        })?;
        Some(u64::from_le_bytes(*segment.first_chunk()?))
    }

    /// Where the functions are entered and left, if there are any, and each is what the compiler makes of one.
    fn seen_through<const N: usize>(&self, functions: [Option<Function>; N], machine: Machine) -> Option<[Option<GoFunction>; N]> {
        functions.iter().any(Option::is_some).then_some(())?;
        let mut seen = [const { None }; N];
        for (function, seen) in functions.into_iter().zip(&mut seen) {
            let Some(function) = function else { continue };
            *seen = Some(self.see_through(function, machine)?);
        }
        Some(seen)
    }

    fn see_through(&self, function: Function, machine: Machine) -> Option<GoFunction> {
        let begin = self.offset(function.address)?;
        let code = self.code(function)?;
        let entry = begin.checked_add(code::behind_stack_check(code, machine)? as u64)?;
        let returns: Option<Vec<u64>> = code::returns(code, machine)?.into_iter().map(|at| begin.checked_add(at as u64)).collect();
        Some(GoFunction { entry, returns: returns? })
    }

    fn code(&self, Function { address, bytes }: Function) -> Option<&'data [u8]> {
        (bytes <= MAX_FUNCTION_BYTES).then_some(())?;
        // Both ends have to be code.
        self.offset(address.checked_add(bytes)?.checked_sub(1)?)?;
        self.elf.data().read_bytes_at(self.offset(address)?, bytes).ok()
    }
}

/// A name as it stands in the sources, without hashes. None if it is none of Rust, or one that grows too long: names refer to themselves.
fn demangled(name: &str) -> Option<String> {
    struct Bounded(String);
    impl Write for Bounded {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            if self.0.len() + text.len() > MAX_RUST_NAME_BYTES {
                return Err(std::fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut bounded = Bounded(String::new());
    write!(bounded, "{:#}", rustc_demangle::try_demangle(name).ok()?).ok()?;
    Some(bounded.0)
}

/// Whether a name lies at a place of a table of names, each with a zero behind it.
fn is_name(strings: &[u8], at: usize, name: &str) -> bool {
    strings.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_finds_by_hashes_is_what_stands_in_the_table() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5)).find(|path| path.contains("/libc.so."));
        let Some(data) = library.map(|path| std::fs::read(path).unwrap()) else { return };
        let binary = Binary::parse(&*data).unwrap();
        let names = ["write", "no_such_function", "malloc", "wri", "writev", ""];
        let hashed = binary.hashed(&names).unwrap();
        assert_eq!(hashed, binary.find(binary.elf.elf_dynamic_symbol_table(), &names));
        assert_eq!(hashed.map(|function| function.is_some()), [true, false, true, false, true, false]);
    }
}
