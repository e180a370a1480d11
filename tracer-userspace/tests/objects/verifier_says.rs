//! What is known of 4.14's verifier from programs that were tried on such a kernel, and the verifier here held against it.

use crate::instruction::{ADD_NUMBER, CALL, COPY, EXIT, GO, Instruction, LOAD_LONG, STACK};
use crate::verifier::{Cost, EVENTS, Map, PROGRAMS, Program, Refusal, verify};

const ARRAY: usize = 0;
const OUTPUT: usize = 1;

const MAPS: [Map; 3] = [
    Map { kind: 2, key_bytes: 4, value_bytes: 64 },
    Map { kind: EVENTS, key_bytes: 4, value_bytes: 4 },
    Map { kind: PROGRAMS, key_bytes: 4, value_bytes: 4 },
];

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, to, from, offset, value }
}

fn copy(to: u8, from: u8) -> Vec<Instruction> {
    vec![instruction(COPY, to, from, 0, 0)]
}

fn set(to: u8, value: i32) -> Vec<Instruction> {
    vec![instruction(0xb7, to, 0, 0, value)]
}

fn add(to: u8, value: i32) -> Vec<Instruction> {
    vec![instruction(ADD_NUMBER, to, 0, 0, value)]
}

fn and(to: u8, value: i32) -> Vec<Instruction> {
    vec![instruction(0x57, to, 0, 0, value)]
}

/// Eight bytes from memory, or to it.
fn load(to: u8, from: u8, offset: i16) -> Vec<Instruction> {
    vec![instruction(0x79, to, from, offset, 0)]
}

fn store(to: u8, offset: i16, from: u8) -> Vec<Instruction> {
    vec![instruction(0x7b, to, from, offset, 0)]
}

fn call(helper: i32) -> Vec<Instruction> {
    vec![instruction(CALL, 0, 0, 0, helper)]
}

/// Jumps over so many instructions if the register is this number.
fn skip_if(register: u8, value: i32, over: i16) -> Vec<Instruction> {
    vec![instruction(0x15, register, 0, over, value)]
}

/// A map, as its number in the second half: found again by [`refusal`].
fn map(to: u8, map: usize) -> Vec<Instruction> {
    vec![instruction(LOAD_LONG, to, 1, 0, i32::try_from(map).unwrap()), instruction(0, 0, 0, 0, 0)]
}

fn end() -> Vec<Instruction> {
    [set(0, 0), vec![instruction(EXIT, 0, 0, 0, 0)]].concat()
}

/// Keeps the context in register 6, and a value of the array in 7.
fn found() -> Vec<Instruction> {
    let key = vec![instruction(0x62, STACK, 0, -4, 0)];
    [
        copy(6, 1),
        key,
        map(1, ARRAY),
        copy(2, STACK),
        add(2, -4),
        call(1),
        skip_if(0, 0, 1),
        vec![instruction(GO, 0, 0, 2, 0)],
        end(),
        copy(7, 0),
    ]
    .concat()
}

fn outcome(code: &[Instruction]) -> Result<Cost, Refusal> {
    let is_map = |(_, instruction): &(usize, &Instruction)| instruction.code == LOAD_LONG && instruction.from == 1;
    let loads = code.iter().enumerate().filter(is_map).map(|(at, load)| (at, usize::try_from(load.value).unwrap())).collect();
    verify(&Program { code, maps: &MAPS, loads: &loads })
}

fn refusal(code: &[Instruction]) -> String {
    outcome(code).err().map_or_else(String::new, |refusal| refusal.reason)
}

/// Hands the first bytes of the value to `perf_event_output`: as many as register 5 says.
fn output() -> Vec<Instruction> {
    [copy(1, 6), map(2, OUTPUT), set(3, -1), copy(4, 7), call(25)].concat()
}

#[test]
fn what_was_seen_to_be_refused_by_a_4_14_kernel_is_refused() {
    let size = load(5, 7, 0);
    for (name, code, wanted) in [
        ("a size that is masked", vec![found(), size.clone(), and(5, 31), output(), end()], "may be 0"),
        ("the same after a test", vec![found(), size.clone(), and(5, 31), skip_if(5, 0, 6), output(), end()], "may be 0"),
        ("one that is not", vec![found(), size.clone(), output(), end()], "may be negative"),
        ("a size beyond the value", vec![found(), size.clone(), and(5, 127), add(5, 1), output(), end()], "reaches 128 bytes"),
        ("a key in a map", vec![found(), map(1, ARRAY), copy(2, 7), call(1), end()], "in place of a key"),
        (
            "a value in a map",
            vec![found(), map(1, ARRAY), copy(2, STACK), add(2, -4), copy(3, 7), set(4, 0), call(2), end()],
            "in place of a key",
        ),
        ("the context, moved", vec![add(1, 8), load(2, 1, 0), end()], "pointer that was moved"),
        ("the context's end", vec![load(2, 1, 168), end()], "at 168 of the context"),
        (
            "a value that may be null",
            vec![
                copy(6, 1),
                vec![instruction(0x62, STACK, 0, -4, 0)],
                map(1, ARRAY),
                copy(2, STACK),
                add(2, -4),
                call(1),
                load(1, 0, 0),
                end(),
            ],
            "reads memory through Found",
        ),
        ("stack that is not written", vec![load(1, STACK, -8), end()], "was not written"),
        (
            "stack that is written on one way",
            vec![load(2, 1, 0), skip_if(2, 0, 1), store(STACK, -8, 2), load(1, STACK, -8), end()],
            "was not written",
        ),
        ("a program without an end's value", vec![vec![instruction(EXIT, 0, 0, 0, 0)]], "register 0, which holds nothing"),
        ("a helper of later kernels", vec![call(115), end()], "helper 115"),
    ] {
        let code = code.concat();
        assert!(refusal(&code).contains(wanted), "{name}: {}", refusal(&code));
    }
}

#[test]
fn what_was_seen_to_be_taken_by_a_4_14_kernel_is_taken() {
    let proof = [load(5, 7, 0), add(5, -1), and(5, 31), add(5, 1)].concat();
    for (name, code) in [
        ("nothing", end()),
        ("a size with its proof", [found(), proof.clone(), output(), end()].concat()),
        (
            "memory that a helper writes",
            [copy(3, 1), copy(1, STACK), add(1, -16), set(2, 16), call(4), load(1, STACK, -16), end()].concat(),
        ),
        ("a pointer on the stack", [copy(6, 1), store(STACK, -8, 6), load(1, STACK, -8), load(2, 1, 8), end()].concat()),
        ("a tail call", [found(), copy(1, 6), map(2, 2), set(3, 0), call(12), end()].concat()),
        (
            "a place within a value",
            [found(), load(2, 7, 0), and(2, 15), vec![instruction(0x0f, 7, 2, 0, 0)], load(3, 7, 40), end()].concat(),
        ),
    ] {
        assert_eq!(refusal(&code), "", "{name}");
    }
}

/// Linux 5.10 follows such a number; 4.14 and 5.4 do not, and refused the copying program for it.
#[test]
fn a_number_that_was_kept_on_the_stack_has_lost_its_bounds() {
    let proof = [load(5, 7, 0), add(5, -1), and(5, 31), add(5, 1)].concat();
    let code = [found(), proof, store(STACK, -16, 5), load(5, STACK, -16), output(), end()].concat();
    assert_eq!(refusal(&code), "hands over a size that may be negative");
}

/// What 4.14 knows of `r2` in the second test is what it knew before the first: both ways are gone, and the second reads too much.
#[test]
fn the_second_test_of_a_number_is_no_proof() {
    let code = [
        load(2, 1, 0),
        skip_if(2, 0, 1),
        vec![instruction(GO, 0, 0, 1, 0)],
        store(STACK, -8, 2),
        skip_if(2, 0, 2),
        end(),
        load(3, STACK, -8),
        end(),
    ];
    assert!(refusal(&code.concat()).contains("was not written"));
}

#[test]
fn ways_that_come_to_the_same_are_looked_at_once() {
    let fork = |count: usize| {
        [copy(6, 1), (0..count).flat_map(|_| [load(2, 6, 0), skip_if(2, 0, 1), set(2, 5)].concat()).collect(), end()].concat()
    };
    let cost = outcome(&fork(200)).unwrap();
    assert!(cost.processed < 1_500, "{cost:?}");
    // What differs, and is read in the end, keeps them apart.
    let apart = (0..100).flat_map(|step| [load(2, 6, 0), skip_if(2, 0, 1), set(7, step)].concat());
    let code = [copy(6, 1), set(7, -1), apart.collect(), copy(8, 7).repeat(1_500), end()].concat();
    assert!(refusal(&code).contains("more than 131072 instructions"), "{}", refusal(&code));
}
