/* An engine of Unicorn's becomes a machine. */
#include "interpose.h"
#include <stdlib.h>

enum { REG_RAX = 35 };

UNICORN(int, uc_reg_read, uc *, int, void *);

int hook_exceptions(struct machine *m);
int hook_registers(struct machine *m, uint64_t end);
void task_after_reset(struct machine *m);
void pic_power_on(struct machine *m);
bool new_places(struct machine *m);

/* NULL and a machine, or a sentence. RAM is at 0 and mapped; from its end up to `end` is nothing but registers. */
EXPORT const char *machine_open(
    uc *u, uint64_t ram, uint64_t end,
    uint64_t (*read)(int port, uint64_t address, int size),
    void (*write)(int port, uint64_t address, int size, uint64_t value),
    int (*acknowledge)(void),
    struct machine **result)
{
    uint64_t rax;
    unicorn_uc_reg_read(u, REG_RAX, &rax); /* the engine makes its processor now, if it hasn't yet */
    struct machine *m = machine_new(u);
    if (!m) return "Unicorn does not call the functions which should take the place of its own.";
    m->born = nanoseconds();
    m->pages = ram / PAGE;
    m->io = ram;
    m->read = read;
    m->write = write;
    m->acknowledge = acknowledge;
    pic_power_on(m);
    m->has_code = calloc(m->pages, 1);
    const char *problem = m->has_code && new_places(m) ? measure(m) : "There is not enough memory to note where there is code.";
    if (!problem && (hook_exceptions(m) || hook_registers(m, end))) problem = "Unicorn refused a hook.";
    if (problem) {
        machine_close(m);
        return problem;
    }
    task_after_reset(m);
    *result = m;
    return NULL;
}

EXPORT const uint64_t *machine_counts(struct machine *m) { return m->counts; }

/* A flat segment register with its hidden part, for a Guest which begins in long mode. */
EXPORT void machine_segment(struct machine *m, int n, uint32_t selector, uint32_t flags)
{
    SEGMENT(m->env, n) = (struct segment){ selector, 0, 0xffffffff, flags };
}
