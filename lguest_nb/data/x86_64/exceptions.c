/* Exceptions: Unicorn only calls hooks. Ours hand them to QEMU's own delivery, through the Guest's table. */
#include "interpose.h"

enum { HOOK_INTR = 1, HOOK_INSN_INVALID = 1 << 14, DEBUG = 1, UNDEFINED_OPCODE = 6, NOT_PRESENT = 11,
       GENERAL_PROTECTION = 13 };
enum { INT1 = 0xf1, IN_IDT = 2, HF_LMA = 0x4000 };

UNICORN(void, x86_cpu_do_interrupt_x86_64, cpu *);
UNICORN(void, helper_raise_interrupt_x86_64, env *, int, int);
UNICORN(uint32_t, cpu_ldub_code_x86_64, env *, uint64_t);
UNICORN(void, raise_exception_err_x86_64, env *, int, int);
UNICORN(int, uc_hook_add, uc *, size_t *, int, void *, void *, uint64_t, uint64_t, ...);

/* INT n and INT3: note how long it was. */
EXPORT void helper_raise_interrupt_x86_64(env *e, int vector, int length)
{
    struct machine *m = machine_of(e);
    if (m) m->int_length = length;
    unicorn_helper_raise_interrupt_x86_64(e, vector, length);
}

/* An error code which names a gate is its number times 8. QEMU takes the gate's offset, and those of 64 bits have 16 bytes. */
EXPORT void raise_exception_err_x86_64(env *e, int vector, int error)
{
    bool gate = (vector == GENERAL_PROTECTION || vector == NOT_PRESENT) && (error & 7) == IN_IDT;
    if (gate && machine_of(e) && FIELD(uint32_t, e, hflags) & HF_LMA) error = (error - IN_IDT) / 2 + IN_IDT;
    unicorn_raise_exception_err_x86_64(e, vector, error);
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

/* INT1 is an instruction of one byte, which Unicorn does not know. It traps: RIP is behind it. */
static bool on_invalid(uc *u, struct machine *m)
{
    uint64_t *rip = &FIELD(uint64_t, m->env, rip);
    if (unicorn_cpu_ldub_code_x86_64(m->env, *rip + SEGMENT(m->env, CODE).base) == INT1) {
        ++*rip;
        unicorn_raise_exception_err_x86_64(m->env, DEBUG, 0); /* comes to on_exception() */
    }
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
