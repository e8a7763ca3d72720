/* What the parts of the torture share. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void verdict(const char *name, long got, long expected); /* prints a line */

void code(void);
void loaded(const char *directory); /* where files come from a disk */
void faults(void);
void numbers(void);
void interrupted(void);
void processes(void);
void system_calls(void);
void traced(void);

/* Code: mov $n, %eax; ret. */
static inline void emit(unsigned char *p, int n)
{
    p[0] = 0xb8;
    memcpy(p + 1, &n, 4);
    p[5] = 0xc3;
}
static inline int call(void *p) { return ((int (*)(void))p)(); }

/* Memory of whole pages, or the end. */
static inline void *pages(int n, int protection, int flags, int fd)
{
    void *p = mmap(NULL, n * 4096, protection, flags, fd, 0);
    if (p == MAP_FAILED) perror("torture: mmap"), exit(1);
    return p;
}
enum { RW = PROT_READ | PROT_WRITE, RX = PROT_READ | PROT_EXEC, RWX = RW | PROT_EXEC, OWN = MAP_PRIVATE | MAP_ANONYMOUS };

/* The same memory twice: once to be written, once to be run. */
struct twice { unsigned char *w, *x; };
static inline struct twice twice(int n)
{
    int fd = memfd_create("code", 0);
    if (fd < 0 || ftruncate(fd, n * 4096)) perror("torture: memfd_create"), exit(1);
    struct twice t = { pages(n, RW, MAP_SHARED, fd), pages(n, RX, MAP_SHARED, fd) };
    close(fd);
    return t;
}
