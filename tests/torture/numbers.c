/* What SSE and x87 compute, and that their registers are one's own. */
#include "torture.h"
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <sys/time.h>

static void arithmetic(void)
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

/* Everything that FXSAVE knows of: eight registers of x87, sixteen of SSE, and what each of them is set to. */
struct state { unsigned char bytes[512]; } __attribute__((aligned(16)));

static void make_state(struct state *s, int n)
{
    asm volatile("fninit; fxsave %0" : "=m"(*s));
    s->bytes[0] = 0x7f, s->bytes[1] = n & 1 ? 0x0f : 0x03; /* precision and rounding */
    s->bytes[4] = 0xff;                                    /* no register is empty */
    s->bytes[25] = n & 2 ? 0x7f : 0x1f;                    /* rounding, and what is flushed to zero */
    for (int r = 0; r < 8; r++) {
        for (int i = 0; i < 7; i++) s->bytes[32 + 16 * r + i] = n * 31 + r * 8 + i;
        s->bytes[32 + 16 * r + 7] = 0x80 | r;
        s->bytes[32 + 16 * r + 8] = n, s->bytes[32 + 16 * r + 9] = 0x3f;
    }
    for (int i = 0; i < 256; i++) s->bytes[160 + i] = n * 17 + i;
}

/* Of those bytes, the ones which an instruction in between must leave alone. */
static int same(const struct state *a, const struct state *b)
{
    int other = memcmp(a->bytes, b->bytes, 2) || memcmp(a->bytes + 24, b->bytes + 24, 4) || a->bytes[4] != b->bytes[4];
    for (int r = 0; r < 8; r++) other |= memcmp(a->bytes + 32 + 16 * r, b->bytes + 32 + 16 * r, 10);
    return !other && !memcmp(a->bytes + 160, b->bytes + 160, 256);
}

static void *yields(void *number)
{
    struct state mine, now, old;
    long good = 0;
    asm volatile("fxsave %0" : "=m"(old));
    make_state(&mine, (int)(long)number);
    for (int i = 0; i < 1000; i++) {
        long result = 24; /* sched_yield() */
        asm volatile("fxrstor %2; syscall; fxsave %1" : "+a"(result), "=m"(now) : "m"(mine) : "rcx", "r11", "memory");
        good += same(&mine, &now);
    }
    asm volatile("fxrstor %0" ::"m"(old));
    return (void *)good;
}

static void under_switches(void)
{
    pthread_t t[6];
    long good = 0;
    for (long i = 0; i < 6; i++) pthread_create(&t[i], NULL, yields, (void *)(i + 1));
    for (int i = 0; i < 6; i++) {
        void *result;
        pthread_join(t[i], &result);
        good += (long)result;
    }
    verdict("x87 and SSE of six threads which make room for each other", good, 6000);
}

/* Signals, a thousand a second, while registers and memory count the same; and the handler spoils what it may. */
static volatile long ticks;
static void tick(int number)
{
    struct state theirs;
    make_state(&theirs, ++ticks & 0xff);
    asm volatile("fxrstor %0" ::"m"(theirs));
    asm volatile("fninit; ldmxcsr %0" ::"m"(*(int[]){ 0x1f80 }));
}

static void count_for(long until, long *bad, long *memory, long *a, long *b)
{
    struct state mine, now, old;
    asm volatile("fxsave %0" : "=m"(old));
    make_state(&mine, 85);
    while (ticks < until && !*bad && *memory == *a && *a == *b) {
        asm volatile("fxrstor %4; mov $50000, %%ecx; 1: incq %2; inc %0; lea 1(%1), %1; dec %%ecx; jnz 1b; fxsave %3"
                     : "+r"(*a), "+r"(*b), "+m"(*memory), "=m"(now) : "m"(mine) : "ecx", "cc");
        *bad = !same(&mine, &now);
    }
    asm volatile("fxrstor %0" ::"m"(old));
}

void interrupted(void)
{
    struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
    long memory = 0, a = 0, b = 0, bad = 0;
    signal(SIGALRM, tick);
    setitimer(ITIMER_REAL, &every, NULL);
    count_for(150, &bad, &memory, &a, &b);
    setitimer(ITIMER_REAL, &never, NULL);
    signal(SIGALRM, SIG_DFL);
    verdict("memory and a register under signals", memory, a);
    verdict("two registers under signals", a, b);
    verdict("x87 and SSE under signals", bad, 0);
}

void numbers(void)
{
    arithmetic();
    under_switches();
}
