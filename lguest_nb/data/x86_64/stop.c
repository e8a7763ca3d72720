/* Stopping where a block begins, and nowhere else.
 *
 * Unicorn asks after each load and store whether it should stop, also in the middle of an instruction: what had been loaded
 * was then lost, or what was stored was stored twice. QEMU asks where a block begins. So does Unicorn, besides.
 */
#include "interpose.h"

UNICORN(void, check_exit_request_x86_64, void *);
UNICORN(int, cpu_exec_x86_64, uc *, cpu *);
UNICORN(int, uc_emu_stop, uc *);
UNICORN(int, uc_emu_start, uc *, uint64_t, uint64_t, uint64_t, size_t);
UNICORN(int, uc_reg_read, uc *, int, void *);
UNICORN(void, cpu_exit, cpu *);
UNICORN(void, helper_hlt_x86_64, env *, int);

enum { REG_RIP = 41 };

bool translating_for_a_machine(void); /* lock.c */
bool sleep_halted(struct machine *m);    /* interrupt.c */
static __thread bool in_memory_operation;

EXPORT void check_exit_request_x86_64(void *translator)
{
    if (!in_memory_operation || !translating_for_a_machine()) unicorn_check_exit_request_x86_64(translator);
}

#define MEMORY_OPERATION(name)                                                                                         \
    UNICORN(void, name, void *, void *, void *, uint64_t, int);                                                        \
    EXPORT void name(void *translator, void *value, void *address, uint64_t index, int kind)                           \
    {                                                                                                                  \
        in_memory_operation = true;                                                                                    \
        unicorn_##name(translator, value, address, index, kind);                                                       \
        in_memory_operation = false;                                                                                   \
    }
MEMORY_OPERATION(tcg_gen_qemu_ld_i32_x86_64)
MEMORY_OPERATION(tcg_gen_qemu_ld_i64_x86_64)
MEMORY_OPERATION(tcg_gen_qemu_st_i32_x86_64)
MEMORY_OPERATION(tcg_gen_qemu_st_i64_x86_64)

/* uc_emu_start() begins by forgetting earlier stops. This is called afterwards, and whenever the processor has left its
 * blocks, so that a stop is never lost, whatever the moment it comes at. */
EXPORT int cpu_exec_x86_64(uc *u, cpu *c)
{
    struct machine *m = machine_of(u);
    if (!m || !__atomic_load_n(&m->asked, __ATOMIC_SEQ_CST)) return unicorn_cpu_exec_x86_64(u, c);
    unicorn_uc_emu_stop(u);
    return 0;
}

/* Have machine_run() return soon, now or the next time. Any thread. */
EXPORT void machine_stop(struct machine *m)
{
    __atomic_store_n(&m->asked, true, __ATOMIC_SEQ_CST);
    unicorn_cpu_exit(m->cpu);
    wake(m);
}

EXPORT void helper_hlt_x86_64(env *e, int length)
{
    struct machine *m = machine_of(e);
    if (m) m->halted = true;
    unicorn_helper_hlt_x86_64(e, length);
}

/* Go on where it stands, until it is stopped, or sleep_halted() gives up: 0, or Unicorn's error. */
EXPORT int machine_run(struct machine *m)
{
    uint64_t rip;
    int error;
    do {
        m->halted = false;
        unicorn_uc_reg_read(m->uc, REG_RIP, &rip);
        error = unicorn_uc_emu_start(m->uc, rip, 0, 0, 0);
    } while (!error && m->halted && sleep_halted(m));
    return error;
}

EXPORT bool machine_halted(struct machine *m) { return m->halted; }

/* Did anybody ask for a stop since the last time? */
EXPORT bool machine_asked(struct machine *m) { return __atomic_exchange_n(&m->asked, false, __ATOMIC_SEQ_CST); }
