/* Exceptions: Unicorn only calls hooks. Ours hand them to QEMU's own delivery, through the Guest's table. */
#include "interpose.h"

enum { HOOK_INTR = 1, HOOK_INSN_INVALID = 1 << 14, UNDEFINED_OPCODE = 6 };

UNICORN(void, x86_cpu_do_interrupt_x86_64, cpu *);
UNICORN(void, helper_raise_interrupt_x86_64, env *, int, int);
UNICORN(int, uc_hook_add, uc *, size_t *, int, void *, void *, uint64_t, uint64_t, ...);

/* INT n and INT3: note how long it was. */
EXPORT void helper_raise_interrupt_x86_64(env *e, int vector, int length)
{
    struct machine *m = machine_of(e);
    if (m) m->int_length = length;
    unicorn_helper_raise_interrupt_x86_64(e, vector, length);
}

/* Delivery may fault in its turn and longjmp() to where QEMU sees to that: nothing of ours must be in between. */
static void on_exception(uc *u, uint32_t vector, struct machine *m)
{
    m->counts[vector & 0xff]++;
    /* Unicorn has moved RIP behind INT n. QEMU's delivery does that, too, and not if there is no such gate. */
    FIELD(uint64_t, m->env, rip) -= m->int_length;
    m->int_length = 0;
    unicorn_x86_cpu_do_interrupt_x86_64(m->cpu);
}

static bool on_invalid(uc *u, struct machine *m)
{
    m->counts[UNDEFINED_OPCODE]++;
    unicorn_x86_cpu_do_interrupt_x86_64(m->cpu);
    return true;
}

int hook_exceptions(struct machine *m)
{
    size_t hook;
    int error = unicorn_uc_hook_add(m->uc, &hook, HOOK_INTR, on_exception, m, 1, 0);
    return error ? error : unicorn_uc_hook_add(m->uc, &hook, HOOK_INSN_INVALID, on_invalid, m, 1, 0);
}
