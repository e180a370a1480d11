//! The kernel's own description of its types (`/sys/kernel/btf/vmlinux`, format: Documentation/bpf/btf.rst): offsets of members, sizes,
//! values of enumerations, names of parameters. Only what programs need that read the kernel's structures by hand.

#![forbid(unsafe_code)]

use std::collections::HashSet;

/// First two bytes of all BTF, in the order of the machine that wrote it.
const MAGIC: u16 = 0xeb9f;

/// Structures within structures that are followed to find a member.
const MAX_DEPTH: u32 = 16;

/// Kinds of types (`BTF_KIND_*`) that are looked into.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// Why a description could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BtfError {
    /// Not BTF, or of another machine.
    #[error("it does not begin as BTF does")]
    NotBtf,
    /// It ends before it should.
    #[error("it is cut: type {id} is not whole")]
    Cut {
        /// Number of the type.
        id: u32,
    },
    /// A kind of type whose length is not known, so that nothing behind it can be found.
    #[error("type {id} is of kind {kind}, which is not known")]
    Kind {
        /// Number of the type.
        id: u32,
        /// Its kind.
        kind: u32,
    },
}

/// All types of a kernel.
pub(super) struct Btf<'a> {
    /// Type `id` at `id - 1`.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

/// One type: what all have, and what follows.
#[derive(Clone, Copy)]
struct Type<'a> {
    name_offset: u32,
    info: u32,
    /// Its size in bytes, or the number of the type that it refers to.
    refers_to: u32,
    rest: &'a [u8],
}

impl Type<'_> {
    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    /// Whether the offsets of members share their words with sizes of bit fields.
    const fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }
}

impl<'a> Btf<'a> {
    /// Reads the list of types.
    ///
    /// # Errors
    /// When these are no bytes of BTF, not all of them, or of a newer form.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        let header = |at| number(bytes, at).and_then(|value| usize::try_from(value).ok()).ok_or(BtfError::NotBtf);
        if magic != Some(MAGIC) {
            return Err(BtfError::NotBtf);
        }
        let (header_bytes, type_offset, type_bytes, string_offset, string_bytes) =
            (header(4)?, header(8)?, header(12)?, header(16)?, header(20)?);
        let section = |offset: usize, len: usize| {
            let start = header_bytes.checked_add(offset)?;
            bytes.get(start..start.checked_add(len)?)
        };
        let (Some(mut rest), Some(strings)) = (section(type_offset, type_bytes), section(string_offset, string_bytes)) else {
            return Err(BtfError::Cut { id: 0 });
        };
        let mut types = Vec::new();
        while !rest.is_empty() {
            let id = u32::try_from(types.len() + 1).unwrap_or(u32::MAX);
            let (one, behind) = take_type(rest, id)?;
            types.push(one);
            rest = behind;
        }
        Ok(Self { types, strings })
    }

    /// Bytes before a member of a structure or union, which may lie in nameless ones within it. None for bit fields.
    pub(super) fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self.find(structure, |kind| kind == kind::STRUCT || kind == kind::UNION)?;
        let bits = self.member_bits(found, member, 0, &mut HashSet::new())?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bytes of a structure or union.
    pub(super) fn size_of(&self, structure: &str) -> Option<u32> {
        self.find(structure, |kind| kind == kind::STRUCT || kind == kind::UNION).map(|found| found.refers_to)
    }

    /// The value of an enumeration's constant, whatever the enumeration.
    pub(super) fn constant(&self, name: &str) -> Option<u32> {
        self.types.iter().filter(|one| one.kind() == kind::ENUM).find_map(|one| {
            let (values, _) = one.rest.as_chunks::<8>();
            values.iter().find(|value| number(*value, 0).is_some_and(|at| self.is_named(at, name))).and_then(|value| number(value, 4))
        })
    }

    /// Whether a function has a parameter of this name. None when the function is not described.
    pub(super) fn has_parameter(&self, function: &str, parameter: &str) -> Option<bool> {
        let prototype = self.by_id(self.find(function, |kind| kind == kind::FUNC)?.refers_to)?;
        if prototype.kind() != kind::FUNC_PROTO {
            return None;
        }
        let (parameters, _) = prototype.rest.as_chunks::<8>();
        Some(parameters.iter().any(|one| number(one, 0).is_some_and(|at| self.is_named(at, parameter))))
    }

    /// A structure in which the member was not found is not looked into again: there could be many ways to it.
    fn member_bits(&self, structure: Type<'a>, member: &str, depth: u32, seen: &mut HashSet<u32>) -> Option<u32> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (members, _) = structure.rest.as_chunks::<12>();
        members.iter().find_map(|one| {
            let (name_offset, type_id, place) = (number(one, 0)?, number(one, 4)?, number(one, 8)?);
            let bits = if structure.has_bit_fields() { place & 0x00ff_ffff } else { place };
            if name_offset != 0 {
                return self.is_named(name_offset, member).then_some(bits);
            }
            if !seen.insert(type_id) {
                return None;
            }
            let inner = self.resolve(type_id)?;
            if inner.kind() != kind::STRUCT && inner.kind() != kind::UNION {
                return None;
            }
            self.member_bits(inner, member, depth + 1, seen)?.checked_add(bits)
        })
    }

    /// What a type is behind its qualifiers and other names.
    fn resolve(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..MAX_DEPTH {
            let one = self.by_id(id)?;
            match one.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST => id = one.refers_to,
                _ => return Some(one),
            }
        }
        None
    }

    fn by_id(&self, id: u32) -> Option<Type<'a>> {
        self.types.get(usize::try_from(id.checked_sub(1)?).ok()?).copied()
    }

    fn find(&self, name: &str, is_wanted: impl Fn(u32) -> bool) -> Option<Type<'a>> {
        self.types.iter().copied().find(|one| is_wanted(one.kind()) && self.is_named(one.name_offset, name))
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| self.strings.get(offset..)) else { return false };
        rest.strip_prefix(name.as_bytes()).is_some_and(|behind| behind.first() == Some(&0))
    }
}

impl std::fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf").field("types", &self.types.len()).finish_non_exhaustive()
    }
}

/// Takes a type off the front.
fn take_type(bytes: &[u8], id: u32) -> Result<(Type<'_>, &[u8]), BtfError> {
    let cut = BtfError::Cut { id };
    let (Some(name_offset), Some(info), Some(refers_to)) = (number(bytes, 0), number(bytes, 4), number(bytes, 8)) else {
        return Err(cut);
    };
    let mut one = Type { name_offset, info, refers_to, rest: &[] };
    let entries = usize::try_from(info & 0xffff).unwrap_or(usize::MAX);
    let follows = match one.kind() {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * entries,
        kind::ENUM | kind::FUNC_PROTO => 8 * entries,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        kind => return Err(BtfError::Kind { id, kind }),
    };
    let (rest, behind) = bytes.get(12..).and_then(|rest| rest.split_at_checked(follows)).ok_or(cut)?;
    one.rest = rest;
    Ok((one, behind))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts BTF together, as pahole writes it.
    #[derive(Default)]
    struct Writer {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Writer {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.strings.len()).unwrap();
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn numbers(&mut self, numbers: &[u32]) {
            self.types.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        }

        fn one(&mut self, kind: u32, name: &str, size_or_type: u32, entries: &[(&str, &[u32])]) {
            let name = self.name(name);
            self.numbers(&[name, kind << 24 | u32::try_from(entries.len()).unwrap(), size_or_type]);
            for (name, numbers) in entries {
                let name = self.name(name);
                self.numbers(&[name]);
                self.numbers(numbers);
            }
        }

        fn finish(self) -> Vec<u8> {
            let (types, strings) = (u32::try_from(self.types.len()).unwrap(), u32::try_from(self.strings.len()).unwrap());
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            bytes.extend([24, 0, types, types, strings].iter().flat_map(|number| number.to_ne_bytes()));
            bytes.extend(self.types);
            bytes.extend(self.strings);
            bytes
        }
    }

    /// A kernel with a nameless union in a structure, as `iov_iter` has it.
    fn small_kernel() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.one(kind::INT, "unsigned long", 8, &[]);
        writer.numbers(&[64]);
        writer.one(kind::UNION, "", 8, &[("__iov", &[1, 0]), ("bvec", &[1, 0])]);
        writer.one(kind::STRUCT, "", 16, &[("", &[2, 0]), ("count", &[1, 64])]);
        writer.one(kind::CONST, "", 3, &[]);
        writer.one(kind::STRUCT, "iov_iter", 40, &[("iter_type", &[1, 0]), ("", &[4, 128]), ("nr_segs", &[1, 256])]);
        writer.one(kind::ENUM, "iter_type", 4, &[("ITER_UBUF", &[0]), ("ITER_IOVEC", &[1])]);
        writer.one(kind::FUNC_PROTO, "", 1, &[("sk", &[1]), ("flags", &[1])]);
        writer.one(kind::FUNC, "tcp_recvmsg", 7, &[]);
        writer.finish()
    }

    #[test]
    fn members_constants_and_parameters_are_found() {
        let bytes = small_kernel();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member_offset("iov_iter", "iter_type"), Some(0));
        assert_eq!(btf.member_offset("iov_iter", "bvec"), Some(16));
        assert_eq!(btf.member_offset("iov_iter", "count"), Some(24));
        assert_eq!(btf.member_offset("iov_iter", "nr_segs"), Some(32));
        assert_eq!(btf.member_offset("iov_iter", "nr"), None, "a name is compared whole");
        assert_eq!(btf.member_offset("iov", "count"), None);
        assert_eq!(btf.size_of("iov_iter"), Some(40));
        assert_eq!((btf.constant("ITER_IOVEC"), btf.constant("ITER_BVEC")), (Some(1), None));
        assert_eq!(btf.has_parameter("tcp_recvmsg", "flags"), Some(true));
        assert_eq!(btf.has_parameter("tcp_recvmsg", "nonblock"), Some(false));
        assert_eq!(btf.has_parameter("tcp_sendmsg", "sk"), None);
    }

    #[test]
    fn what_is_cut_or_damaged_is_refused_or_read_without_harm() {
        let whole = small_kernel();
        for len in 0..whole.len() {
            assert!(Btf::parse(&whole[..len]).is_err(), "{len}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Ok(btf) = Btf::parse(&damaged) {
                    let _ = (btf.member_offset("iov_iter", "count"), btf.constant("ITER_IOVEC"), btf.has_parameter("tcp_recvmsg", "sk"));
                }
            }
        }
    }

    #[test]
    fn a_structure_that_holds_itself_ends() {
        let mut writer = Writer::default();
        writer.one(kind::STRUCT, "s", 8, &[("", &[1, 0])]);
        writer.one(kind::TYPEDEF, "t", 2, &[]);
        writer.one(kind::STRUCT, "u", 8, &[("", &[2, 0])]);
        let bytes = writer.finish();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.member_offset("s", "x"), btf.member_offset("u", "x")), (None, None));
    }

    #[test]
    fn many_ways_to_a_structure_are_walked_once() {
        let mut writer = Writer::default();
        let inner: [(&str, &[u32]); 3] = [("", &[1, 0]), ("", &[1, 0]), ("", &[1, 8])];
        writer.one(kind::STRUCT, "s", 8, &inner);
        // And where they get deeper each time, in types of their own: 3^15 ways.
        for id in 2_u32..17 {
            let inner = [id - 1, 0];
            writer.one(kind::STRUCT, if id == 16 { "t" } else { "" }, 8, &[("", &inner), ("", &inner), ("", &inner)]);
        }
        let bytes = writer.finish();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.member_offset("s", "x"), btf.member_offset("t", "x")), (None, None));
    }

    #[test]
    fn a_kind_of_tomorrow_is_named() {
        let mut writer = Writer::default();
        writer.one(31, "new", 0, &[]);
        assert_eq!(Btf::parse(&writer.finish()).unwrap_err(), BtfError::Kind { id: 1, kind: 31 });
    }

    #[test]
    fn the_types_of_this_kernel_are_read() {
        // Kernels without it are for the table of versions.
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member_offset("msghdr", "msg_iter"), Some(16));
        assert_eq!(btf.member_offset("sock_common", "skc_dport"), Some(12));
        assert_eq!(btf.member_offset("sock_common", "skc_num"), Some(14));
        assert_eq!(btf.member_offset("sock_common", "skc_family"), Some(16));
        assert!(btf.constant("ITER_BVEC").is_some());
        assert!(btf.has_parameter("tcp_recvmsg", "sk") == Some(true));
    }
}
