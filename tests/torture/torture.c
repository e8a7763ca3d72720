/* Everything at once which a processor in software gets wrong first. Runs as /init of a Guest, or on any x86-64 Linux:
 *     gcc -O1 -static -pthread -o torture torture.c -lm
 * Each line it prints is a test, and "ok" or what was wrong.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int wrong;

static void verdict(const char *name, long got, long expected)
{
    if (got == expected) printf("torture: %s: ok\n", name);
    else printf("torture: %s: %ld in place of %ld\n", name, got, expected), wrong++;
    fflush(stdout);
}

/* Code: mov $n, %eax; ret, made anew again and again. */
static void emit(unsigned char *p, int n)
{
    p[0] = 0xb8;
    memcpy(p + 1, &n, 4);
    p[5] = 0xc3;
}

static void writable_and_executable(void)
{
    unsigned char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long good = 0;
    for (int i = 0; i < 20000; i++) {
        emit(p + i % 7 * 16, i);
        good += ((int (*)(void))(p + i % 7 * 16))() == i;
    }
    verdict("code in a page which is writable and executable", good, 20000);
}

static void writable_or_executable(void)
{
    unsigned char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long good = 0;
    for (int i = 0; i < 3000; i++) {
        mprotect(p, 4096, PROT_READ | PROT_WRITE);
        emit(p, i);
        mprotect(p, 4096, PROT_READ | PROT_EXEC);
        good += ((int (*)(void))p)() == i;
    }
    verdict("code in a page which is writable or executable", good, 3000);
}

static void two_mappings(void)
{
    int fd = memfd_create("code", 0);
    long good = 0;
    if (ftruncate(fd, 4096)) return;
    unsigned char *w = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *x = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    for (int i = 0; i < 20000; i++) {
        w[2048 + i % 64] = i;
        emit(w, i);
        good += ((int (*)(void))x)() == i;
    }
    verdict("code written through another mapping", good, 20000);
}

/* Faults: each must arrive as the right signal. */
static sigjmp_buf back;
static void caught(int number) { siglongjmp(back, number); }

static int signal_of(void (*f)(void))
{
    int number = sigsetjmp(back, 1);
    if (!number) f();
    return number;
}

static void bad_load(void) { *(volatile int *)8; }
static void bad_store(void) { *(volatile int *)8 = 1; }
static void bad_jump(void) { ((void (*)(void))8)(); }
static void divide(void) { asm volatile("xor %%eax, %%eax; cltd; div %%eax" ::: "eax", "edx"); }
static void undefined(void) { asm volatile("ud2"); }
static void locked(void) { asm volatile(".byte 0xf0; btc %%esp, %%ecx" ::: "ecx"); }
static void privileged(void) { asm volatile("cli"); }
static void breakpoint(void) { asm volatile("int3"); }
static void no_gate(void) { asm volatile("int $0x81"); }
static void not_canonical(void) { *(volatile int *)0x8000000000000000; }
static void faults(void)
{
    static const struct { void (*f)(void); int number; const char *name; } all[] = {
        { bad_load, SIGSEGV, "a load from nowhere" }, { bad_store, SIGSEGV, "a store to nowhere" },
        { bad_jump, SIGSEGV, "a jump to nowhere" }, { divide, SIGFPE, "a division by zero" },
        { undefined, SIGILL, "ud2" }, { locked, SIGILL, "lock where it must not be" },
        { privileged, SIGSEGV, "cli" }, { breakpoint, SIGTRAP, "int3" }, { no_gate, SIGSEGV, "int through an empty gate" },
        { not_canonical, SIGSEGV, "an address which is no address" },
    };
    for (int n = 1; n < 32; n++)
        if (n == SIGSEGV || n == SIGFPE || n == SIGILL || n == SIGTRAP || n == SIGBUS) signal(n, caught);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        long good = 0;
        for (int n = 0; n < 200; n++) good += signal_of(all[i].f) == all[i].number;
        verdict(all[i].name, good, 200);
    }
}

/* Signals, a thousand a second, while registers and memory count the same. */
static volatile long ticks;
static void tick(int number) { ticks++; }

static void interrupted(void)
{
    struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
    long memory = 0, a = 0, b = 0;
    signal(SIGALRM, tick);
    setitimer(ITIMER_REAL, &every, NULL);
    for (long bad = 0; ticks < 200 && !bad; bad = memory != a || a != b)
        asm volatile("mov $100000, %%ecx\n1: incq %2; inc %0; lea 1(%1), %1; dec %%ecx; jnz 1b"
                     : "+r"(a), "+r"(b), "+m"(memory)::"ecx", "cc");
    setitimer(ITIMER_REAL, &never, NULL);
    verdict("memory and a register under signals", memory, a);
    verdict("two registers under signals", a, b);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long shared, atomic;
static void *count(void *none)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        shared++;
        pthread_mutex_unlock(&mutex);
        __atomic_add_fetch(&atomic, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t t[8];
    for (int i = 0; i < 8; i++) pthread_create(&t[i], NULL, count, NULL);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
    verdict("eight threads and a mutex", shared, 160000);
    verdict("eight threads and an atomic", atomic, 160000);
}

static void forks(void)
{
    long good = 0;
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 300; i++) {
        int status;
        page[0] = i;
        pid_t child = fork();
        if (!child) {
            char seen = page[0];
            page[0] = 99; /* copied on write */
            _exit(seen == (char)i ? i & 0x7f : 255);
        }
        good += waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == (i & 0x7f)
             && page[0] == (char)i;
    }
    verdict("children which exit and say with what", good, 300);
}

static void numbers(void)
{
    volatile double one = 1, three = 3, two = 2;
    volatile long double x = 1.0L / 3, y = 2;
    double sum = 0;
    for (int i = 1; i <= 1000; i++) sum += 1 / (one * i);
    union { double d; long l; } third = { one / three }, root = { sqrt(two) }, h = { sum };
    verdict("1/3 in SSE", third.l, 0x3fd5555555555555);
    verdict("the root of 2 in SSE", root.l, 0x3ff6a09e667f3bcd);
    verdict("a sum of a thousand fractions in SSE", h.l, 0x401df11f45f4e618);
    verdict("1/3 three times in x87", (long)(x * 3 * 1000000000000L + 0.5L), 1000000000000);
    verdict("the root of 2 in x87", (long)(sqrtl(y) * 1000000000000000L), 1414213562373095);
}

int main(void)
{
    numbers();
    writable_and_executable();
    writable_or_executable();
    two_mappings();
    faults();
    interrupted();
    threads();
    forks();
    printf("torture: %s\n", wrong ? "SOMETHING IS WRONG" : "all is well");
    fflush(stdout);
    if (getpid() == 1) sync(), reboot(RB_POWER_OFF);
    return wrong != 0;
}
