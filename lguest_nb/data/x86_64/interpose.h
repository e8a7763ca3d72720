/* What Unicorn's x86 lacks to run a whole kernel, in functions which take the place of its own by their names.
 *
 * Unicorn exports the inside of QEMU, and calls it through its own procedure linkage table. So a function of the same
 * name, in a library which was loaded earlier with RTLD_GLOBAL, is the one which gets called (System V gABI, "Shared
 * Object Dependencies"). The function which was there before is still to be had, from dlsym() on Unicorn's own handle.
 *
 * An engine which nobody has opened as a `struct machine` notices nothing of this, but for lock.c.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct uc uc;    /* Unicorn's and QEMU's structures: we only have their addresses */
typedef struct env env;  /* CPUX86State */
typedef struct cpu cpu;  /* CPUState and X86CPU, which begin at the same place and contain env */
typedef struct translator translator; /* TCGContext */

enum { PAGE = 4096 };
enum { CODE = 1, STACK, DATA, FS, GS, LDT, TASK }; /* QEMU's order of segments: ES is 0 */
enum { RCX = 1, RSP = 4, R11 = 11, R15 = 15 };     /* the processor's numbers of registers */

/* SegmentCache, as QEMU's target/i386/cpu.h has it; layout.c sees whether that is so. */
struct segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit, flags; /* flags: the upper half of a descriptor */
};

struct doorbell {
    uint64_t address, value;
    bool any; /* rings for any value */
    int fd;   /* an eventfd */
};

enum { DOORBELLS = 256, REGISTERS = 32 };

struct pic { /* an 8259A: pic.c; a bit for each line */
    uint8_t level_allowed, levels, mask, base, requests, in_service, lowest, next;
    bool single, has_mode, auto_end, rotate_on_auto_end, special_mask, fully_nested, read_in_service, poll;
};

enum { OUTBOX = 64 << 10 };

struct outbox { /* outbox.c */
    pthread_mutex_t lock;
    uint32_t data, status; /* ports */
    int fd;                /* an eventfd */
    bool kept, open;       /* kept: somebody wants it */
    uint8_t answer;
    int count;
    uint8_t bytes[OUTBOX];
};

struct machine {
    struct machine *next;
    uc *uc;   /* NULL: free to be used again */
    cpu *cpu;
    env *env;
    uint64_t counts[259]; /* exceptions by vector, then the three which follow */
    uint64_t born;        /* in nanoseconds of CLOCK_MONOTONIC */
    bool halted;          /* it ended with HLT */
    bool asked;           /* somebody wants it to stop */
    bool wire;            /* the interrupt controller has something for it */
    int asleep;           /* run() waits for one of these two: a futex */
    int int_length;       /* of the INT n which is being delivered, in bytes */
    size_t pages;         /* of RAM */
    uint8_t *has_code;    /* for each of them: was it translated? */
    bool translating;     /* a page may be translated and not yet be marked */
    uint64_t written;     /* the page of the store which is being looked at */
    struct place *places; /* lookup.c: blocks by where they begin */
    uint32_t age;         /* of those which are still true */
    bool may_have_dropped; /* translations, since we looked at ... */
    size_t dropped;        /* ... how many were, ever */
    translator *translator;
    uint64_t io;          /* where RAM ends and registers begin */
    uint64_t (*read)(int port, uint64_t address, int size);
    void (*write)(int port, uint64_t address, int size, uint64_t value);
    int (*acknowledge)(void); /* NULL: `pic` does it */
    int doorbells;
    struct doorbell doorbell[DOORBELLS];
    struct pic pic[2]; /* master and slave */
    pthread_mutex_t pic_lock;
    struct outbox outbox;
    int registers;
    struct { uint64_t address; uint32_t bits; } reasons[REGISTERS];
};
enum { SYSCALLS = 256, INTERRUPTS, KICKS }; /* in counts */

struct machine *machine_of(const void *p); /* p: the uc, cpu or env of a machine; NULL if it is of none */
struct machine *machine_new(uc *u);
void machine_close(struct machine *m);
uint64_t nanoseconds(void); /* of CLOCK_MONOTONIC */
void wake(struct machine *m); /* if it sleeps: after `wire` or `asked` was set */
void set_wire(struct machine *m, bool up);
int machine_acknowledge(struct machine *m);

/* Offsets in env, by layout.c. */
extern struct layout {
    size_t registers, rip, eflags, segments, hflags, efer, star, lstar, cstar, fmask;
} at;
const char *measure(struct machine *m); /* NULL, or a sentence */
#define FIELD(type, env, name) (*(type *)((char *)(env) + at.name))
#define REGISTER(env, n) ((uint64_t *)((char *)(env) + at.registers))[n]
#define SEGMENT(env, n) ((struct segment *)((char *)(env) + at.segments))[n]

/* UNICORN(int, uc_close, uc *) is a pointer unicorn_uc_close to Unicorn's own function; interpose_bind() fills it in. */
struct wanted {
    struct wanted *next;
    const char *name;
    void **where;
};
void want(struct wanted *w);
#define UNICORN(result, name, ...)                                                                                     \
    static result (*unicorn_##name)(__VA_ARGS__);                                                                      \
    static struct wanted wanted_##name = { NULL, #name, (void **)&unicorn_##name };                                    \
    __attribute__((constructor)) static void want_##name(void) { want(&wanted_##name); }                               \
    struct wanted /* swallows the semicolon */
