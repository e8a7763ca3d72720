/* Another process, seen and changed from outside: one instruction after the other, and with breakpoints. */
#include "torture.h"
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

/* Ten instructions, of which one is a system call; `steps` are the addresses at which each begins. */
void steps(void);
extern unsigned char step[], step_end[];
asm(".text; .globl steps, step, step_end; steps: step: xor %eax, %eax; mov $39, %eax; push %rbx; syscall; mov %rax, %rbx\n"
    "mov $3, %ecx; 1: loop 1b; pop %rbx; nop; step_end: ret");
enum { STEPS = 5 + 1 + 3 + 2 };

static int stopped(pid_t child)
{
    int status;
    return waitpid(child, &status, 0) == child && WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
}

static void single_steps(pid_t child)
{
    struct user_regs_struct r;
    long good = 0;
    for (int round = 0; round < 20; round++) {
        ptrace(PTRACE_GETREGS, child, 0, &r);
        r.rip = (long)step;
        r.orig_rax = -1;
        ptrace(PTRACE_SETREGS, child, 0, &r);
        int n = 0;
        while (r.rip != (unsigned long)step_end && n < 100) {
            ptrace(PTRACE_SINGLESTEP, child, 0, 0);
            if (stopped(child) != SIGTRAP) break;
            ptrace(PTRACE_GETREGS, child, 0, &r);
            n++;
        }
        good += n == STEPS && r.rax == (unsigned long)child && r.rcx == 0;
    }
    verdict("single steps", good, 20);
}

/* int3 written into a process from outside, met, and taken away again. */
static void breakpoints(pid_t child)
{
    struct user_regs_struct r;
    long good = 0;
    for (int round = 0; round < 100; round++) {
        long at = (long)(round & 1 ? step_end - 1 : step), code = ptrace(PTRACE_PEEKTEXT, child, at, 0);
        ptrace(PTRACE_GETREGS, child, 0, &r);
        r.rip = (long)step;
        r.orig_rax = -1;
        ptrace(PTRACE_SETREGS, child, 0, &r);
        ptrace(PTRACE_POKETEXT, child, at, (code & ~0xffl) | 0xcc);
        ptrace(PTRACE_CONT, child, 0, 0);
        int signal = stopped(child);
        ptrace(PTRACE_GETREGS, child, 0, &r);
        good += signal == SIGTRAP && r.rip == (unsigned long)at + 1;
        ptrace(PTRACE_POKETEXT, child, at, code);
    }
    verdict("breakpoints in another process", good, 100);
}

void traced(void)
{
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (;;) steps();
    }
    if (stopped(child) == SIGSTOP) {
        single_steps(child);
        breakpoints(child);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    verdict("a process which was traced is still as it was", call((void *)steps), getpid());
}
