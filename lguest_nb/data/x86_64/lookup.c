/* Where to go on when a translation could not know it: after a return, an indirect jump, or a jump to another page.
 *
 * QEMU asks a table of 4,096 blocks, and the block itself whether it is the one; a kernel has ten times as many, and each
 * question costs two misses of the host's cache. This table is larger, says by itself whether it is right, and is forgotten
 * as a whole by growing older: whenever QEMU would forget a part of its own.
 */
#include "interpose.h"
#include <stdlib.h>

enum { PLACES = 1 << 14 };
enum { IN_FLAGS = 0x73100 }; /* of EFLAGS: AC, VM, RF, IOPL and TF, for which QEMU translates differently */

struct place {
    uint64_t pc, code_base;
    void *code;          /* the host's */
    uint32_t flags, age; /* not of the machine's age: not true any more */
};

UNICORN(void *, helper_lookup_tb_ptr_x86_64, env *);
UNICORN(void *, tcg_tb_alloc_x86_64, translator *);
UNICORN(size_t, tcg_tb_phys_invalidate_count_x86_64, translator *);
UNICORN(void, tb_flush_x86_64, cpu *);
UNICORN(void, tlb_flush_by_mmuidx_x86_64, cpu *, uint16_t);
UNICORN(void, tb_flush_jmp_cache_x86_64, cpu *, uint64_t);

static void forget(struct machine *m)
{
    if (++m->age) return;
    for (int i = 0; i < PLACES; i++) m->places[i].age = 0; /* of all ages there can be, one is taken again */
    m->age = 1;
}

bool new_places(struct machine *m)
{
    m->places = calloc(PLACES, sizeof *m->places);
    m->age = 1;
    return m->places;
}

static struct place *place(struct machine *m, uint64_t pc)
{
    return &m->places[(pc ^ pc >> 14) & (PLACES - 1)];
}

EXPORT void *helper_lookup_tb_ptr_x86_64(env *e)
{
    static struct machine *latest;
    struct machine *m = __atomic_load_n(&latest, __ATOMIC_RELAXED);
    if (!m || m->env != e) {
        m = machine_of(e);
        if (!m) return unicorn_helper_lookup_tb_ptr_x86_64(e);
        __atomic_store_n(&latest, m, __ATOMIC_RELAXED);
    }
    if (m->may_have_dropped) {
        size_t dropped = unicorn_tcg_tb_phys_invalidate_count_x86_64(m->translator);
        if (dropped != m->dropped) forget(m);
        m->dropped = dropped;
        m->may_have_dropped = false;
    }
    uint64_t code_base = SEGMENT(e, CODE).base, pc = code_base + FIELD(uint64_t, e, rip);
    uint32_t flags = FIELD(uint32_t, e, hflags) | (FIELD(uint32_t, e, eflags) & IN_FLAGS);
    struct place *p = place(m, pc);
    if (p->pc == pc && p->age == m->age && p->flags == flags && p->code_base == code_base) return p->code;
    void *code = unicorn_helper_lookup_tb_ptr_x86_64(e);
    *p = (struct place){ pc, code_base, code, flags, m->age };
    return code;
}

static __thread struct machine *generating;

/* A block is made, for nobody found one. What was noted instead was the way back to QEMU, which has to make it. On this
 * thread other engines make blocks, too: for them `m` is NULL. */
void will_generate(struct machine *m, uint64_t pc)
{
    generating = m;
    if (m) place(m, pc)->age = 0;
}

EXPORT void *tcg_tb_alloc_x86_64(translator *t)
{
    if (generating) generating->translator = t;
    return unicorn_tcg_tb_alloc_x86_64(t);
}

/* All translations are gone, and their memory is used again. */
EXPORT void tb_flush_x86_64(cpu *c)
{
    struct machine *m = machine_of(c);
    if (m) forget(m);
    unicorn_tb_flush_x86_64(c);
}

EXPORT void tlb_flush_by_mmuidx_x86_64(cpu *c, uint16_t which)
{
    struct machine *m = machine_of(c);
    if (m) forget(m);
    unicorn_tlb_flush_by_mmuidx_x86_64(c, which);
}

EXPORT void tb_flush_jmp_cache_x86_64(cpu *c, uint64_t address)
{
    struct machine *m = machine_of(c);
    if (m) forget(m);
    unicorn_tb_flush_jmp_cache_x86_64(c, address);
}
