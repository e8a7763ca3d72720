/* Why a device interrupts: a register of bits, which its threads set and the Guest clears, and nobody calls Python for that. */
#include "interpose.h"

enum { ACKNOWLEDGE = 4 }; /* virtio 1.2, 4.2.2: InterruptACK is so many bytes behind InterruptStatus */

/* From now on the register at `address` is ours: its number, or -1 if there are too many. On the CPU thread. */
EXPORT int machine_keep_reasons(struct machine *m, uint64_t address)
{
    if (m->registers == REGISTERS) return -1;
    m->reasons[m->registers].address = address;
    return m->registers++;
}

/* Any thread. Whoever sets one and then pulses the line is sure that the Guest finds it. */
EXPORT void machine_set_reasons(struct machine *m, int n, uint32_t bits)
{
    __atomic_fetch_or(&m->reasons[n].bits, bits, __ATOMIC_SEQ_CST);
}

EXPORT void machine_clear_reasons(struct machine *m, int n, uint32_t bits)
{
    __atomic_fetch_and(&m->reasons[n].bits, ~bits, __ATOMIC_SEQ_CST);
}

EXPORT uint32_t machine_reasons(struct machine *m, int n)
{
    return __atomic_load_n(&m->reasons[n].bits, __ATOMIC_SEQ_CST);
}

/* A load or a store of the Guest's, of four bytes. False: it is none of ours. */
bool load_reasons(struct machine *m, uint64_t address, uint64_t *value)
{
    for (int n = 0; n < m->registers; n++) {
        if (m->reasons[n].address != address) continue;
        *value = machine_reasons(m, n);
        return true;
    }
    return false;
}

bool store_reasons(struct machine *m, uint64_t address, uint64_t value)
{
    for (int n = 0; n < m->registers; n++) {
        if (m->reasons[n].address + ACKNOWLEDGE != address) continue;
        machine_clear_reasons(m, n, value);
        return true;
    }
    return false;
}
