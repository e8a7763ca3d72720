/* What is not RAM: ports, registers in memory, and doorbells, which ring without Python. */
#include "interpose.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HOOK_INSN = 2, INS_IN = 218, INS_OUT = 500 };
enum { MEMORY, PORT };

UNICORN(int, uc_hook_add, uc *, size_t *, int, void *, void *, uint64_t, uint64_t, ...);
UNICORN(int, uc_mmio_map, uc *, uint64_t, uint64_t, void *, void *, void *, void *);

bool pic_port(uint32_t port); /* pic.c */
int machine_pic_read(struct machine *m, uint32_t port);
void machine_pic_write(struct machine *m, uint32_t port, int value);
bool post(struct machine *m, uint32_t port, uint8_t byte); /* outbox.c */
bool may_post(struct machine *m, uint32_t port, uint32_t *answer);
bool load_reasons(struct machine *m, uint64_t address, uint64_t *value); /* reasons.c */
bool store_reasons(struct machine *m, uint64_t address, uint64_t value);

static bool ring(struct machine *m, uint64_t address, uint64_t value)
{
    const uint64_t one = 1;
    for (int i = 0; i < m->doorbells; i++) {
        struct doorbell *d = &m->doorbell[i];
        if (d->address != address || !(d->any || d->value == value)) continue;
        m->counts[KICKS]++;
        return write(d->fd, &one, sizeof one) == sizeof one;
    }
    return false;
}

static uint64_t on_read(uc *u, uint64_t offset, unsigned size, struct machine *m)
{
    uint64_t value;
    if (size == 4 && load_reasons(m, m->io + offset, &value)) return value;
    return m->read(MEMORY, m->io + offset, size);
}

static void on_write(uc *u, uint64_t offset, unsigned size, uint64_t value, struct machine *m)
{
    uint64_t address = m->io + offset;
    bool whole = size == 4; /* doorbells and reasons are registers of 32 bits */
    if (whole && (ring(m, address, value) || store_reasons(m, address, value))) return;
    m->write(MEMORY, address, size, value);
}

static bool is_pic(struct machine *m, uint32_t port, int size) { return size == 1 && !m->acknowledge && pic_port(port); }

static uint32_t on_in(uc *u, uint32_t port, int size, struct machine *m)
{
    uint32_t answer;
    if (size == 1 && may_post(m, port, &answer)) return answer;
    return is_pic(m, port, size) ? (uint32_t)machine_pic_read(m, port) : m->read(PORT, port, size);
}

static void on_out(uc *u, uint32_t port, int size, uint32_t value, struct machine *m)
{
    if (size == 1 && post(m, port, value)) return;
    if (is_pic(m, port, size)) machine_pic_write(m, port, value & 0xff);
    else m->write(PORT, port, size, value);
}

int hook_registers(struct machine *m, uint64_t end)
{
    size_t hook;
    int error = unicorn_uc_mmio_map(m->uc, m->io, end - m->io, on_read, m, on_write, m);
    if (!error) error = unicorn_uc_hook_add(m->uc, &hook, HOOK_INSN, on_in, m, 1, 0, INS_IN);
    return error ? error : unicorn_uc_hook_add(m->uc, &hook, HOOK_INSN, on_out, m, 1, 0, INS_OUT);
}

/* From now on a store of `value` (or of any) to `address` rings `fd`. On the CPU thread. False: there are too many. */
EXPORT bool machine_attach(struct machine *m, uint64_t address, bool any, uint64_t value, int fd)
{
    if (m->doorbells == DOORBELLS) return false;
    m->doorbell[m->doorbells++] = (struct doorbell){ address, value, any, fd };
    return true;
}

/* No more: the descriptor which it rang, or -1. */
EXPORT int machine_detach(struct machine *m, uint64_t address, bool any, uint64_t value)
{
    for (int i = 0; i < m->doorbells; i++) {
        struct doorbell d = m->doorbell[i];
        if (d.address != address || d.any != any || (!any && d.value != value)) continue;
        m->doorbell[i] = m->doorbell[--m->doorbells];
        return d.fd;
    }
    return -1;
}
