//! The instructions of a function: as Go's compiler makes them, where the check for room on the stack ends, and which instructions return; as C's
//! compiler makes them, which member of a structure one returns.
//! Each instruction is gone through from the first on: bytes that look like one may be part of another.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};

/// Whose instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Aarch64,
}

/// `g.stackguard0`: where in the goroutine's structure it is kept how far the stack reaches.
const STACK_GUARD: u32 = 16;

/// Instructions within which the check ends.
const CHECK: usize = 10;

/// Where the instruction behind the check for room on the stack is. None if the function does not begin with one that finds the goroutine
/// in its register (R14, R28): it is not of Go, or of a version that has it elsewhere, or what is here is no function.
pub(super) fn behind_stack_check(code: &[u8], machine: Machine) -> Option<usize> {
    let mut is_compared = false;
    match machine {
        Machine::X86_64 => {
            for (at, instruction) in decode(code).take(CHECK) {
                if is_compared && instruction.mnemonic() == Mnemonic::Jbe {
                    return Some(at + instruction.len()).filter(|&next| next < code.len());
                }
                is_compared |= instruction.mnemonic() == Mnemonic::Cmp
                    && instruction.memory_base() == Register::R14
                    && instruction.memory_displacement64() == u64::from(STACK_GUARD);
            }
            None
        }
        Machine::Aarch64 => {
            for (at, word) in words(code).take(CHECK) {
                if is_compared && arm::is_conditional_branch(word) {
                    return Some(at + 4).filter(|&next| next < code.len());
                }
                is_compared |= word == arm::LOAD_STACK_GUARD;
            }
            None
        }
    }
}

/// Where the instructions that return are. None if there is none, or if not all of the code is instructions.
pub(super) fn returns(code: &[u8], machine: Machine) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    match machine {
        Machine::X86_64 => {
            for (at, instruction) in decode(code) {
                match instruction.mnemonic() {
                    Mnemonic::INVALID => return None,
                    Mnemonic::Ret => found.push(at),
                    _ => {}
                }
            }
        }
        Machine::Aarch64 => {
            if !code.len().is_multiple_of(4) {
                return None;
            }
            // Constants lie among the instructions: what a load refers to is none.
            let constants: Vec<std::ops::Range<usize>> = words(code).filter_map(|(at, word)| arm::constant(at, word)).collect();
            let is_constant = |at: usize| constants.iter().any(|range| range.contains(&at));
            found.extend(words(code).filter(|&(at, word)| word == arm::RETURN && !is_constant(at)).map(|(at, _)| at));
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Where in its first argument a function of C finds the word that it returns, if it does that and nothing else.
pub(super) fn member_that_is_returned(code: &[u8], machine: Machine) -> Option<u32> {
    match machine {
        Machine::X86_64 => {
            // Where indirect jumps may lead to is marked.
            let mut instructions = decode(code).map(|(_, instruction)| instruction).filter(|it| it.mnemonic() != Mnemonic::Endbr64);
            let (load, leave) = (instructions.next()?, instructions.next()?);
            let is_load = load.mnemonic() == Mnemonic::Mov
                && load.op0_register() == Register::RAX
                && load.memory_base() == Register::RDI
                && load.memory_index() == Register::None;
            (is_load && leave.mnemonic() == Mnemonic::Ret).then_some(())?;
            u32::try_from(load.memory_displacement64()).ok()
        }
        Machine::Aarch64 => {
            let mut instructions = words(code).map(|(_, word)| word).filter(|&word| word != arm::CALLED_INDIRECTLY);
            let (load, leave) = (instructions.next()?, instructions.next()?);
            (leave == arm::RETURN).then(|| arm::loaded_from_first(load))?
        }
    }
}

/// All instructions with their places. Where none is, the last is invalid.
fn decode(code: &[u8]) -> impl Iterator<Item = (usize, Instruction)> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over || !decoder.can_decode() {
            return None;
        }
        let at = decoder.position();
        let instruction = decoder.decode();
        is_over = instruction.is_invalid();
        Some((at, instruction))
    })
}

fn words(code: &[u8]) -> impl Iterator<Item = (usize, u32)> {
    code.as_chunks().0.iter().enumerate().map(|(index, word)| (index * 4, u32::from_le_bytes(*word)))
}

/// Instructions of `AArch64` (Arm Architecture Reference Manual, C4.1).
mod arm {
    use super::STACK_GUARD;

    /// `ret x30`.
    pub(super) const RETURN: u32 = 0xd65f_03c0;

    /// `ldr x16, [x28, #16]`.
    pub(super) const LOAD_STACK_GUARD: u32 = 0xf940_0000 | (STACK_GUARD / 8) << 10 | 28 << 5 | 16;

    /// `bti c`: where indirect calls may lead to is marked.
    pub(super) const CALLED_INDIRECTLY: u32 = 0xd503_245f;

    /// Of `ldr x0, [x0, #place]` the place.
    pub(super) fn loaded_from_first(word: u32) -> Option<u32> {
        (word & 0xffc0_03ff == 0xf940_0000).then_some((word >> 10 & 0xfff) * 8)
    }

    /// `b.cond`.
    pub(super) const fn is_conditional_branch(word: u32) -> bool {
        word & 0xff00_0010 == 0x5400_0000
    }

    /// What a load of a literal refers to: 4, 8 or 16 bytes, at up to 1 MiB from the instruction.
    pub(super) fn constant(at: usize, word: u32) -> Option<std::ops::Range<usize>> {
        if word & 0x3b00_0000 != 0x1800_0000 {
            return None;
        }
        let bytes = match (word >> 26 & 1, word >> 30) {
            (0, 0 | 2) | (1, 0) => 4,
            (0 | 1, 1) => 8,
            (1, 2) => 16,
            // A prefetch, which loads nothing, or no instruction.
            _ => return None,
        };
        // 19 bits with a sign, in words.
        let distance = (word << 8).cast_signed() >> 13;
        let begin = at.checked_add_signed(isize::try_from(distance).ok()?.checked_mul(4)?)?;
        Some(begin..begin + bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_of_each_size_of_frame_ends_at_its_last_jump() {
        // As `go tool objdump` shows them: a small frame, a large one, a huge one.
        for (code, behind) in [
            (&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x20, 0x55, 0xc3][..], Some(6)),
            (&[0x4c, 0x8d, 0x64, 0x24, 0x88, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86, 1, 2, 0, 0, 0x55, 0xc3], Some(15)),
            (&[0x49, 0x89, 0xe4, 0x49, 0x81, 0xec, 0, 0x20, 0, 0, 0x72, 0x10, 0x4d, 0x3b, 0x66, 0x10, 0x76, 0x08, 0x55, 0xc3], Some(18)),
            // Go 1.16 has the goroutine elsewhere; C checks nothing.
            (&[0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x3b, 0x61, 0x10, 0x76, 0x20, 0xc3], None),
            (&[0x55, 0x48, 0x89, 0xe5, 0xc3], None),
            (&[0x49, 0x3b, 0x66, 0x10, 0x76, 0x20], None),
            (&[], None),
        ] {
            assert_eq!(behind_stack_check(code, Machine::X86_64), behind, "{code:x?}");
        }
        // ldr x16, [x28, #16]; cmp sp, x16; b.ls; str x30
        let code: Vec<u8> = [0xf940_0b90_u32, 0xeb30_63ff, 0x5400_0409, 0xf81b_0ffe].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(behind_stack_check(&code, Machine::Aarch64), Some(12));
        assert_eq!(behind_stack_check(&code[..12], Machine::Aarch64), None);
    }

    #[test]
    fn a_member_is_told_by_a_function_that_returns_it_and_does_nothing_else() {
        // As `objdump` shows `gnutls_transport_get_ptr` of 3.7.9; the same with a mark; of two words; of another argument; with an index.
        for (code, member) in [
            (&[0x48, 0x8b, 0x87, 0x00, 0x06, 0x00, 0x00, 0xc3][..], Some(0x600)),
            (&[0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8b, 0x87, 0x00, 0x06, 0x00, 0x00, 0xc3], Some(0x600)),
            (&[0x48, 0x8b, 0x87, 0x00, 0x06, 0x00, 0x00, 0x48, 0x8b, 0x00, 0xc3], None),
            (&[0x48, 0x8b, 0x86, 0x00, 0x06, 0x00, 0x00, 0xc3], None),
            (&[0x48, 0x8b, 0x84, 0xf7, 0x00, 0x06, 0x00, 0x00, 0xc3], None),
            (&[0x48, 0x8b, 0x47, 0xf8, 0xc3], None),
            (&[0x48, 0x8b], None),
            (&[], None),
        ] {
            assert_eq!(member_that_is_returned(code, Machine::X86_64), member, "{code:x?}");
        }
        // bti c; ldr x0, [x0, #1536]; ret
        let code: Vec<u8> = [0xd503_245f_u32, 0xf943_0000, 0xd65f_03c0].into_iter().flat_map(u32::to_le_bytes).collect();
        for begin in [0, 4] {
            assert_eq!(member_that_is_returned(&code[begin..], Machine::Aarch64), Some(1536));
        }
        assert_eq!(member_that_is_returned(&code[..8], Machine::Aarch64), None);
    }

    #[test]
    fn what_looks_like_a_return_within_another_instruction_is_none() {
        // mov eax, 0xc3c3c3c3; ret; int3; int3
        let code = [0xb8, 0xc3, 0xc3, 0xc3, 0xc3, 0xc3, 0xcc, 0xcc];
        assert_eq!(returns(&code, Machine::X86_64), Some(vec![5]));
        assert_eq!(returns(&code[..5], Machine::X86_64), None, "no return");
        assert_eq!(returns(&code[..4], Machine::X86_64), None, "cut");
        // push cs is none in 64 bits.
        assert_eq!(returns(&[0x0e, 0xc3], Machine::X86_64), None);
    }

    #[test]
    fn a_constant_that_looks_like_a_return_is_none() {
        // ldr x0, +8; ret; .quad that holds two of them; ldr w1, -4 (the second half again)
        let load_x0 = 0x5800_0040_u32;
        let words = [load_x0, arm::RETURN, arm::RETURN, arm::RETURN, 0x18ff_ffe1];
        let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(arm::constant(0, load_x0), Some(8..16));
        assert_eq!(arm::constant(16, 0x18ff_ffe1), Some(12..16));
        assert_eq!(returns(&code, Machine::Aarch64), Some(vec![4]));
        assert_eq!(returns(&code[..19], Machine::Aarch64), None);
    }

    proptest::proptest! {
        #[test]
        fn any_code_is_gone_through(code: Vec<u8>) {
            for machine in [Machine::X86_64, Machine::Aarch64] {
                for at in returns(&code, machine).into_iter().flatten().chain(behind_stack_check(&code, machine)) {
                    assert!(at < code.len());
                }
            }
        }
    }
}
