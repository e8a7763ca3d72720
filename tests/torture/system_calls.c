/* The ways into the kernel and back, and what must not change on the way. */
#include "torture.h"
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

/* Six registers which a call of the kernel leaves alone, and two which it doesn't. */
static void registers(void)
{
    long good = 0;
    for (long i = 0; i < 20000; i++) {
        long rax = SYS_getppid, rcx, r11, here, sum;
        asm volatile("lea (%5), %%r8; lea 1(%5), %%r9; lea 2(%5), %%r10; lea 3(%5), %%r12; lea 4(%5), %%r13\n"
                     "stc; syscall; 1: pushf; pop %%rdx; lea 1b(%%rip), %3\n"
                     "lea (%%r8, %%r9), %4; add %%r10, %4; add %%r12, %4; add %%r13, %4; and $1, %%edx; add %%rdx, %4"
                     : "+a"(rax), "=c"(rcx), "=r"(here), "=&r"(here), "=&r"(sum)
                     : "r"(i)
                     : "r8", "r9", "r10", "r11", "r12", "r13", "rdx", "cc", "memory");
        (void)r11;
        good += rax == getppid() && rcx == here && sum == 5 * i + 11;
    }
    verdict("registers and the carry flag in a system call", good, 20000);
}

/* The kernel exchanges GS with its own whenever it is entered: by calls, faults and interrupts. */
static volatile int faulted;
static void on_fault(int number, siginfo_t *info, void *context)
{
    faulted++;
    mprotect((void *)((long)info->si_addr & -4096), 4096, RW);
}

static void gs(void)
{
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO }, old;
    long *there = pages(1, RW, OWN, -1), *here = pages(1, RW, OWN, -1), good = 0;
    there[0] = 0x1234;
    sigaction(SIGSEGV, &action, &old);
    for (int i = 0; i < 2000; i++) {
        long before, after;
        syscall(SYS_arch_prctl, ARCH_SET_GS, there);
        asm volatile("mov %%gs:0, %0" : "=r"(before));
        mprotect(here, 4096, PROT_NONE);
        asm volatile("movq $1, (%1); mov %%gs:0, %0" : "=r"(after) : "r"(here) : "memory"); /* faults */
        good += before == 0x1234 && after == 0x1234 && faulted == i + 1;
    }
    sigaction(SIGSEGV, &old, NULL);
    verdict("GS in system calls and faults", good, 2000);
    if (getauxval(AT_HWCAP2) & 2) { /* the kernel lets us */
        for (int i = 0; i < 2000; i++) {
            long base = (long)(there + i % 100), found = 0;
            asm volatile("wrgsbase %1; mov %2, %%eax; syscall; rdgsbase %0"
                         : "=&r"(found) : "r"(base), "i"(SYS_sched_yield) : "rax", "rcx", "r11", "memory");
            good += found == base;
        }
        verdict("GS written without the kernel", good, 4000);
    }
    struct user_desc segment = { 3, (unsigned)(long)mmap(NULL, 4096, RW, OWN | MAP_32BIT, -1, 0), 0xfffff, 1, 0, 0, 1, 0, 1 };
    *(long *)(long)segment.base_addr = 0x5678;
    if (!syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment)) {
        long found = 0;
        good = 0;
        for (int i = 0; i < 500; i++) {
            asm volatile("mov %1, %%gs; mov %2, %%eax; syscall; mov %%gs:0, %0"
                         : "=&r"(found) : "r"(3 << 3 | 7), "i"(SYS_sched_yield) : "rax", "rcx", "r11", "memory");
            good += found == 0x5678;
        }
        verdict("GS from a local table", good, 500);
    }
    asm volatile("mov %0, %%gs" ::"r"(0));
}

static long nanoseconds(const struct timespec *t) { return t->tv_sec * 1000000000 + t->tv_nsec; }

static void *watch(void *none)
{
    struct timespec t;
    long good = 0, last = 0;
    for (int i = 0; i < 20000; i++) {
        if (i % 50) clock_gettime(CLOCK_MONOTONIC, &t); /* in the vdso, without the kernel */
        else syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
        good += nanoseconds(&t) >= last;
        last = nanoseconds(&t);
    }
    return (void *)good;
}

static void clocks(void)
{
    pthread_t t[3];
    long good = 0;
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, watch, NULL);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(t[i], &result);
        good += (long)result;
    }
    verdict("a clock which never goes back, with the kernel and without", good, 60000);
    struct timespec before, after, pause = { 0, 5000000 };
    good = 0;
    for (int i = 0; i < 10; i++) {
        clock_gettime(CLOCK_MONOTONIC, &before);
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &after);
        good += nanoseconds(&after) - nanoseconds(&before) >= 5000000;
    }
    verdict("sleep which is as long as it should be", good, 10);
}

/* A page of the kernel's at a fixed address, which can be run and not be read: each call is a fault. */
static void vsyscall(void)
{
    char line[200];
    int there = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) there |= strstr(line, "[vsyscall]") != NULL;
    if (maps) fclose(maps);
    if (!there) return;
    long good = 0;
    for (int i = 0; i < 1000; i++) {
        time_t before = time(NULL), now = ((time_t(*)(time_t *))0xffffffffff600400)(NULL), after = time(NULL);
        good += now >= before - 1 && now <= after + 1;
    }
    verdict("vsyscall", good, 1000);
}

/* 32 bits: getpid is number 20. A kernel may have been built without; then `int $0x80` is a fault. */
static sigjmp_buf back;
static void refused(int number) { siglongjmp(back, number); }

static void old_calls(void)
{
    signal(SIGSEGV, refused);
    if (sigsetjmp(back, 1)) {
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    long good = 0;
    for (int i = 0; i < 5000; i++) {
        long rax = 20, rbx = i, r12 = 0;
        asm volatile("mov %2, %%r12; int $0x80; mov %%r12, %1" : "+a"(rax), "=r"(r12), "+b"(rbx)::"r12", "r8", "r9", "r10",
                     "r11", "memory");
        good += rax == getpid() && rbx == i && r12 == i;
    }
    signal(SIGSEGV, SIG_DFL);
    verdict("int $0x80 from 64-bit code", good, 5000);
}

/* A far call into a segment of 32 bits, there some lines of old code, and back. The stack must be in the lower 4 GB. */
static long in_32_bits(const unsigned char *program, int length)
{
    static unsigned char *low;
    if (!low) low = pages(2, RWX, OWN | MAP_32BIT, -1);
    memcpy(low, program, length);
    struct { unsigned offset; unsigned short selector; } __attribute__((packed)) to = { (unsigned)(long)low, 0x23 };
    memcpy(low + 4000, &to, sizeof to);
    long rax, stack = (long)low + 8192;
    asm volatile("push %%rbp; mov %%rsp, -8(%1); lea -16(%1), %%rsp; push %1; lcall *(%2); pop %1; mov -8(%1), %%rsp; pop %%rbp"
                 : "=&a"(rax), "+D"(stack) : "S"(low + 4000)
                 : "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    return rax & 0xffffffff;
}

static void compatible(void)
{
    static const unsigned char by_int[] = { 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xcb };
    static const unsigned char no_such[] = { 0x0f, 0x0b };
    static const unsigned char bcd[] = { 0xb8, 0x15, 0, 0, 0, 0x04, 0x27, 0x27, 0xcb }; /* 15 + 27, DAA: 42 */
    long good = 0, pid = getpid();
    signal(SIGSEGV, refused);
    signal(SIGILL, refused);
    int number = sigsetjmp(back, 1);
    if (!number)
        for (int i = 0; i < 1000; i++) good += in_32_bits(by_int, sizeof by_int) == pid;
    if (number) return; /* no segments of 32 bits here */
    verdict("int $0x80 from 32-bit code", good, 1000);
    verdict("decimal arithmetic, which only 32-bit code has", in_32_bits(bcd, sizeof bcd), 0x42);
    /* What a kernel answers to these goes to a page which only 32-bit programs have. So they end in a signal, but of us alone. */
    static const unsigned char by_syscall[] = { 0xb8, 20, 0, 0, 0, 0x89, 0xe5, 0x0f, 0x05, 0xcb };
    static const unsigned char by_sysenter[] = { 0xb8, 20, 0, 0, 0, 0x89, 0xe5, 0x0f, 0x34, 0xcb };
    good = 0;
    for (int i = 0; i < 200; i++) {
        number = sigsetjmp(back, 1);
        if (!number) in_32_bits(by_syscall, sizeof by_syscall);
        good += number != 0;
        number = sigsetjmp(back, 1);
        if (!number) in_32_bits(by_sysenter, sizeof by_sysenter);
        good += number != 0;
    }
    verdict("syscall and sysenter from 32-bit code of a 64-bit program", good, 400);
    good = 0;
    for (int i = 0; i < 200; i++) {
        number = sigsetjmp(back, 1);
        if (!number) in_32_bits(no_such, sizeof no_such);
        good += number == SIGILL;
    }
    verdict("ud2 in 32-bit code", good, 200);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGILL, SIG_DFL);
}

/* A program of 32 bits: it asks for its number a thousand times, by int $0x80 and by the way the kernel recommends, which is
 * SYSENTER or SYSCALL, in a page whose address the kernel hands over (AT_SYSINFO, 32). It ends with 42 if they agree. */
static void recommended(void)
{
    enum { AT = 0x400000 };
    static const unsigned char program[] = {
        0x89, 0xe6, 0xad,                         /*     mov %esp, %esi; lodsl */
        0xad, 0x85, 0xc0, 0x75, 0xfb,             /* 1:  lodsl; test %eax, %eax; jnz 1b     arguments */
        0xad, 0x85, 0xc0, 0x75, 0xfb,             /* 2:  lodsl; test %eax, %eax; jnz 2b     environment */
        0xad, 0x89, 0xc2, 0xad,                   /* 3:  lodsl; mov %eax, %edx; lodsl       what else there is */
        0x85, 0xd2, 0x74, 0x2a,                   /*     test %edx, %edx; jz no */
        0x83, 0xfa, 0x20, 0x75, 0xf3, 0x89, 0xc7, /*     cmp $32, %edx; jne 3b; mov %eax, %edi */
        0xbd, 0xe8, 0x03, 0, 0,                   /*     mov $1000, %ebp */
        0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0x89, 0xc3, /* 4: mov $20, %eax; int $0x80; mov %eax, %ebx */
        0xb8, 20, 0, 0, 0, 0xff, 0xd7,            /*     mov $20, %eax; call *%edi */
        0x39, 0xc3, 0x75, 0x0a,                   /*     cmp %eax, %ebx; jne no */
        0x4d, 0x75, 0xe9,                         /*     dec %ebp; jnz 4b */
        0xbb, 42, 0, 0, 0, 0xeb, 0x05,            /*     mov $42, %ebx; jmp out */
        0xbb, 1, 0, 0, 0,                         /* no: mov $1, %ebx */
        0xb8, 1, 0, 0, 0, 0xcd, 0x80,             /* out: mov $1, %eax; int $0x80 */
    };
    struct { Elf32_Ehdr e; Elf32_Phdr p; unsigned char code[sizeof program]; } file = {
        { { 0x7f, 'E', 'L', 'F', 1, 1, 1 }, ET_EXEC, EM_386, 1, AT + sizeof(Elf32_Ehdr) + sizeof(Elf32_Phdr),
          sizeof(Elf32_Ehdr), 0, 0, sizeof(Elf32_Ehdr), sizeof(Elf32_Phdr), 1, 0, 0, 0 },
        { PT_LOAD, 0, AT, AT, sizeof file, sizeof file, PF_R | PF_X, 4096 },
    };
    memcpy(file.code, program, sizeof program);
    int status, fd = memfd_create("old", 0);
    if (write(fd, &file, sizeof file) != sizeof file) return verdict("a program of 32 bits", 0, 1);
    pid_t child = fork();
    if (!child) {
        char *none[] = { NULL };
        fexecve(fd, none, none);
        _exit(99); /* a kernel which was built without */
    }
    close(fd);
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 99) return;
    verdict("a program of 32 bits, and the way into the kernel which that recommends", status, 42 << 8);
}

void system_calls(void)
{
    recommended();
    registers();
    gs();
    clocks();
    vsyscall();
    old_calls();
    compatible();
}
