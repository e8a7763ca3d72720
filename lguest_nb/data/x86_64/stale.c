/* Which pages have been translated, and when a translation is no longer true.
 *
 * In QEMU a page is "clean" while it holds translated code: a store to it takes the slow way, which drops what it hit, and
 * when nothing is left the page becomes "dirty" and stores are quick again. Unicorn has cut that short: new code does not
 * make the page clean under its other virtual addresses, and one store makes it dirty although code remains.
 */
#include "interpose.h"

enum { PAGE_WRITE = 2, PAGE_EXEC = 4, INSTRUCTION_FETCH = 2 };
typedef struct block block; /* TranslationBlock */

void will_generate(struct machine *m, uint64_t pc); /* lookup.c */

UNICORN(void, tlb_protect_code_x86_64, uc *, uint64_t);
UNICORN(void, tlb_reset_dirty_x86_64, cpu *, void *, uint64_t);
UNICORN(void, tlb_reset_dirty_by_vaddr_x86_64, cpu *, uint64_t, uint64_t);
UNICORN(void *, qemu_map_ram_ptr_x86_64, uc *, void *, uint64_t);
UNICORN(void, tlb_unprotect_code_x86_64, uc *, uint64_t);
UNICORN(void, tb_invalidate_phys_page_fast_x86_64, uc *, void *, uint64_t, int, void *);
UNICORN(void, tb_invalidate_phys_range_x86_64, uc *, uint64_t, uint64_t);
UNICORN(void, tlb_set_dirty_x86_64, cpu *, uint64_t);
UNICORN(block *, tb_gen_code_x86_64, cpu *, uint64_t, uint64_t, uint32_t, int);
UNICORN(bool, x86_cpu_tlb_fill_x86_64, cpu *, uint64_t, int, int, int, bool, uintptr_t);
UNICORN(void, tlb_set_page_with_attrs_x86_64, cpu *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);

/* A page gets its first translation: make it clean wherever it is mapped. */
EXPORT void tlb_protect_code_x86_64(uc *u, uint64_t ram)
{
    struct machine *m = machine_of(u);
    if (!m || ram / PAGE >= m->pages) {
        unicorn_tlb_protect_code_x86_64(u, ram);
        return;
    }
    __atomic_store_n(&m->has_code[ram / PAGE], 1, __ATOMIC_RELEASE);
    unicorn_tlb_reset_dirty_x86_64(m->cpu, unicorn_qemu_map_ram_ptr_x86_64(u, NULL, ram & -PAGE), PAGE);
}

/* Unicorn's half-way house, for the one virtual address from which the code was fetched. */
EXPORT void tlb_reset_dirty_by_vaddr_x86_64(cpu *c, uint64_t address, uint64_t length)
{
    if (!machine_of(c)) unicorn_tlb_reset_dirty_by_vaddr_x86_64(c, address, length);
}

/* A page has lost its last translation. */
EXPORT void tlb_unprotect_code_x86_64(uc *u, uint64_t ram)
{
    struct machine *m = machine_of(u);
    if (!m) unicorn_tlb_unprotect_code_x86_64(u, ram);
    else if (ram / PAGE < m->pages) __atomic_store_n(&m->has_code[ram / PAGE], 0, __ATOMIC_RELEASE);
}

/* A store on the slow way: note its page, and ... */
EXPORT void tb_invalidate_phys_page_fast_x86_64(uc *u, void *pages, uint64_t ram, int length, void *retaddr)
{
    struct machine *m = machine_of(u);
    if (m) m->written = ram / PAGE, m->may_have_dropped = true;
    unicorn_tb_invalidate_phys_page_fast_x86_64(u, pages, ram, length, retaddr);
}

/* ... of the same store: it is dirty now, but only if no code is left. */
EXPORT void tlb_set_dirty_x86_64(cpu *c, uint64_t address)
{
    struct machine *m = machine_of(c);
    if (!m || m->written >= m->pages || !m->has_code[m->written]) unicorn_tlb_set_dirty_x86_64(c, address);
}

/* Unicorn never makes a page dirty which can be executed, so stores to what is both would be slow for ever. Such a page is
 * entered for the one or for the other, as whoever missed it wants it. The other one will miss it again. */
static __thread int access;

EXPORT bool x86_cpu_tlb_fill_x86_64(
    cpu *c, uint64_t address, int size, int type, int mmu, bool probe, uintptr_t retaddr)
{
    access = type;
    return unicorn_x86_cpu_tlb_fill_x86_64(c, address, size, type, mmu, probe, retaddr);
}

EXPORT void tlb_set_page_with_attrs_x86_64(
    cpu *c, uint64_t address, uint64_t physical, uint32_t attributes, int allowed, int mmu, uint64_t size)
{
    if ((allowed & PAGE_WRITE) && (allowed & PAGE_EXEC) && machine_of(c))
        allowed &= access == INSTRUCTION_FETCH ? ~PAGE_WRITE : ~PAGE_EXEC;
    unicorn_tlb_set_page_with_attrs_x86_64(c, address, physical, attributes, allowed, mmu, size);
}

/* Between reading the code and marking its page there is a gap, and a device's write may fall into it. */
EXPORT block *tb_gen_code_x86_64(cpu *c, uint64_t pc, uint64_t code_base, uint32_t flags, int how)
{
    struct machine *m = machine_of(c);
    will_generate(m, pc);
    if (!m) return unicorn_tb_gen_code_x86_64(c, pc, code_base, flags, how);
    __atomic_store_n(&m->translating, true, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with machine_holds_code's */
    block *b = unicorn_tb_gen_code_x86_64(c, pc, code_base, flags, how); /* a fault skips what follows: then it stays set */
    __atomic_store_n(&m->translating, false, __ATOMIC_RELEASE);
    return b;
}

/* May code in these bytes, which somebody has just changed, have been translated before that? Any thread. */
EXPORT bool machine_holds_code(struct machine *m, uint64_t first, uint64_t length)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&m->translating, __ATOMIC_ACQUIRE)) return true;
    for (uint64_t page = first / PAGE; length && page < m->pages && page <= (first + length - 1) / PAGE; page++)
        if (__atomic_load_n(&m->has_code[page], __ATOMIC_ACQUIRE)) return true;
    return false;
}

/* The first of `count` ranges, an address and a length each, of which that is so, or `count`. Any thread. */
EXPORT int machine_first_code(struct machine *m, const uint64_t *ranges, int count)
{
    int n = 0;
    while (n < count && !machine_holds_code(m, ranges[2 * n], ranges[2 * n + 1])) n++;
    return n;
}

EXPORT void tb_invalidate_phys_range_x86_64(uc *u, uint64_t first, uint64_t end)
{
    struct machine *m = machine_of(u);
    if (m) m->may_have_dropped = true;
    unicorn_tb_invalidate_phys_range_x86_64(u, first, end);
}

/* Forget what was translated of these bytes. On the CPU thread. */
EXPORT void machine_drop_code(struct machine *m, uint64_t first, uint64_t length)
{
    tb_invalidate_phys_range_x86_64(m->uc, first, first + length);
}
