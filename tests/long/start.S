/* The Guest's way in, and that of its interrupts. */
    .globl _start, vectors, load_table, go_on
_start:
    lea stack_top(%rip), %rsp
    xor %ebp, %ebp
    call main

    .balign 16
vectors:                            /* 256 entries of 16 bytes: a number, and where an error code would be */
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    pushq $0
    .endif
    pushq $vector
    jmp common
    .set vector, vector + 1
    .endr

common:
    push %rax; push %rcx; push %rdx; push %rbx; push %rbp; push %rsi; push %rdi
    push %r8; push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15
    mov %rsp, %rdi
    cld
    call interrupted
    pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8
    pop %rdi; pop %rsi; pop %rbp; pop %rbx; pop %rdx; pop %rcx; pop %rax
    add $16, %rsp
    iretq

load_table:
    lidt (%rdi)
    ret

go_on:                              /* forget what was going on, and take the next command */
    lea stack_top(%rip), %rsp
    sti
    call serve

    .bss
    .balign 16
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
