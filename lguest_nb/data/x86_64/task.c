/* The task register: there is always a task, as on a processor. Where QEMU finds none, it calls abort(). */
#include "interpose.h"

enum { GENERAL_PROTECTION = 13 };

UNICORN(void, helper_ltr_x86_64, env *, int);
UNICORN(void, raise_exception_err_ra_x86_64, env *, int vector, int error, void *retaddr);

/* Intel's manual, volume 3, table 9-1: after a reset there is one at 0, and it is busy. */
void task_after_reset(struct machine *m) { SEGMENT(m->env, TASK) = (struct segment){ 0, 0, 0xffff, 0x8b00 }; }

/* ... and volume 2, LTR: selector 0 is none. QEMU takes it, and has no task from then on. */
EXPORT void helper_ltr_x86_64(env *e, int selector)
{
    if (!(selector & 0xfffc)) /* does not return */
        unicorn_raise_exception_err_ra_x86_64(e, GENERAL_PROTECTION, 0, __builtin_return_address(0));
    unicorn_helper_ltr_x86_64(e, selector);
}
