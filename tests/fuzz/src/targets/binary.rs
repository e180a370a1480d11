//! Programs and libraries: symbols, Go's table of functions, the instructions of those.

use tracer_userspace::source::binary::Binary;

use crate::seeds::Recorded;

/// Both ways of mangling names in Rust come last.
const NAMES: [&str; 5] = [
    "SSL_read",
    "crypto/tls.(*Conn).Read",
    "crypto/tls.(*Conn).Close",
    "_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h7298dad393126293E",
    "_RNvMs_NtCs1a_6rustls12common_stateNtB4_11CommonState20send_appdata_encrypt",
];

/// A function in Rust is told by the end of its name.
fn functions_in_rust<'data>(binary: &Binary<'data, &'data [u8]>) -> Vec<u64> {
    let pick = |name: &str| name.ends_with("::send_appdata_encrypt").then_some(());
    binary.rust_functions("rustls", &["send_appdata_encrypt"], pick).into_iter().map(|((), function)| function.address).collect()
}

/// What is found of functions of Go lies in the file.
pub(super) fn run(bytes: &[u8]) {
    let Some(binary) = Binary::parse(bytes) else { return };
    for function in binary.exported(&NAMES).into_iter().chain(binary.symbols(&NAMES)).flatten() {
        binary.offset(function.address);
    }
    for address in functions_in_rust(&binary) {
        binary.offset(address);
    }
    for function in binary.go_functions(&NAMES).into_iter().flatten() {
        assert!(!function.returns.is_empty(), "a function that never returns");
        for place in function.returns.into_iter().chain([function.entry]) {
            assert!(place < bytes.len() as u64, "place {place} in a file of {} bytes", bytes.len());
        }
    }
}

/// Small files with all that is looked at: for both machines, with and without symbols, with each form of Go's table.
pub(super) fn seeds(_: &Recorded) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for machine in [X86_64, AARCH64] {
        for form in [0xffff_fffa_u32, 0xffff_fff0, 0xffff_fff1] {
            for has_symbols in [true, false] {
                seeds.push(file(machine, form, has_symbols));
            }
        }
    }
    seeds
}

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// Where the file is mapped to.
const BASE: u64 = 0x40_0000;
const HEADER: usize = 64;
const SEGMENT: usize = 56;

/// A section: its name, type, bytes, section that it refers to, size of an entry.
type Section<'a> = (&'a str, u32, Vec<u8>, u32, u64);

/// Two functions as Go's compiler makes them, of 16 bytes each.
fn code(machine: u16) -> Vec<u8> {
    if machine == X86_64 {
        // cmp rsp, [r14 + 16]; jbe; push rbp; pop rbp; ret; int3
        return [0x49, 0x3b, 0x66, 0x10, 0x76, 0x08, 0x55, 0x5d, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc].repeat(2);
    }
    // ldr x16, [x28, #16]; cmp sp, x16; b.ls; ret
    [0xf940_0b90_u32, 0xeb30_63ff, 0x5400_0069, 0xd65f_03c0].repeat(2).into_iter().flat_map(u32::to_le_bytes).collect()
}

fn file(machine: u16, form: u32, has_symbols: bool) -> Vec<u8> {
    let text_at = (HEADER + SEGMENT) as u64;
    let begins = [BASE + text_at, BASE + text_at + 16];
    let mut sections: Vec<Section<'_>> = vec![("", 0, Vec::new(), 0, 0), (".text", 1, code(machine), 0, 0)];
    sections.push((".gopclntab", 1, table(form, begins), 0, 0));
    // As Go 1.26 says where code begins: the word behind 22 others.
    sections.push((".go.module", 1, [vec![0; 22 * 8], begins[0].to_le_bytes().to_vec()].concat(), 0, 0));
    sections.push((".rela", 4, [BASE.to_le_bytes(), 8_u64.to_le_bytes(), begins[0].to_le_bytes()].concat(), 0, 24));
    if has_symbols {
        let names = NAMES.iter().flat_map(|name| name.bytes().chain([0])).collect();
        let mut symbols = vec![0; 24];
        let mut at = 0_u32;
        for (name, begin) in NAMES.into_iter().zip([begins[0], begins[0], begins[1], begins[0], begins[1]]) {
            symbols.extend(at.to_le_bytes());
            symbols.extend([0x12, 0, 1, 0]);
            symbols.extend(begin.to_le_bytes().into_iter().chain(16_u64.to_le_bytes()));
            at += u32::try_from(name.len() + 1).unwrap_or(0);
        }
        let strings = u32::try_from(sections.len() + 2).unwrap_or(0);
        sections.push((".symtab", 2, symbols.clone(), strings, 24));
        sections.push((".dynsym", 11, symbols, strings, 24));
        sections.push((".strtab", 3, names, 0, 0));
        if form == 0xffff_fff1 {
            sections.push((".gnu.hash", 0x6fff_fff6, hashes(), strings - 1, 0));
        }
    }
    elf(machine, sections)
}

/// The table that the loader looks into: one chain of all names. The first symbol is none.
fn hashes() -> Vec<u8> {
    let mut words = vec![1_u32, 1, 1, 0, u32::MAX, u32::MAX, 1];
    let hash = |name: &str| name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
    words.extend(NAMES.map(|name| hash(name) & !1));
    if let Some(last) = words.last_mut() {
        *last |= 1;
    }
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Go's table of two functions.
fn table(form: u32, begins: [u64; 2]) -> Vec<u8> {
    let has_addresses = form == 0xffff_fffa;
    let names = b"crypto/tls.(*Conn).Read\0crypto/tls.(*Conn).Close\0";
    let words = if has_addresses { 7 } else { 8 };
    let names_at = 8 + words * 8;
    let functions_at = names_at + names.len();
    let mut header = vec![2_u64, 0];
    header.extend((!has_addresses).then_some(begins[0]));
    header.extend([names_at, 0, 0, 0, functions_at].map(|offset| offset as u64));
    let field = if has_addresses { 8 } else { 4 };
    let put = |to: &mut Vec<u8>, value: u64| to.extend(&value.to_le_bytes()[..field]);
    let from = if has_addresses { 0 } else { begins[0] };
    let (mut entries, mut descriptions) = (Vec::new(), Vec::new());
    for (begin, name) in begins.into_iter().zip([0_u32, 24]) {
        put(&mut entries, begin - from);
        put(&mut entries, (5 * field + descriptions.len()) as u64);
        put(&mut descriptions, begin - from);
        descriptions.extend(name.to_le_bytes());
    }
    put(&mut entries, begins[1] + 16 - from);
    let header = header.into_iter().flat_map(u64::to_le_bytes).collect();
    [form.to_le_bytes().to_vec(), vec![0, 0, 1, 8], header, names.to_vec(), entries, descriptions].concat()
}

/// The file: header, one segment that maps all of it as code, sections, their table.
fn elf(machine: u16, mut sections: Vec<Section<'_>>) -> Vec<u8> {
    let mut names = Vec::new();
    let mut name_places = Vec::new();
    for name in sections.iter().map(|section| section.0).chain([".shstrtab"]) {
        name_places.push(u32::try_from(names.len()).unwrap_or(0));
        names.extend(name.bytes().chain([0]));
    }
    sections.push((".shstrtab", 3, names, 0, 0));
    let (mut bodies, mut table) = (Vec::new(), Vec::new());
    for ((_, kind, bytes, link, entry), name) in sections.iter().zip(name_places) {
        let at = (HEADER + SEGMENT + bodies.len()) as u64;
        table.extend([name, *kind].into_iter().flat_map(u32::to_le_bytes));
        table.extend([2, BASE + at, at, bytes.len() as u64].into_iter().flat_map(u64::to_le_bytes));
        table.extend([*link, 0].into_iter().flat_map(u32::to_le_bytes));
        table.extend([1, *entry].into_iter().flat_map(u64::to_le_bytes));
        bodies.extend(bytes);
        bodies.resize(bodies.len().next_multiple_of(8), 0);
    }
    let table_at = (HEADER + SEGMENT + bodies.len()) as u64;
    let all = table_at + table.len() as u64;
    let count = u16::try_from(sections.len()).unwrap_or(0);
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, machine].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1_u32.to_le_bytes());
    file.extend([BASE, HEADER as u64, table_at].into_iter().flat_map(u64::to_le_bytes));
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, 1, 64, count, count - 1].into_iter().flat_map(u16::to_le_bytes));
    file.extend([1, 5].into_iter().flat_map(u32::to_le_bytes));
    file.extend([0, BASE, BASE, all, all, 8].into_iter().flat_map(u64::to_le_bytes));
    file.extend(bodies);
    file.extend(table);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_have_functions_to_find() {
        for (machine, form, has_symbols) in [(X86_64, 0xffff_fff1, true), (X86_64, 0xffff_fffa, false), (AARCH64, 0xffff_fff0, false)] {
            let file = file(machine, form, has_symbols);
            let binary = Binary::parse(&*file).expect("an ELF file");
            assert_eq!(binary.exported(&NAMES).iter().all(Option::is_some), has_symbols);
            let text = BASE + (HEADER + SEGMENT) as u64;
            assert_eq!(functions_in_rust(&binary), if has_symbols { vec![text, text + 16] } else { Vec::new() });
            let [_, read, close, ..] = binary.go_functions(&NAMES);
            let place = |offset: u64| (HEADER + SEGMENT) as u64 + offset;
            let (entry, leaves) = if machine == X86_64 { (6, 8) } else { (12, 12) };
            let found = |function: Option<tracer_userspace::source::binary::GoFunction>| function.map(|it| (it.entry, it.returns));
            assert_eq!(found(read), Some((place(entry), vec![place(leaves)])), "{machine} {form:x}");
            assert_eq!(found(close), Some((place(16 + entry), vec![place(16 + leaves)])));
        }
    }
}
