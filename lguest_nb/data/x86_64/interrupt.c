/* An interrupt's way in. Unicorn has kept QEMU's, and nobody to knock at it. */
#include "interpose.h"

enum { HARDWARE = 2 }; /* CPU_INTERRUPT_HARD */

UNICORN(void, do_interrupt_x86_hardirq_x86_64, env *, int, int);
UNICORN(void, cpu_exit, cpu *);
UNICORN(void, cpu_interrupt_handler, cpu *, int); /* a variable, in truth: it holds the address of a function */

static void request(struct machine *m)
{
    void (**handler)(cpu *, int) = (void *)unicorn_cpu_interrupt_handler;
    (*handler)(m->cpu, HARDWARE);
    unicorn_cpu_exit(m->cpu);
}

/* The interrupt controller's wire has gone up. Any thread. Whether it still is will be asked when the processor cares. */
EXPORT void machine_request(struct machine *m) { request(m); }

/* The processor takes an interrupt: QEMU has looked at IF and at the shadow of STI, cleared the request, and passes 0 as the
 * vector, for it has no controller to ask. Ours answers -1 if the wire is down again. */
EXPORT void do_interrupt_x86_hardirq_x86_64(env *e, int vector, int is_hardware)
{
    struct machine *m = machine_of(e);
    if (m && is_hardware) {
        vector = m->acknowledge();
        if (vector < 0) return;
        m->counts[INTERRUPTS]++;
    }
    unicorn_do_interrupt_x86_hardirq_x86_64(e, vector, is_hardware);
}
