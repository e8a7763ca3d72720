#define KERNEL_BASE 0xC0000000
        .section .text.start, "ax"
        .globl start_physical
        .set start_physical, start - KERNEL_BASE
start:
        movl    $1, %eax                        /* LGUEST_INIT */
        movl    $lguest_data - KERNEL_BASE, %ebx
        vmcall
        movl    $boot_stack_top, %esp           /* from here on we live above KERNEL_BASE */
        movl    $main, %eax
        jmp     *%eax

        .text
        .globl hcall
hcall:  pushl   %ebx                            /* u32 hcall(number, a, b, c) */
        movl    8(%esp), %eax
        movl    12(%esp), %ebx
        movl    16(%esp), %ecx
        movl    20(%esp), %edx
        incl    hypercalls
        vmcall                                  /* the Host rewrites this on first use */
        popl    %ebx
        ret

        .globl irq_enable
irq_enable:
        movl    $0x200, lguest_data             /* irq_enabled is the first field */
        testl   $0x200, lguest_data + 20        /* irq_pending */
        jz      1f
        movl    $19, %eax                       /* SEND_INTERRUPTS */
        incl    hypercalls
        vmcall
1:      ret

/* One stub per vector, 16 bytes apart: push what the CPU left out, and the vector. */
        .macro  stub vector
        .balign 16
        .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17)
        pushl   $0                              /* no error code: make one */
        .endif
        pushl   $\vector
        jmp     common
        .endm

        .balign 16
        .globl stubs
stubs:  .set    n, 0
        .rept   64                              /* 32 traps, 32 interrupts */
        stub    n
        .set    n, n + 1
        .endr
        .globl syscall_stub
        .balign 16
syscall_stub:
        pushl   $0
        pushl   $0x80

/* Everything comes through here; `trap` in C sees the stack as a struct frame. */
common: pusha
        pushl   %ds
        pushl   %es
        movl    $0x69, %eax                     /* ring 3 may have left anything in these */
        movl    %eax, %ds
        movl    %eax, %es
        cld
        pushl   %esp
        call    trap
        addl    $4, %esp
        popl    %es
        popl    %ds
        popa
        addl    $8, %esp                        /* vector and error code */

        .globl noirq_start, noirq_end
        pushl   %eax
        movl    12(%esp), %eax                  /* the eflags which iret will pop */
        andl    $0x200, %eax
noirq_start:
        movl    %eax, %ss:lguest_data           /* %ds may be ring 3's already: use the stack's */
        popl    %eax
        iret
noirq_end:

        .globl enter_user, leave_user
enter_user:                                     /* u32 enter_user(eip, esp) */
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    20(%esp), %eax
        movl    24(%esp), %edx
        movl    %esp, kernel_esp
        movl    $0x7b, %ecx
        movl    %ecx, %ds
        movl    %ecx, %es
        pushl   %ecx                            /* ss, esp, eflags, cs, eip: as if ring 3 had */
        pushl   %edx                            /* trapped and we went back to it */
        pushl   $0x202
        pushl   $0x73
        pushl   %eax
        xorl    %eax, %eax
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        iret
leave_user:                                     /* void leave_user(code): enter_user returns code */
        movl    4(%esp), %eax
        movl    kernel_esp, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret

        .bss
        .balign 4096
        .globl trap_stack_top
        .skip   4096                            /* where ring 3 lands: SET_STACK wants whole pages */
trap_stack_top:
        .skip   8192                            /* where everything else runs */
boot_stack_top:
kernel_esp:
        .long   0
