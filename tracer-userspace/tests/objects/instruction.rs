//! Instructions of eBPF (`struct bpf_insn`, `include/uapi/linux/bpf.h`).

/// One instruction, or the second half of a long one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) to: u8,
    pub(crate) from: u8,
    pub(crate) offset: i16,
    pub(crate) value: i32,
}

/// Classes of instructions: the low bits of their codes.
pub(crate) mod class {
    pub(crate) const LOAD: u8 = 0;
    pub(crate) const LOAD_FROM: u8 = 1;
    pub(crate) const STORE: u8 = 2;
    pub(crate) const STORE_FROM: u8 = 3;
    pub(crate) const ARITHMETIC_32: u8 = 4;
    pub(crate) const JUMP: u8 = 5;
    pub(crate) const JUMP_32: u8 = 6;
    pub(crate) const ARITHMETIC: u8 = 7;
}

/// Arithmetic operations: the high bits of their codes.
pub(crate) mod operation {
    pub(crate) const ADD: u8 = 0x00;
    pub(crate) const SUBTRACT: u8 = 0x10;
    pub(crate) const OR: u8 = 0x40;
    pub(crate) const AND: u8 = 0x50;
    pub(crate) const SHIFT_LEFT: u8 = 0x60;
    pub(crate) const SHIFT_RIGHT: u8 = 0x70;
    pub(crate) const NEGATE: u8 = 0x80;
    pub(crate) const MOVE: u8 = 0xb0;
    pub(crate) const BYTE_ORDER: u8 = 0xd0;
}

/// Conditions of jumps: the high bits of their codes.
pub(crate) mod condition {
    pub(crate) const EQUAL: u8 = 0x10;
    pub(crate) const GREATER: u8 = 0x20;
    pub(crate) const GREATER_OR_EQUAL: u8 = 0x30;
    pub(crate) const NOT_EQUAL: u8 = 0x50;
    pub(crate) const GREATER_SIGNED: u8 = 0x60;
    pub(crate) const GREATER_OR_EQUAL_SIGNED: u8 = 0x70;
    pub(crate) const LESS: u8 = 0xa0;
    pub(crate) const LESS_OR_EQUAL: u8 = 0xb0;
    pub(crate) const LESS_SIGNED: u8 = 0xc0;
    pub(crate) const LESS_OR_EQUAL_SIGNED: u8 = 0xd0;
}

/// The register that points to the stack.
pub(crate) const STACK: u8 = 10;

/// Codes of single instructions.
pub(crate) const LOAD_LONG: u8 = 0x18;
pub(crate) const CALL: u8 = 0x85;
pub(crate) const EXIT: u8 = 0x95;
pub(crate) const GO: u8 = 0x05;
pub(crate) const COPY: u8 = 0xbf;
pub(crate) const ADD_NUMBER: u8 = 0x07;

impl Instruction {
    pub(crate) fn read(bytes: [u8; 8]) -> Self {
        let [code, registers, o0, o1, v0, v1, v2, v3] = bytes;
        Self {
            code,
            to: registers & 15,
            from: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            value: i32::from_le_bytes([v0, v1, v2, v3]),
        }
    }

    /// One of the classes of [`class`].
    pub(crate) fn class(self) -> u8 {
        self.code & 7
    }

    /// What it does within its class: one of [`operation`] or [`condition`].
    pub(crate) fn operation(self) -> u8 {
        self.code & 0xf0
    }

    /// The second operand is a register, and not the number in the instruction.
    pub(crate) fn takes_register(self) -> bool {
        self.code & 8 != 0
    }

    /// Bytes that a load or store moves.
    pub(crate) fn bytes(self) -> i64 {
        match self.code & 0x18 {
            0 => 4,
            8 => 2,
            0x10 => 1,
            _ => 8,
        }
    }
}
