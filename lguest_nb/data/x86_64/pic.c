/* The two 8259A of a PC. lguest_nb/pc/pic.py tells how they work and is what this must agree with, bit for bit; a Guest asks
 * them six things at each interrupt, and here it need not wait for the interpreter to get an answer. */
#include "interpose.h"

enum { CASCADE = 2, SPURIOUS = 7, NONE = -1 };
enum { READY, BASE, WIRING, MODE }; /* what the next write to the odd port is */
enum { MASTER, SLAVE };

bool pic_port(uint32_t port)
{
    return (port & ~0x81u) == 0x20 || (port & ~1u) == 0x4d0;
}

/* How many lines are more important than the most important of these; 8 if there are none. */
static int first(const struct pic *p, int lines)
{
    int i = 0;
    while (i < 8 && !(lines >> ((p->lowest + 1 + i) & 7) & 1)) i++;
    return i;
}

static int best(const struct pic *p, const struct pic *slave);

static int all_requests(const struct pic *p, const struct pic *slave)
{
    return p->requests | (slave && best(slave, NULL) != NONE ? 1 << CASCADE : 0);
}

/* What is in service and keeps others waiting. */
static int busy(const struct pic *p)
{
    return p->special_mask ? p->in_service & ~p->mask : p->in_service;
}

/* The line which the processor should hear of now, or NONE. */
static int best(const struct pic *p, const struct pic *slave)
{
    int wanted = first(p, all_requests(p, slave) & ~p->mask);
    int before = busy(p);
    if (p->fully_nested && slave) before &= ~(1 << CASCADE); /* the slave may have something more important now */
    return wanted < first(p, before) ? (p->lowest + 1 + wanted) & 7 : NONE;
}

static void take(struct pic *p, int line)
{
    p->requests &= ~(1 << line) | p->levels;
    if (!p->auto_end) p->in_service |= 1 << line;
    else if (p->rotate_on_auto_end) p->lowest = line;
}

static int read_chip(struct pic *p, const struct pic *slave, bool odd)
{
    if (p->poll) {
        int line = best(p, slave);
        p->poll = false;
        if (line == NONE) return 0;
        take(p, line);
        return 0x80 | line;
    }
    if (odd) return p->mask;
    return p->read_in_service ? p->in_service : all_requests(p, slave);
}

/* ICW1: all is forgotten but the triggers and the base. */
static void initialise(struct pic *p, int command)
{
    *p = (struct pic){ .level_allowed = p->level_allowed, .levels = p->levels, .base = p->base, .lowest = 7,
                       .next = BASE, .single = command & 2, .has_mode = command & 1 };
}

static void go_on(struct pic *p, int value)
{
    switch (p->next) {
    case BASE:
        p->base = value & 0xf8;
        p->next = !p->single ? WIRING : p->has_mode ? MODE : READY;
        break;
    case WIRING:
        p->next = p->has_mode ? MODE : READY;
        break;
    case MODE: /* ICW4 */
        p->auto_end = value & 2;
        p->fully_nested = value & 0x10;
        p->next = READY;
    }
}

/* OCW2: rotate, specific, end of interrupt. */
static void end(struct pic *p, int value)
{
    bool rotate = value & 0x80, specific = value & 0x40, ends = value & 0x20;
    int line = value & 7;
    if (!specific) {
        if (!ends) {
            p->rotate_on_auto_end = rotate;
            return;
        }
        int served = first(p, busy(p));
        if (served == 8) return;
        line = (p->lowest + 1 + served) & 7;
    }
    if (ends) p->in_service &= ~(1 << line);
    if (rotate) p->lowest = line;
}

static void write_chip(struct pic *p, bool odd, int value)
{
    if (odd && p->next) go_on(p, value);
    else if (odd) p->mask = value;
    else if (value & 0x10) initialise(p, value);
    else if (value & 0x08) { /* OCW3 */
        p->poll = value & 4;
        if (value & 2) p->read_in_service = value & 1;
        if (value & 0x40) p->special_mask = value & 0x20;
    } else end(p, value);
}

/* ELCR. A line which becomes a level, or an edge, has to say once more what it wants. */
static void write_levels(struct pic *p, int value)
{
    int changed = p->levels ^ (value & p->level_allowed);
    p->levels ^= changed;
    p->requests &= ~changed;
}

static void enter(struct machine *m) { pthread_mutex_lock(&m->pic_lock); }

static void leave(struct machine *m)
{
    set_wire(m, best(&m->pic[MASTER], &m->pic[SLAVE]) != NONE);
    pthread_mutex_unlock(&m->pic_lock);
}

void pic_power_on(struct machine *m)
{
    m->pic[MASTER] = (struct pic){ .level_allowed = 0xf8, .mask = 0xff, .lowest = 7 }; /* not lines 0 to 2 */
    m->pic[SLAVE] = (struct pic){ .level_allowed = 0xde, .mask = 0xff, .lowest = 7 };  /* not lines 8 and 13 */
}

static struct pic *chip_at(struct machine *m, uint32_t port)
{
    return &m->pic[port == 0xa0 || port == 0xa1 || port == 0x4d1 ? SLAVE : MASTER];
}

/* A byte from one of its ports, or to it. On the CPU thread. */
EXPORT int machine_pic_read(struct machine *m, uint32_t port)
{
    struct pic *p = chip_at(m, port);
    enter(m);
    int value = port >= 0x4d0 ? p->levels : read_chip(p, p == m->pic ? &m->pic[SLAVE] : NULL, port & 1);
    leave(m);
    return value;
}

EXPORT void machine_pic_write(struct machine *m, uint32_t port, int value)
{
    struct pic *p = chip_at(m, port);
    enter(m);
    if (port >= 0x4d0) write_levels(p, value);
    else write_chip(p, port & 1, value);
    leave(m);
}

/* A line, 0 to 15, goes up and down again; nothing happens at 2, where the slave sits. An edge is remembered; for a line which is
 * a level it was too short. So no line is ever up. Any thread. */
EXPORT void machine_pulse(struct machine *m, int line)
{
    struct pic *p = &m->pic[line & 8 ? SLAVE : MASTER];
    if (line == CASCADE) return;
    enter(m);
    p->requests |= 1 << (line & 7) & ~p->levels;
    leave(m);
}

/* Is there an interrupt for the processor? Any thread. */
EXPORT bool machine_pending(struct machine *m) { return __atomic_load_n(&m->wire, __ATOMIC_SEQ_CST); }

/* The processor takes its interrupt: the vector, or -1 if it is gone again. */
EXPORT int machine_acknowledge(struct machine *m)
{
    struct pic *p = &m->pic[MASTER];
    enter(m);
    int line = best(p, &m->pic[SLAVE]), vector = -1;
    if (line != NONE) {
        take(p, line);
        if (line == CASCADE) {
            p = &m->pic[SLAVE];
            line = best(p, NULL);
            if (line != NONE) take(p, line);
        }
        vector = p->base + (line == NONE ? SPURIOUS : line);
    }
    leave(m);
    return vector;
}
