/* A Guest in 64-bit mode which does what it is told: a line on COM1 is a command, and a line is its answer.
 *
 * All numbers are hexadecimal. A command which faults is answered with `fault`, the vector, its error code and CR2.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COM1 = 0x3f8, UART_LINE = 4, PIC1 = 0x20, PIC2 = 0xa0, FIRST_VECTOR = 0x20, LINES = 16, SLOTS = 9, CODE = 0x10 };
enum { INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, USED = 1, CONFIG = 2 };
enum { DEVICE_SEL = 0x14, DRIVER = 0x20, DRIVER_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM = 0x38, READY = 0x44, NOTIFY = 0x50 };
enum { STATUS = 0x70, DESC = 0x80, AVAIL = 0x90, USED_RING = 0xa0 };

static const uint8_t line_of_slot[SLOTS] = { 5, 7, 10, 11, 12, 3, 6, 14, 15 };
static volatile uint64_t interrupts, used[SLOTS], config[SLOTS];
static uint64_t argument[8];
static char line[4096], *rest;

static uint64_t in(uint16_t port, int size)
{
    uint32_t value = 0;
    if (size == 1) asm volatile("inb %1, %b0" : "+a"(value) : "Nd"(port));
    else if (size == 2) asm volatile("inw %1, %w0" : "+a"(value) : "Nd"(port));
    else asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void out(uint16_t port, int size, uint32_t value)
{
    if (size == 1) asm volatile("outb %b0, %1" : : "a"(value), "Nd"(port));
    else if (size == 2) asm volatile("outw %w0, %1" : : "a"(value), "Nd"(port));
    else asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static uint64_t load(uint64_t address, int size)
{
    switch (size) {
    case 1: return *(volatile uint8_t *)address;
    case 2: return *(volatile uint16_t *)address;
    case 4: return *(volatile uint32_t *)address;
    default: return *(volatile uint64_t *)address;
    }
}

static void store(uint64_t address, int size, uint64_t value)
{
    switch (size) {
    case 1: *(volatile uint8_t *)address = value; break;
    case 2: *(volatile uint16_t *)address = value; break;
    case 4: *(volatile uint32_t *)address = value; break;
    default: *(volatile uint64_t *)address = value;
    }
}

static uint64_t slot(uint64_t i) { return 0xd0000000 + 0x1000 * i; }

static void put(char c)
{
    while (!(in(COM1 + 5, 1) & 0x20)) continue;
    out(COM1, 1, c);
}

static void say(const char *text)
{
    while (*text) put(*text++);
}

static void say_number(uint64_t n)
{
    int shift = 60;
    while (shift && !(n >> shift)) shift -= 4;
    for (put(' '); shift >= 0; shift -= 4) put("0123456789abcdef"[n >> shift & 15]);
}

/* COM1's interrupts wake us, and its registers are asked with interrupts off: none can come in between. */
static char get(void)
{
    for (;;) {
        asm volatile("cli");
        bool there = in(COM1 + 5, 1) & 1;
        if (there) {
            asm volatile("sti");
            return in(COM1, 1);
        }
        asm volatile("sti; hlt");
    }
}

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static uint64_t number(void)
{
    uint64_t n = 0;
    while (*rest == ' ') rest++;
    while (digit(*rest) >= 0) n = n << 4 | digit(*rest++);
    return n;
}

/* The commands. Those which say something begin with a space. */

static void do_r(uint64_t *a) { say_number(load(a[0], a[1])); }       /* ADDRESS SIZE */
static void do_w(uint64_t *a) { store(a[0], a[1], a[2]); }            /* ADDRESS SIZE VALUE */
static void do_in(uint64_t *a) { say_number(in(a[0], a[1])); }        /* PORT SIZE */
static void do_out(uint64_t *a) { out(a[0], a[1], a[2]); }            /* PORT SIZE VALUE */
static void do_mask(uint64_t *a)                                      /* both controllers' masks, in 16 bits */
{
    out(PIC1 + 1, 1, a[0]);
    out(PIC2 + 1, 1, a[0] >> 8);
}

static void do_poke(uint64_t *a) /* ADDRESS, and bytes as pairs of digits */
{
    uint8_t *p = (uint8_t *)a[0];
    for (rest = line; *rest != ' ';) rest++;
    number();
    while (*rest == ' ') rest++;
    for (; digit(rest[0]) >= 0 && digit(rest[1]) >= 0; rest += 2) *p++ = digit(rest[0]) << 4 | digit(rest[1]);
}

static void do_peek(uint64_t *a) /* ADDRESS LENGTH */
{
    put(' ');
    for (uint8_t *p = (uint8_t *)a[0]; a[1]--; p++) {
        put("0123456789abcdef"[*p >> 4]);
        put("0123456789abcdef"[*p & 15]);
    }
}

static void do_fill(uint64_t *a) /* ADDRESS LENGTH BYTE */
{
    void *p = (void *)a[0];
    asm volatile("rep stosb" : "+D"(p), "+c"(a[1]) : "a"(a[2]) : "memory");
}

static void do_sweep(uint64_t *a) /* FIRST END SIZE STEP, whether to store, and what: everything there is loaded */
{
    uint64_t sum = 0;
    for (uint64_t p = a[0]; p < a[1]; p += a[3]) {
        sum += load(p, a[2]);
        if (a[4]) store(p, a[2], a[5]);
    }
    say_number(sum);
}

static void do_ports(uint64_t *a) /* FIRST END SIZE, whether to OUT, and what */
{
    uint64_t sum = 0;
    for (uint64_t p = a[0]; p < a[1]; p++) {
        sum += in(p, a[2]);
        if (a[3]) out(p, a[2], a[4]);
    }
    say_number(sum);
}

static void do_kick(uint64_t *a) /* SLOT QUEUE TIMES */
{
    for (uint64_t i = 0; i < (a[2] ? a[2] : 1); i++) store(slot(a[0]) + NOTIFY, 4, a[1]);
}

static void do_start(uint64_t *a) /* SLOT FEATURES: from reset to FEATURES_OK */
{
    uint64_t s = slot(a[0]);
    for (int status = 0; status <= 3; status += 1 + status % 2) store(s + STATUS, 4, status);
    for (int half = 0; half < 2; half++) {
        store(s + DRIVER_SEL, 4, half);
        store(s + DRIVER, 4, (uint32_t)(a[1] >> 32 * half));
    }
    store(s + STATUS, 4, 11);
    say_number(load(s + STATUS, 4));
}

static void do_ring(uint64_t *a) /* SLOT QUEUE ENTRIES DESC AVAIL USED: is it ready? */
{
    uint64_t s = slot(a[0]);
    store(s + QUEUE_SEL, 4, a[1]);
    store(s + QUEUE_NUM, 4, a[2]);
    for (int part = 0; part < 3; part++)
        for (int half = 0; half < 2; half++)
            store(s + DESC + 0x10 * part + 4 * half, 4, (uint32_t)(a[3 + part] >> 32 * half));
    store(s + READY, 4, 1);
    say_number(load(s + READY, 4));
}

static void do_count(uint64_t *a) /* SLOT: interrupts for used buffers, and for the configuration */
{
    say_number(used[a[0]]);
    say_number(config[a[0]]);
}

static void do_forget(uint64_t *a) /* SLOT */
{
    used[a[0]] = config[a[0]] = 0;
}

static void do_wait(uint64_t *a) /* SLOT, and how many of both there must be */
{
    for (;;) {
        asm volatile("cli");
        if (used[a[0]] >= a[1] && config[a[0]] >= a[2]) break;
        asm volatile("sti; hlt");
    }
    asm volatile("sti");
    do_count(a);
}

static void do_until(uint64_t *a) /* ADDRESS MASK VALUE: spin until memory there, or a register, is so */
{
    while ((load(a[0], a[0] < 0xd0000000 ? 2 : 4) & a[1]) != a[2]) asm volatile("pause");
}

static void do_call(uint64_t *a) /* ADDRESS */
{
    say_number(((uint64_t(*)(void))a[0])());
}

static const struct {
    const char *name;
    void (*run)(uint64_t *);
} commands[] = {
    { "r", do_r }, { "w", do_w }, { "in", do_in }, { "out", do_out }, { "mask", do_mask }, { "poke", do_poke },
    { "peek", do_peek }, { "fill", do_fill }, { "sweep", do_sweep }, { "ports", do_ports }, { "kick", do_kick },
    { "start", do_start }, { "ring", do_ring }, { "count", do_count }, { "forget", do_forget }, { "wait", do_wait },
    { "until", do_until }, { "call", do_call },
};

static bool is(const char *name)
{
    const char *p = line;
    while (*name && *name == *p) name++, p++;
    return !*name && (*p == ' ' || !*p);
}

__attribute__((noreturn)) void serve(void)
{
    for (;;) {
        char *end = line;
        for (char c; (c = get()) != '\n';)
            if (end < line + sizeof line - 1) *end++ = c;
        *end = 0;
        for (rest = line; *rest && *rest != ' ';) rest++;
        for (int i = 0; i < 8; i++) argument[i] = number();
        bool known = false;
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
            if (!is(commands[i].name)) continue;
            known = true;
            commands[i].run(argument);
        }
        say(known ? " ok\n" : " what?\n");
    }
}

struct frame { uint64_t registers[15], vector, error, rip, cs, flags, rsp, ss; };
void go_on(void);

void interrupted(struct frame *f)
{
    if (f->vector < FIRST_VECTOR || f->vector >= FIRST_VECTOR + LINES) {
        uint64_t cr2;
        asm("mov %%cr2, %0" : "=r"(cr2));
        say(" fault");
        say_number(f->vector);
        say_number(f->error);
        say_number(cr2);
        put('\n');
        go_on();
    }
    int number = f->vector - FIRST_VECTOR;
    interrupts++;
    for (int i = 0; i < SLOTS; i++) {
        if (line_of_slot[i] != number) continue;
        uint64_t reasons = load(slot(i) + INTERRUPT_STATUS, 4);
        store(slot(i) + INTERRUPT_ACK, 4, reasons);
        if (reasons & USED) used[i]++;
        if (reasons & CONFIG) config[i]++;
    }
    if (number > 7) out(PIC2, 1, 0x20);
    out(PIC1, 1, 0x20);
}

static struct gate { uint16_t low, selector, kind, middle; uint32_t high, zero; } table[256];
extern char vectors[];
void load_table(const void *where);

int main(void)
{
    for (int i = 0; i < 256; i++) {
        uint64_t at = (uint64_t)vectors + 16 * i;
        table[i] = (struct gate){ at, CODE, 0x8e00, at >> 16, at >> 32, 0 };
    }
    struct __attribute__((packed)) { uint16_t limit; uint64_t base; } where = { sizeof table - 1, (uint64_t)table };
    load_table(&where);
    for (int chip = PIC1; chip <= PIC2; chip += PIC2 - PIC1) {
        out(chip, 1, 0x11);
        out(chip + 1, 1, chip == PIC1 ? FIRST_VECTOR : FIRST_VECTOR + 8);
        out(chip + 1, 1, chip == PIC1 ? 4 : 2);
        out(chip + 1, 1, 1);
    }
    do_mask(&(uint64_t){ 1 }); /* everything but the timer */
    out(COM1 + 1, 1, 1);
    say("here I am ok\n");
    asm volatile("sti");
    serve();
}
