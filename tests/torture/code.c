/* Code which is made anew, again and again: the translation of it must not outlive it. */
#include "torture.h"
#include <pthread.h>

static void writable_and_executable(void)
{
    unsigned char *p = pages(1, RWX, OWN, -1);
    long good = 0;
    for (int i = 0; i < 20000; i++) {
        emit(p + i % 7 * 16, i);
        good += call(p + i % 7 * 16) == i;
    }
    verdict("code in a page which is writable and executable", good, 20000);
}

/* mov $7, %eax; nop...; the program stores into the instruction behind the next, in one block with itself. */
static void its_own_next_instruction(void)
{
    static const unsigned char program[] = {
        0x40, 0x88, 0x3d, 0x01, 0, 0, 0,    /* mov %dil, 1(%rip) */
        0xb8, 0, 0, 0, 0,                   /* mov $0, %eax: this 0 */
        0xc3,
    };
    unsigned char *p = pages(1, RWX, OWN, -1);
    long good = 0;
    memcpy(p, program, sizeof program);
    for (int i = 0; i < 2000; i++) good += ((int (*)(int))(void *)p)(i & 0xff) == (i & 0xff);
    verdict("code which changes the instruction behind it", good, 2000);
}

static void writable_or_executable(void)
{
    unsigned char *p = pages(1, RW, OWN, -1);
    long good = 0;
    for (int i = 0; i < 3000; i++) {
        mprotect(p, 4096, RW);
        emit(p, i);
        mprotect(p, 4096, RX);
        good += call(p) == i;
    }
    verdict("code in a page which is writable or executable", good, 3000);
}

static void two_mappings(void)
{
    struct twice t = twice(1);
    long good = 0;
    for (int i = 0; i < 20000; i++) {
        t.w[2048 + i % 64] = i;
        emit(t.w, i);
        good += call(t.x) == i;
    }
    verdict("code written through another mapping", good, 20000);
}

/* An instruction which begins on one page and ends on the next: mov $n, %eax has two bytes before the border. */
static void across_pages(void)
{
    struct twice t = twice(2);
    long good = 0;
    for (int i = 0; i < 5000; i++) {
        emit(t.w + 4094, i << 8);
        good += call(t.x + 4094) == i << 8;
        t.w[4096] = ~i; /* only the second page */
        good += (call(t.x + 4094) >> 8 & 0xff) == (~i & 0xff);
    }
    verdict("an instruction on two pages", good, 10000);
}

/* The same physical page for a new process, for other code: fork, change, run. */
static void remapped(void)
{
    unsigned char *fixed = pages(1, RX, OWN, -1);
    long good = 0;
    for (int i = 0; i < 1000; i++) {
        unsigned char *p = pages(1, RW, OWN, -1);
        emit(p, i);
        mprotect(p, 4096, RX);
        mremap(p, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, fixed);
        good += call(fixed) == i;
    }
    verdict("other pages at the same address", good, 1000);
}

static struct twice common;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *makes_code(void *number)
{
    struct twice own = twice(1);
    unsigned char *page = pages(1, RW, OWN, -1);
    long good = 0;
    int n = (int)(long)number << 20;
    for (int i = 0; i < 1000; i++) {
        emit(own.w + i % 64 * 32, n + i);
        good += call(own.x + i % 64 * 32) == n + i;
        pthread_mutex_lock(&mutex);
        emit(common.w, n + i);
        good += call(common.x) == n + i;
        pthread_mutex_unlock(&mutex);
        mprotect(page, 4096, RW);
        emit(page, n - i);
        mprotect(page, 4096, RX);
        good += call(page) == n - i;
        if (i % 16 == 0) mprotect(page, 4096, PROT_NONE), madvise(page, 4096, MADV_DONTNEED);
    }
    return (void *)good;
}

static void from_threads(void)
{
    pthread_t t[4];
    long good = 0;
    common = twice(1);
    for (long i = 0; i < 4; i++) pthread_create(&t[i], NULL, makes_code, (void *)i);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(t[i], &result);
        good += (long)result;
    }
    verdict("four threads which make code, and protect and unprotect it", good, 12000);
}

void code(void)
{
    writable_and_executable();
    its_own_next_instruction();
    writable_or_executable();
    two_mappings();
    across_pages();
    remapped();
    from_threads();
}
