//! Go's table of functions (`runtime.pclntab`), which each Go program has, symbols or not: its runtime walks stacks by it. Forms of Go 1.16,
//! 1.18 and 1.20 (`debug/gosym/pclntab.go`, `cmd/link/internal/ld/pcln.go`), of machines with 64 bits that begin with the low byte.

/// What the table begins with, by form.
const GO_1_16: u32 = 0xffff_fffa;
const GO_1_18: u32 = 0xffff_fff0;
const GO_1_20: u32 = 0xffff_fff1;

/// Bytes of a word.
const WORD: usize = 8;

/// The table.
#[derive(Debug)]
pub(super) struct FunctionTable<'data> {
    /// Where it is once mapped.
    address: u64,
    /// Names, each with a zero behind it.
    names: &'data [u8],
    /// For each function where it begins and where its description is; then where the last one ends. Descriptions follow, counted from here.
    functions: &'data [u8],
    count: usize,
    has_addresses: bool,
}

/// Where a function is, as the table counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl<'data> FunctionTable<'data> {
    /// `data` begins with the table, and is mapped to `address`.
    pub(super) fn parse(data: &'data [u8], address: u64) -> Option<Self> {
        let magic = u32::from_le_bytes(*data.first_chunk()?);
        // Two zeros, the smallest length of an instruction, the length of a word.
        let (&[0, 0, 1 | 4, 8], true) = (data.get(4..8)?.first_chunk()?, matches!(magic, GO_1_16 | GO_1_18 | GO_1_20)) else { return None };
        let has_addresses = magic == GO_1_16;
        let word = |index: usize| usize::try_from(number::<WORD>(data, WORD.checked_add(index.checked_mul(WORD)?)?)?).ok();
        // Behind the number of functions comes that of files; from 1.18 on, where the code begins.
        let (names, functions) = if has_addresses { (2, 6) } else { (3, 7) };
        let table =
            Self { address, names: data.get(word(names)?..)?, functions: data.get(word(functions)?..)?, count: word(0)?, has_addresses };
        // All entries have to be there.
        table.entry(table.count)?;
        Some(table)
    }

    /// The table lies anywhere in `data`, at a multiple of a word.
    pub(super) fn parse_within(data: &'data [u8], address: u64) -> Option<Self> {
        (0..data.len()).step_by(WORD).find_map(|at| Self::parse(data.get(at..)?, address.checked_add(at as u64)?))
    }

    /// Whether functions are told by their addresses, as before 1.18, and not counted from where the code begins.
    pub(super) const fn has_addresses(&self) -> bool {
        self.has_addresses
    }

    /// Where the table may say where the code begins: it does from 1.18 to 1.25.
    pub(super) fn text_start_at(&self) -> Option<u64> {
        self.address.checked_add(3 * WORD as u64)
    }

    /// The functions of these names.
    pub(super) fn find<const N: usize>(&self, names: &[&str; N]) -> [Option<Span>; N] {
        let mut at = [None; N];
        let mut offset = 0_usize;
        for name in self.names.split(|&byte| byte == 0) {
            let wanted = names.iter().zip(&mut at).find(|(wanted, _)| wanted.as_bytes() == name && !name.is_empty());
            if let Some((_, at)) = wanted {
                *at = u32::try_from(offset).ok();
            }
            offset += name.len() + 1;
        }
        let mut found = [None; N];
        if at.iter().all(Option::is_none) {
            return found;
        }
        for index in 0..self.count {
            let Some(name) = self.name_of(index).filter(|name| at.contains(&Some(*name))) else { continue };
            for (place, found) in at.iter().zip(&mut found) {
                if *place == Some(name) && found.is_none() {
                    *found = self.span(index);
                }
            }
        }
        found
    }

    /// Where the name of a function is among the names.
    fn name_of(&self, index: usize) -> Option<u32> {
        let description = usize::try_from(self.entry(index)?.1).ok()?;
        // It begins with where the function begins, and goes on with its name.
        let begins = if self.has_addresses { WORD } else { 4 };
        u32::try_from(number::<4>(self.functions, description.checked_add(begins)?)?).ok()
    }

    fn span(&self, index: usize) -> Option<Span> {
        let (begin, end) = (self.entry(index)?.0, self.begin(index.checked_add(1)?)?);
        (begin < end).then_some(Span { begin, end })
    }

    /// Where a function begins, and where its description is. The entry behind the last has the former alone.
    fn entry(&self, index: usize) -> Option<(u64, u64)> {
        let begin = self.begin(index)?;
        if index == self.count {
            return Some((begin, 0));
        }
        let at = index.checked_mul(2)?.checked_add(1)?.checked_mul(self.field())?;
        Some((begin, self.number(at)?))
    }

    fn begin(&self, index: usize) -> Option<u64> {
        self.number(index.checked_mul(2)?.checked_mul(self.field())?)
    }

    const fn field(&self) -> usize {
        if self.has_addresses { WORD } else { 4 }
    }

    fn number(&self, at: usize) -> Option<u64> {
        if self.has_addresses { number::<WORD>(self.functions, at) } else { number::<4>(self.functions, at) }
    }
}

/// A number of `N` bytes, at most eight.
fn number<const N: usize>(data: &[u8], at: usize) -> Option<u64> {
    let mut bytes = [0; WORD];
    bytes.get_mut(..N)?.copy_from_slice(data.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of functions `a`, `b.c` and `b`, at 0, 32 and 48 of code that ends at 64.
    fn table(magic: u32) -> Vec<u8> {
        let has_addresses = magic == GO_1_16;
        let functions = [(0_u64, 0_u32), (32, 2), (48, 6)];
        let names = b"a\0b.c\0b\0";
        let header_words = if has_addresses { 7 } else { 8 };
        let names_at = 8 + header_words * 8;
        let functions_at = names_at + names.len();
        let field = if has_addresses { 8 } else { 4 };
        let mut table = magic.to_le_bytes().to_vec();
        table.extend([0, 0, 1, 8]);
        let offsets = [names_at, 0, 0, 0, functions_at].map(|offset| offset as u64);
        let mut header = vec![functions.len() as u64, 0];
        if !has_addresses {
            header.push(0x40_1000);
        }
        header.extend(offsets);
        table.extend(header.into_iter().flat_map(u64::to_le_bytes));
        table.extend(names);
        let mut entries = Vec::new();
        let mut descriptions = Vec::new();
        let put = |to: &mut Vec<u8>, value: u64| to.extend_from_slice(&value.to_le_bytes()[..field]);
        let descriptions_at = (functions.len() * 2 + 1) * field;
        for (begin, name) in functions {
            put(&mut entries, begin);
            put(&mut entries, (descriptions_at + descriptions.len()) as u64);
            put(&mut descriptions, begin);
            descriptions.extend(name.to_le_bytes());
        }
        put(&mut entries, 64);
        table.extend(entries);
        table.extend(descriptions);
        table
    }

    #[test]
    fn functions_are_found_by_their_whole_names_in_all_forms() {
        for magic in [GO_1_16, GO_1_18, GO_1_20] {
            let bytes = table(magic);
            let table = FunctionTable::parse(&bytes, 0x1000).unwrap();
            let found = table.find(&["b", "c", "a", "b.c", ""]);
            let span = |begin, end| Some(Span { begin, end });
            assert_eq!(found, [span(48, 64), None, span(0, 32), span(32, 48), None], "{magic:x}");
            assert_eq!((table.has_addresses(), table.text_start_at()), (magic == GO_1_16, Some(0x1018)));
        }
    }

    #[test]
    fn a_table_within_other_data_is_found_and_a_cut_one_is_none() {
        let bytes = table(GO_1_20);
        let mut more = vec![0xf1; 24];
        more.extend(&bytes);
        let found = FunctionTable::parse_within(&more, 0x1000).unwrap();
        assert_eq!((found.address, found.count), (0x1018, 3));
        for len in 0..bytes.len() {
            if let Some(cut) = FunctionTable::parse(&bytes[..len], 0) {
                cut.find(&["a", "b", "b.c"]);
            }
        }
        assert!(FunctionTable::parse(&bytes[..80], 0).is_none());
        for (at, value) in [(0, 0xf2), (4, 1), (6, 0), (7, 4), (8, 255)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert!(FunctionTable::parse(&other, 0).is_none(), "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_change_of_a_table_is_taken(at: usize, value: u8, form in 0..3_usize, cut: usize) {
            let mut bytes = table([GO_1_16, GO_1_18, GO_1_20][form]);
            let len = bytes.len();
            bytes[at % len] = value;
            bytes.truncate(len - cut % 8);
            if let Some(table) = FunctionTable::parse(&bytes, u64::MAX) {
                for span in table.find(&["a", "b", "b.c"]).into_iter().flatten() {
                    assert!(span.begin < span.end);
                }
            }
        }
    }
}
