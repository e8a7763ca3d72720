/* Who may use ports: Unicorn lets anybody. The processor asks its privilege level, and then the task's map of permissions
 * (Intel's manual, volume 1, 19.5). Without this any program in a Guest could write to the register which switches it off.
 */
#include "interpose.h"

enum { HF_CPL = 3, HF_PE = 1 << 7 };                      /* hflags */
enum { FL_IOPL = 12, FL_VM = 1 << 17 };                   /* EFLAGS; the first is two bits' place */
enum { PRESENT = 1 << 15, KIND = 8, AVAILABLE_TASK = 9 }; /* a segment's flags */
enum { MAP_AT = 0x66, AS_KERNEL = 2, GENERAL_PROTECTION = 13 };

UNICORN(uint32_t, cpu_lduw_mmuidx_ra_x86_64, env *, uint64_t, int, uintptr_t);
UNICORN(uint64_t, helper_read_eflags_x86_64, env *);
UNICORN(void, raise_exception_err_ra_x86_64, env *, int vector, int error, uintptr_t retaddr);

static bool mapped(env *e, uint32_t port, int size, uintptr_t retaddr)
{
    struct segment *task = &SEGMENT(e, TASK);
    /* QEMU marks a task as busy in its descriptor, but not always in its own copy. */
    if (!(task->flags & PRESENT) || (task->flags >> KIND & 0xd) != AVAILABLE_TASK || task->limit < MAP_AT + 1) return false;
    uint32_t byte = unicorn_cpu_lduw_mmuidx_ra_x86_64(e, task->base + MAP_AT, AS_KERNEL, retaddr) + port / 8;
    if (byte + 1 > task->limit) return false;
    return !(unicorn_cpu_lduw_mmuidx_ra_x86_64(e, task->base + byte, AS_KERNEL, retaddr) >> port % 8 & ((1 << size) - 1));
}

static void check(uc *u, uint32_t port, int size, uintptr_t retaddr)
{
    struct machine *m = machine_of(u);
    if (!m) return;
    uint32_t mode = FIELD(uint32_t, m->env, hflags), flags;
    if (!(mode & HF_PE) || !(mode & HF_CPL)) return;
    flags = unicorn_helper_read_eflags_x86_64(m->env);
    if (!(flags & FL_VM) && (mode & HF_CPL) <= (flags >> FL_IOPL & 3)) return;
    if (!mapped(m->env, port, size, retaddr)) /* does not return */
        unicorn_raise_exception_err_ra_x86_64(m->env, GENERAL_PROTECTION, 0, retaddr);
}

#define PORT(in, out, type)                                                                                            \
    UNICORN(type, in, uc *, uint32_t, uintptr_t);                                                                      \
    UNICORN(void, out, uc *, uint32_t, type, uintptr_t);                                                               \
    EXPORT type in(uc *u, uint32_t port, uintptr_t retaddr)                                                            \
    {                                                                                                                  \
        check(u, port, sizeof(type), retaddr);                                                                         \
        return unicorn_##in(u, port, retaddr);                                                                         \
    }                                                                                                                  \
    EXPORT void out(uc *u, uint32_t port, type value, uintptr_t retaddr)                                               \
    {                                                                                                                  \
        check(u, port, sizeof(type), retaddr);                                                                         \
        unicorn_##out(u, port, value, retaddr);                                                                        \
    }
PORT(cpu_inb_x86_64, cpu_outb_x86_64, uint8_t)
PORT(cpu_inw_x86_64, cpu_outw_x86_64, uint16_t)
PORT(cpu_inl_x86_64, cpu_outl_x86_64, uint32_t)
