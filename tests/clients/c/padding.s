# Comes before the code of a library, which moves by as much.
    .text
    .globl padding
    .type padding, @function
padding:
    .skip 70000, 0x90
    ret
    .section .note.GNU-stack, "", @progbits
