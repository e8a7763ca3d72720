/* An interrupt's way in. Unicorn has kept QEMU's, and nobody to knock at it. */
#include "interpose.h"
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { HARDWARE = 2 }; /* CPU_INTERRUPT_HARD */
enum { REG_EFLAGS = 25, INTERRUPTS_ON = 1 << 9 };

UNICORN(void, do_interrupt_x86_hardirq_x86_64, env *, int, int);
UNICORN(void, cpu_exit, cpu *);
UNICORN(int, uc_reg_read, uc *, int, void *);
UNICORN(void, cpu_interrupt_handler, cpu *, int); /* a variable, in truth: it holds the address of a function */

static void request(struct machine *m)
{
    void (**handler)(cpu *, int) = (void *)unicorn_cpu_interrupt_handler;
    (*handler)(m->cpu, HARDWARE);
    unicorn_cpu_exit(m->cpu);
}

/* How the interrupt controller's wire is now. Any thread, but one at a time. Whether it still is will be asked when the
 * processor cares. */
void set_wire(struct machine *m, bool up)
{
    __atomic_store_n(&m->wire, up, __ATOMIC_SEQ_CST);
    if (!up) return;
    request(m);
    wake(m);
}

/* After HLT: sleep until the wire goes up. False: somebody wants a stop, a signal came, or interrupts are off and nothing
 * can end this. Whoever sets `wire` or `asked` looks at `asleep` afterwards, and we do it the other way round, so that one of
 * us sees the other. */
bool sleep_halted(struct machine *m)
{
    uint64_t flags = 0;
    unicorn_uc_reg_read(m->uc, REG_EFLAGS, &flags);
    if (!(flags & INTERRUPTS_ON)) return false;
    for (;;) {
        __atomic_store_n(&m->asleep, 1, __ATOMIC_SEQ_CST);
        bool asked = __atomic_load_n(&m->asked, __ATOMIC_SEQ_CST), wire = __atomic_load_n(&m->wire, __ATOMIC_SEQ_CST);
        bool signalled = !asked && !wire && syscall(SYS_futex, &m->asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0)
                         && errno == EINTR;
        if (!asked && !wire && !signalled) continue;
        __atomic_store_n(&m->asleep, 0, __ATOMIC_SEQ_CST);
        if (asked || signalled) return false;
        request(m);
        return true;
    }
}

void wake(struct machine *m)
{
    if (__atomic_exchange_n(&m->asleep, 0, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &m->asleep, FUTEX_WAKE_PRIVATE, 1);
}

/* The processor takes an interrupt: QEMU has looked at IF and at the shadow of STI, cleared the request, and passes 0 as the
 * vector, for it has no controller to ask. Ours answers -1 if the wire is down again. */
EXPORT void do_interrupt_x86_hardirq_x86_64(env *e, int vector, int is_hardware)
{
    struct machine *m = machine_of(e);
    if (m && is_hardware) {
        vector = m->acknowledge ? m->acknowledge() : machine_acknowledge(m);
        if (vector < 0) return;
        m->counts[INTERRUPTS]++;
    }
    unicorn_do_interrupt_x86_hardirq_x86_64(e, vector, is_hardware);
}
