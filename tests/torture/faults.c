/* Faults: each must arrive as the right signal, with the right number and the right address, two hundred times. */
#include "torture.h"
#include <ucontext.h>

static sigjmp_buf back;
static volatile struct { int signal, code; long vector, error, address, ip; } seen;

static void caught(int number, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    seen.signal = number;
    seen.code = info->si_code;
    seen.vector = r[REG_TRAPNO];
    seen.error = r[REG_ERR];
    seen.address = (long)info->si_addr;
    seen.ip = r[REG_RIP];
    asm volatile("fninit");
    siglongjmp(back, 1);
}

static unsigned char *two; /* a page which is there, and one which isn't */
static unsigned char *code_page;

static void bad_load(void) { *(volatile int *)8; }
static void bad_store(void) { *(volatile int *)8 = 1; }
static void bad_jump(void) { ((void (*)(void))8)(); }
static void half_a_load(void) { *(volatile long *)(two + 4092); }
static void half_a_store(void) { *(volatile long *)(two + 4092) = -1; }
static void half_an_instruction(void) { ((void (*)(void))(two + 4095))(); }
static void read_only(void) { *(volatile char *)code_page, *(volatile char *)code_page = 1; }
static void not_executable(void) { ((void (*)(void))two)(); }
static void kernel_load(void) { *(volatile int *)0xffffffff81000000; }
static void divide(void) { asm volatile("xor %%eax, %%eax; cltd; div %%eax" ::: "eax", "edx"); }
static void overflow(void) { asm volatile("mov $1, %%edx; mov $1, %%ecx; div %%ecx" ::: "eax", "ecx", "edx"); }
static void undefined(void) { asm volatile("ud2"); }
static void locked(void) { asm volatile(".byte 0xf0; btc %%esp, %%ecx" ::: "ecx"); }
static void cli(void) { asm volatile("cli"); }
static void hlt(void) { asm volatile("hlt"); }
static void out(void) { asm volatile("out %%al, $0x80" ::: "memory"); }
static void in(void) { asm volatile("in $0x80, %%al" ::: "eax"); }
static void cr0(void) { asm volatile("mov %%rax, %%cr0" ::: "memory"); }
static void wrmsr(void) { asm volatile("mov $0xc0000080, %%ecx; wrmsr" ::: "ecx", "memory"); }
static void invlpg(void) { asm volatile("invlpg (%%rsp)" ::: "memory"); }
static void swapgs(void) { asm volatile("swapgs" ::: "memory"); }
static void sti(void) { asm volatile("sti" ::: "memory"); }
static void clts(void) { asm volatile("clts" ::: "memory"); }
static void lidt(void) { asm volatile("lidt (%%rsp)" ::: "memory"); }
static void ltr(void) { asm volatile("mov $0x40, %%eax; ltr %%ax" ::: "eax", "memory"); }
static void dr7(void) { asm volatile("mov %%rax, %%dr7" ::: "memory"); }
static void wbinvd(void) { asm volatile("wbinvd" ::: "memory"); }
static void rdmsr(void) { asm volatile("mov $0xc0000080, %%ecx; rdmsr" ::: "ecx", "eax", "edx", "memory"); }
static void sysret(void) { asm volatile("sysretq" ::: "rcx", "r11", "memory"); }
static void bad_selector(void) { asm volatile("mov $0x1237, %%eax; mov %%eax, %%gs" ::: "eax"); }
static void breakpoint(void) { asm volatile("int3"); }
static void int3_two_bytes(void) { asm volatile(".byte 0xcd, 3"); }
static void icebp(void) { asm volatile(".byte 0xf1"); }
static void trap_flag(void) { asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop" ::: "memory", "cc"); }
static void int_0(void) { asm volatile("int $0"); }
static void int_14(void) { asm volatile("int $14"); }
static void int_ec(void) { asm volatile("int $0xec"); }
static void no_gate(void) { asm volatile("int $0x81"); }
static void not_canonical(void) { *(volatile int *)0x8000000000000000; }
static void jump_not_canonical(void) { ((void (*)(void))0x8000000000000000)(); }
static void x87(void)
{
    unsigned short all_but_division = 0x37b;
    asm volatile("fninit; fldcw %0; fldz; fld1; fdivp %%st, %%st(1); fwait" ::"m"(all_but_division));
}
enum { ANY = -1 };
static const struct fault { void (*f)(void); int signal, vector; long error, address; const char *name; } all[] = {
    { bad_load, SIGSEGV, 14, 4, 8, "a load from nowhere" },
    { bad_store, SIGSEGV, 14, 6, 8, "a store to nowhere" },
    { bad_jump, SIGSEGV, 14, 0x14, 8, "a jump to nowhere" },
    { half_a_load, SIGSEGV, 14, 4, ANY, "a load of which half is nowhere" },
    { half_a_store, SIGSEGV, 14, 6, ANY, "a store of which half is nowhere" },
    { half_an_instruction, SIGSEGV, 14, 0x14, ANY, "an instruction of which half is nowhere" },
    { read_only, SIGSEGV, 14, 7, ANY, "a store to what can only be read" },
    { not_executable, SIGSEGV, 14, 0x15, ANY, "a jump to what is not code" },
    { kernel_load, SIGSEGV, ANY, ANY, ANY, "a load from the kernel" },
    { divide, SIGFPE, 0, 0, ANY, "a division by zero" },
    { overflow, SIGFPE, 0, 0, ANY, "a division whose result is too large" },
    { undefined, SIGILL, 6, 0, ANY, "ud2" },
    { locked, SIGILL, 6, 0, ANY, "lock where it must not be" },
    { cli, SIGSEGV, 13, 0, 0, "cli" },
    { hlt, SIGSEGV, 13, 0, 0, "hlt" },
    { out, SIGSEGV, 13, 0, 0, "out" },
    { in, SIGSEGV, 13, 0, 0, "in" },
    { cr0, SIGSEGV, 13, 0, 0, "mov to cr0" },
    { wrmsr, SIGSEGV, 13, 0, 0, "wrmsr" },
    { invlpg, SIGSEGV, 13, 0, 0, "invlpg" },
    { swapgs, SIGSEGV, 13, 0, 0, "swapgs" },
    { sti, SIGSEGV, 13, 0, 0, "sti" },
    { clts, SIGSEGV, 13, 0, 0, "clts" },
    { lidt, SIGSEGV, 13, 0, 0, "lidt" },
    { ltr, SIGSEGV, 13, 0, 0, "ltr" },
    { dr7, SIGSEGV, 13, 0, 0, "mov to dr7" },
    { wbinvd, SIGSEGV, 13, 0, 0, "wbinvd" },
    { rdmsr, SIGSEGV, 13, 0, 0, "rdmsr" },
    { sysret, SIGSEGV, 13, 0, 0, "sysret" },
    { bad_selector, SIGSEGV, 13, 0x1234, 0, "a selector of no segment" },
    { breakpoint, SIGTRAP, 3, 0, 0, "int3" },
    { int3_two_bytes, SIGTRAP, 3, 0, 0, "int $3" },
    { icebp, SIGTRAP, 1, 0, ANY, "int1" },
    { trap_flag, SIGTRAP, 1, 0, ANY, "the trap flag" },
    { int_0, SIGSEGV, 13, 0 * 8 + 2, 0, "int $0, which is the processor's own" },
    { int_14, SIGSEGV, 13, 14 * 8 + 2, 0, "int $14, which is the processor's own" },
    { int_ec, SIGSEGV, 13, 0xec * 8 + 2, 0, "int $0xec, which is an interrupt controller's" },
    { no_gate, SIGSEGV, 13, 0x81 * 8 + 2, 0, "int $0x81, through an empty gate" },
    { not_canonical, SIGSEGV, 13, 0, 0, "an address which is no address" },
    { jump_not_canonical, SIGSEGV, 13, 0, 0, "a jump to what is no address" },
    { x87, SIGFPE, 16, 0, ANY, "a division by zero in x87" },
};

/* A word for all we know of it, so that one comparison does. */
static long word(int signal, long vector, long error, long address)
{
    return (long)signal << 56 | (vector & 0xff) << 48 | (error & 0xffff) << 32 | (address & 0xffffffff);
}

void faults(void)
{
    static const int numbers[] = { SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGBUS };
    struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO }, old[5];
    two = pages(2, RWX, OWN, -1);
    code_page = pages(1, RX, OWN, -1);
    two[4095] = 0x0f; /* the first byte of ud2, of syscall, of many */
    mprotect(two, 4096, RW);
    munmap(two + 4096, 4096);
    for (int n = 0; n < 5; n++) sigaction(numbers[n], &action, &old[n]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct fault *f = &all[i];
        mprotect(two, 4096, f->f == half_an_instruction ? RX : RW);
        long expected = word(f->signal, f->vector, f->error, f->address), got = expected;
        for (int n = 0; n < 200 && got == expected; n++) {
            seen.signal = 0;
            if (!sigsetjmp(back, 1)) f->f();
            got = word(seen.signal, f->vector == ANY ? ANY : seen.vector, f->error == ANY ? ANY : seen.error,
                       f->address == ANY ? ANY : seen.address);
        }
        verdict(f->name, got, expected);
    }
    for (int n = 0; n < 5; n++) sigaction(numbers[n], &old[n], NULL);
}
