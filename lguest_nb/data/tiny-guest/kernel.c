#include "tiny.h"
#include "virtio.h"

volatile struct lguest_data lguest_data __attribute__((aligned(PAGE_SIZE))) = {
    .hcall_status = { [0 ... 63] = 0xff },
    .noirq_start = (u32)noirq_start, .noirq_end = (u32)noirq_end,
    .kernel_address = KERNEL_BASE,
    .syscall_vec = 0x80,
};
u32 ram, lowmem, hypercalls, ticks, irqs_taken[32];
volatile int timer_fired;
static int panicking;

void *memset(void *to, int byte, u32 n) {
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}
void *memcpy(void *to, const void *from, u32 n) {
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}
int memcmp(const void *a, const void *b, u32 n) {
    const u8 *p = a, *q = b;
    for (; n; n--, p++, q++)
        if (*p != *q) return *p - *q;
    return 0;
}
u32 strlen(const char *s) {
    u32 n = 0;
    while (s[n]) n++;
    return n;
}

static char out[512];
static u32 out_len;
static char *sink;                              /* sprint's destination, or nothing */

void flush(void) {
    u32 n = out_len;
    out_len = 0;
    if (!n) return;
    if (console_live() && !panicking) {
        console_write(out, n);
    } else {
        out[n] = 0;
        hcall(NOTIFY, pa(out), 0, 0);
    }
}
void putch(int c) {
    if (sink) { *sink++ = c; return; }
    if (out_len == sizeof(out) - 1) flush();
    out[out_len++] = c;
}

static void number(u32 value, u32 base, u32 width, int pad) {
    char digits[12];
    u32 n = 0;
    do digits[n++] = "0123456789abcdef"[value % base]; while (value /= base);
    for (; width > n; width--) putch(pad);
    while (n) putch(digits[--n]);
}
static void vprint(const char *f, __builtin_va_list ap) {   /* %s %c %u %x, a width, leading zeros */
    for (; *f; f++) {
        if (*f != '%') { putch(*f); continue; }
        int pad = *++f == '0' ? '0' : ' ';
        u32 width = 0;
        while (*f >= '0' && *f <= '9') width = width * 10 + *f++ - '0';
        if (*f == 's') {
            const char *s = __builtin_va_arg(ap, const char *);
            u32 n = strlen(s);
            while (*s) putch(*s++);
            for (; width > n; width--) putch(' ');
        }
        else if (*f == 'c') putch(__builtin_va_arg(ap, int));
        else if (*f == 'x') number(__builtin_va_arg(ap, u32), 16, width, pad);
        else if (*f == 'u') number(__builtin_va_arg(ap, u32), 10, width, pad);
        else putch(*f);
    }
}
void print(const char *format, ...) {
    __builtin_va_list ap;
    __builtin_va_start(ap, format);
    vprint(format, ap);
    __builtin_va_end(ap);
}

__attribute__((format(printf, 2, 3))) static void sprint(char *to, const char *format, ...) {
    __builtin_va_list ap;
    __builtin_va_start(ap, format);
    sink = to;
    vprint(format, ap);
    *sink = 0;
    sink = 0;
    __builtin_va_end(ap);
}
void panic(const char *text) {
    static char last_words[128];                /* in the linear mapping, whole: the Host reads 128 */
    u32 n = strlen(text);
    flush();
    memcpy(last_words, text, n < 127 ? n : 127);
    for (;;) hcall(SHUTDOWN, pa(last_words), POWEROFF, 0);
}

static void lazy_hcall(u32 call, u32 a, u32 b, u32 c) {
    static u32 next;
    if (lguest_data.hcall_status[next] != 0xff) {       /* full: a direct one empties the ring first */
        hcall(call, a, b, c);
        return;
    }
    lguest_data.hcalls[next].number = call;
    lguest_data.hcalls[next].a = a;
    lguest_data.hcalls[next].b = b;
    lguest_data.hcalls[next].c = c;
    lguest_data.hcall_status[next] = 0;                 /* last: now the Host may take it */
    next = (next + 1) % 64;
}

extern char stubs[], syscall_stub[], trap_stack_top[];

static void gate(u32 vector, u32 handler, u32 type, u32 ring) {
    lazy_hcall(LOAD_IDT_ENTRY, vector, KERNEL_CS << 16 | (handler & 0xffff),
               (handler & 0xffff0000) | 0x8000 | ring << 13 | type << 8);
}
static void load_tables(void) {
    lazy_hcall(LOAD_GDT_ENTRY, 12, 0xffff, 0x00cfbb00);     /* ring 1 code and data, 0 - 4G */
    lazy_hcall(LOAD_GDT_ENTRY, 13, 0xffff, 0x00cfb300);
    lazy_hcall(LOAD_GDT_ENTRY, 14, 0xffff, 0x00cffb00);     /* ring 3 code and data, 0 - 4G */
    lazy_hcall(LOAD_GDT_ENTRY, 15, 0xffff, 0x00cff300);
    for (u32 v = 0; v < 64; v++)
        if (v != 2 && v != 8 && v != 15 && v != 31)         /* the Host keeps these for itself */
            gate(v, (u32)stubs + 16 * v, 0xe, 0);
    gate(0x80, (u32)syscall_stub, 0xf, 3);
    lazy_hcall(SET_STACK, KERNEL_DS, (u32)trap_stack_top, 1);
    hcall(FLUSH_ASYNC, 0, 0, 0);
}

#define PAGE_TABLE __attribute__((aligned(PAGE_SIZE)))
#define DEVICES 0xFF800000u                     /* slot 1022: device pages, and the window */
#define WINDOW 0xFFBFF000u                      /* the last page of it */
static u32 kernel_pgdir[1024] PAGE_TABLE, user_pgdir[1024] PAGE_TABLE;
static u32 first_table[1024] PAGE_TABLE, device_table[1024] PAGE_TABLE, user_table[1024] PAGE_TABLE;
static u32 next_page, end_of_pages;

static void build_page_tables(void) {
    u32 i, *host, slots = (ram + 0x3fffff) >> 22;

    for (i = 0; i < 1024 && i < ram / PAGE_SIZE; i++) first_table[i] = i * PAGE_SIZE | 3;
    lowmem = i * PAGE_SIZE;
    kernel_pgdir[768] = user_pgdir[768] = pa(first_table) | 3;
    kernel_pgdir[1022] = user_pgdir[1022] = pa(device_table) | 3;
    user_pgdir[32] = pa(user_table) | 7;
    hcall(NEW_PGTABLE, pa(kernel_pgdir), 0, 0);

    host = window(lguest_data.pgdir);
    for (i = 769; i < 768 + slots && i < 1022 && host[i] & 1; i++)
        kernel_pgdir[i] = user_pgdir[i] = host[i] & ~4u;    /* 4: ring 3 may come in. No, it may not */
    hcall(FLUSH_TLB, 1, 0, 0);
    if (slots > 1) lowmem = i - 768 < slots ? (i - 768) << 22 : ram;
    end_of_pages = lguest_data.pgdir - slots * PAGE_SIZE;
    if (end_of_pages > lowmem) end_of_pages = lowmem;
}

void *take_pages(u32 n) {
    extern char image_end[];
    if (!next_page) next_page = (pa(image_end) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    if (n > (end_of_pages - next_page) / PAGE_SIZE) panic("out of memory");
    next_page += n * PAGE_SIZE;
    return va(next_page - n * PAGE_SIZE);
}

void set_pte(u32 pgdir, u32 *table, u32 address, u32 entry) {
    table[address >> 12 & 1023] = entry;
    hcall(SET_PTE, pgdir, address, entry);
}
void *map_device(u32 pfn, u32 n) {
    static u32 used;
    if (n > 1000 - used) panic("too many device pages");
    u32 first = used;
    for (; n; n--, pfn++) device_table[used++] = pfn << 12 | 3;
    hcall(FLUSH_TLB, 1, 0, 0);                  /* one call for all of them; 1: the kernel's, too */
    return (void *)(DEVICES + first * PAGE_SIZE);
}

void *window(u32 physical) {
    if (physical < lowmem) return va(physical);
    u32 entry = (physical & ~(PAGE_SIZE - 1)) | 3;
    if (device_table[WINDOW >> 12 & 1023] != entry)
        set_pte(pa(kernel_pgdir), device_table, WINDOW, entry);
    return (void *)(WINDOW + physical % PAGE_SIZE);
}

void timer_start(u32 ns) {
    timer_fired = 0;
    hcall(SET_CLOCKEVENT, ns, 0, 0);
}
void nap(u32 ns) {
    timer_start(ns);
    wait_for(timer_fired);
}
u32 microseconds_since(u32 sec, u32 nsec) {
    return (lguest_data.sec - sec) * 1000000u + lguest_data.nsec / 1000 - nsec / 1000;
}

static int in_user;                                     /* a ring 3 program exists */
static void kill_user(const char *why, u32 eip);

static void interrupt(u32 irq, struct frame *f) {
    irqs_taken[irq]++;
    if (irq) { vq_interrupt(irq); return; }
    ticks++;
    timer_fired = 1;
    if (!in_user) return;
    if ((f->cs & 3) == 3) kill_user("its time is up", f->eip);
    hcall(SET_CLOCKEVENT, 1000000, 0, 0);               /* in a system call: once it is back, then */
}

static void die(struct frame *f) {
    static char why[128];
    panicking = 1;
    print("\ntiny guest: trap %u (error %x) in the kernel at %08x, cr2 %08x\n"
          "eax %08x ebx %08x ecx %08x edx %08x\n"
          "esi %08x edi %08x ebp %08x esp %08x eflags %08x\n",
          f->vector, f->error, f->eip, lguest_data.cr2, f->eax, f->ebx, f->ecx, f->edx,
          f->esi, f->edi, f->ebp, (u32)&f->esp, f->eflags);
    sprint(why, "trap %u at %08x", f->vector, f->eip);
    panic(why);
}

#define USER_STACK 0x08300000u                  /* 64 pages which do not exist until touched */
#define USER_STACK_TOP 0x08340000u
static u8 user_pages[4][PAGE_SIZE] PAGE_TABLE;
static u32 user_pages_used;

static void page_fault(struct frame *f) {
    u32 address = lguest_data.cr2;              /* before anything else can fault */
    static char why[64];
    if (!in_user) die(f);
    if (address >= USER_STACK && address < USER_STACK_TOP && !(f->error & 1) && user_pages_used < 4) {
        u8 *page = memset(user_pages[user_pages_used++], 0, PAGE_SIZE);
        set_pte(pa(user_pgdir), user_table, address & ~(PAGE_SIZE - 1), pa(page) | 7);
        return;                                 /* and the instruction runs again */
    }
    sprint(why, "%s %08x, %s", f->error & 2 ? "write to" : "read of", address,
           f->error & 1 ? "which is not its own" : "where there is nothing");
    kill_user(why, f->eip);
}

static void syscall(struct frame *f) {
    const char *text = (const char *)f->ecx;
    switch (f->eax) {
    case 1:                                     /* exit(code) */
        leave_user(f->ebx);
    case 4:                                     /* write(file, text, length) */
        if (f->ecx >= KERNEL_BASE || f->edx > KERNEL_BASE - f->ecx) { f->eax = -14; return; }
        for (u32 n = 0; n < f->edx; n++) putch(text[n]);
        f->eax = f->edx;
        return;
    case 13:                                    /* time() */
        f->eax = lguest_data.sec;
        return;
    default:
        f->eax = -38;                           /* no such call */
    }
}

void trap(struct frame *f) {
    static char why[32];
    if (f->vector == 0x80) syscall(f);
    else if (f->vector >= 32) interrupt(f->vector - 32, f);
    else if (f->vector == 14) page_fault(f);
    else if ((f->cs & 3) == 3) {
        sprint(why, "trap %u", f->vector);
        kill_user(why, f->eip);
    } else die(f);
}
static void kill_user(const char *why, u32 eip) {
    print("killed at %08x: %s\n", eip, why);
    leave_user(-1);
}

void user_hello(void), user_stack(void), user_kernel(void), user_null(void), user_cli(void),
     user_divide(void), user_loop(void), user_cheat(void);
static const struct { const char *name; void (*entry)(void); } programs[] = {
    { "hello", user_hello }, { "stack", user_stack }, { "kernel", user_kernel }, { "null", user_null },
    { "cli", user_cli }, { "divide", user_divide }, { "loop", user_loop }, { "cheat", user_cheat },
};
static void run_program(u32 program) {
    extern char user_start[], user_end[], user_load[];
    u32 first = (u32)user_start >> 12 & 1023, n = (user_end - user_start) / PAGE_SIZE;

    memset(user_table, 0, PAGE_SIZE);
    for (u32 i = 0; i < n; i++)
        user_table[first + i] = ((u32)user_load + i * PAGE_SIZE) | 5;      /* 5: ring 3 may read it */
    user_pages_used = 0;
    hcall(NEW_PGTABLE, pa(user_pgdir), 0, 0);
    hcall(FLUSH_TLB, 0, 0, 0);                  /* 0: only what is below kernel_address has changed */
    timer_start(200000000);
    in_user = 1;
    u32 code = enter_user((u32)programs[program].entry, USER_STACK_TOP);
    in_user = 0;
    timer_start(0);                             /* 0 ns is never */
    hcall(NEW_PGTABLE, pa(kernel_pgdir), 0, 0);
    irq_enable();                               /* whichever gate we left it by */
    if (code != -1u) print("%s: exit %u\n", programs[program].name, code);
}
void run_user(const char *name) {
    u32 n = sizeof(programs) / sizeof(programs[0]), found = 0;
    for (u32 i = 0; i < n; i++)
        if (!*name || !memcmp(name, programs[i].name, strlen(programs[i].name) + 1)) {
            print("user %s: ", programs[i].name);
            run_program(i);
            found = 1;
        }
    if (!found) print("no program %s\n", name);
}

#define BOOT_PARAMS(type, offset) (*(type *)va(offset))
const char *command_line;

void main(void) {
    ram = BOOT_PARAMS(u32, 0x2d8);              /* e820_map[0].size, its lower half */
    command_line = va(BOOT_PARAMS(u32, 0x228));
    print("tiny guest, made of sources " SOURCES ": %u KB of memory, the Host's page tables at 0x%x\n",
          ram >> 10, lguest_data.pgdir);
    build_page_tables();
    load_tables();
    irq_enable();
    start_devices();
    shell();
}
