/* Everything the pieces of the tiny guest say to each other. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define PAGE_SIZE 4096u
#define KERNEL_BASE 0xC0000000u         /* physical 0 is mapped here, as in Linux */
#define KERNEL_CS 0x61                  /* GDT entry 12, ring 1: the Host's choice */
#define KERNEL_DS 0x69                  /* GDT entry 13, ring 1 */
#define USER_CS 0x73                    /* GDT entry 14, ring 3: ours */
#define USER_DS 0x7b                    /* GDT entry 15, ring 3 */
#define IF 0x200u                       /* the interrupt flag, where eflags keeps it */

#define pa(x) ((u32)(x) - KERNEL_BASE)  /* of anything in the linear mapping */
#define va(x) ((void *)((u32)(x) + KERNEL_BASE))

/* arch/x86/include/asm/lguest_hcall.h, 2.6.31 */
enum {
    FLUSH_ASYNC = 0, LGUEST_INIT = 1, SHUTDOWN = 2, NEW_PGTABLE = 4, FLUSH_TLB = 5,
    LOAD_IDT_ENTRY = 6, SET_STACK = 7, TS = 8, SET_CLOCKEVENT = 9, HALT = 10,
    SET_PTE = 14, SET_PGD = 15, LOAD_TLS = 16, NOTIFY = 17, LOAD_GDT_ENTRY = 18,
    SEND_INTERRUPTS = 19,
};
enum { POWEROFF = 1, RESTART = 2 };     /* second argument of SHUTDOWN */

u32 hcall(u32 number, u32 a, u32 b, u32 c);

/* include/linux/lguest.h, 2.6.31: the page we share with the Host. The numbers are offsets. */
struct lguest_data {
    u32 irq_enabled;                    /*    0 we write IF or 0; the Host obeys */
    u32 blocked_interrupts;             /*    4 one bit per irq we do not want */
    u32 cr2;                            /*    8 Host: address of the last page fault */
    u32 sec, nsec;                      /*   12 Host: the time, at each interrupt it delivers */
    u32 irq_pending;                    /*   20 Host: something is waiting until you enable them */
    u8 hcall_status[64];                /*   24 0xff: free, 0: the Host has not done it yet */
    struct { u32 number, a, b, c, d; } hcalls[64];      /* 88 */
    u32 reserve_mem;                    /* 1368 Host: bytes at the top which are not ours */
    u32 tsc_khz;                        /* 1372 Host */
    u32 pgdir;                          /* 1376 Host: where it built our first page tables */
    u32 noirq_start, noirq_end;         /* 1380 we: never interrupt between these */
    u32 kernel_address;                 /* 1388 we: all page tables agree above this */
    u32 syscall_vec;                    /* 1392 we: 0x80 */
};
_Static_assert(__builtin_offsetof(struct lguest_data, hcalls) == 88, "hcalls");
_Static_assert(__builtin_offsetof(struct lguest_data, pgdir) == 1376, "pgdir");
_Static_assert(__builtin_offsetof(struct lguest_data, syscall_vec) == 1392, "syscall_vec");
extern volatile struct lguest_data lguest_data;

/* boot.S */
void irq_enable(void);
u32 enter_user(u32 eip, u32 esp);               /* what the program gives to exit, or -1 */
void leave_user(u32 code) __attribute__((noreturn));
extern char noirq_start[], noirq_end[];

/* kernel.c */
struct frame {                                  /* what boot.S and the Host pushed, lowest first */
    u32 es, ds, edi, esi, ebp, unused, ebx, edx, ecx, eax, vector;
    u32 error, eip, cs, eflags, esp, ss;        /* esp and ss only if we came from ring 3 */
};
extern u32 ram, lowmem, hypercalls, ticks, irqs_taken[32];
extern volatile int timer_fired;
extern const char *command_line;

void *memset(void *to, int byte, u32 n);
void *memcpy(void *to, const void *from, u32 n);
int memcmp(const void *a, const void *b, u32 n);
u32 strlen(const char *s);
void putch(int c);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void flush(void);
void panic(const char *text) __attribute__((noreturn));

void *take_pages(u32 n);                        /* zeroed, for ever */
void *map_device(u32 pfn, u32 n);
void *window(u32 physical);                     /* at least one byte of it, up to the page's end */
void set_pte(u32 pgdir, u32 *table, u32 address, u32 entry);

void timer_start(u32 ns);
void nap(u32 ns);
u32 microseconds_since(u32 sec, u32 nsec);
void run_user(const char *name);
void shell(void);

/* An interrupt can do nothing to us between these two. */
static inline void irq_disable(void) { lguest_data.irq_enabled = 0; }

/* Interrupts off, and back to what they were. */
static inline u32 irq_save(void) { u32 was = lguest_data.irq_enabled; irq_disable(); return was; }
static inline void irq_restore(u32 was) { if (was) irq_enable(); }

/* Sleep until `cond`, which some interrupt handler makes true. */
#define wait_for(cond) do { \
        flush(); irq_disable(); \
        while (!(cond)) { hcall(HALT, 0, 0, 0); irq_disable(); } \
        irq_enable(); \
    } while (0)
