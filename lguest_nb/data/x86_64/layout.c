/* Where QEMU keeps what we need: write it through the documented functions, and see which bytes change. */
#define _GNU_SOURCE
#include "interpose.h"
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { /* unicorn/x86.h */
    REG_EFLAGS = 25, REG_RAX = 35, REG_RIP = 41, REG_CR0 = 50, REG_R15 = 113, REG_TR = 245, REG_MSR = 248,
    REG_FS_BASE = 250, REG_GS_BASE
};
enum { MSR_EFER = 0xc0000080, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_FMASK };

UNICORN(int, uc_reg_read, uc *, int, void *);
UNICORN(int, uc_reg_write, uc *, int, const void *);

struct layout at;
static char problem[200];

static void check(bool ok, const char *what, const char *complaint)
{
    if (!ok && !*problem) snprintf(problem, sizeof problem, "This build of Unicorn keeps its %s %s.", what, complaint);
}

/* Where in the processor a register is, or a model-specific one. If `flips` is 0 a marker is written and looked for, else
 * `bit` is changed and the 32-bit word looked for in which exactly `flips` change. What was there is put back. */
static size_t find(struct machine *m, const char *what, int reg, uint32_t msr, uint64_t bit, uint32_t flips)
{
    struct { uint64_t id, value; } x = { msr, 0 };
    uint64_t *value = msr ? &x.value : &x.id, old;
    char *cpu = (char *)m->cpu;
    size_t hit = 0, hits = 0, size = malloc_usable_size(cpu);
    char *before = malloc(size);
    int error = unicorn_uc_reg_read(m->uc, reg, &x);
    old = *value;
    memcpy(before, cpu, size);
    *value = flips ? old ^ bit : 0x15af48e25508;
    error |= unicorn_uc_reg_write(m->uc, reg, &x);
    for (size_t i = 0; i + 8 <= size; i += flips ? 4 : 8)
        if (flips ? (*(uint32_t *)(cpu + i) ^ *(uint32_t *)(before + i)) == flips : *(uint64_t *)(cpu + i) == *value)
            hit = i, hits++;
    free(before);
    *value = old;
    error |= unicorn_uc_reg_write(m->uc, reg, &x);
    check(!error && hits == 1, what, error ? "to itself" : hits ? "in more than one place" : "where we cannot find it");
    return hit;
}

const char *measure(struct machine *m)
{
    struct { uint16_t selector; uint64_t base; uint32_t limit, flags; } task = { 0x1238, 0x5a5a1000, 0x7b7b, 0x8b00 }, old;
    problem[0] = 0;
    size_t base = find(m, "RAX", REG_RAX, 0, 0, 0);
    m->env = (env *)((char *)m->cpu + base); /* the registers are what it begins with */
    check(find(m, "R15", REG_R15, 0, 0, 0) == base + 8 * R15, "registers", "in another order");
    at.rip = find(m, "RIP", REG_RIP, 0, 0, 0) - base;
    at.star = find(m, "STAR", REG_MSR, MSR_STAR, 0, 0) - base;
    at.lstar = find(m, "LSTAR", REG_MSR, MSR_LSTAR, 0, 0) - base;
    at.cstar = find(m, "CSTAR", REG_MSR, MSR_CSTAR, 0, 0) - base;
    at.fmask = find(m, "FMASK", REG_MSR, MSR_FMASK, 0, 0) - base;
    at.efer = find(m, "EFER", REG_MSR, MSR_EFER, 1, 1) - base;         /* by its bit SCE */
    at.eflags = find(m, "EFLAGS", REG_EFLAGS, 0, 1 << 18, 1 << 18) - base; /* by its bit AC */
    at.hflags = find(m, "hflags", REG_CR0, 0, 8, 0x800) - base;        /* bit 11 is a copy of CR0's TS */
    size_t fs = find(m, "FS.base", REG_FS_BASE, 0, 0, 0), gs = find(m, "GS.base", REG_GS_BASE, 0, 0, 0);
    at.segments = fs - offsetof(struct segment, base) - FS * sizeof(struct segment) - base;
    check(gs - fs == sizeof(struct segment), "segments", "in another order");
    if (*problem) return problem;
    unicorn_uc_reg_read(m->uc, REG_TR, &old);
    unicorn_uc_reg_write(m->uc, REG_TR, &task);
    struct segment *s = &SEGMENT(m->env, TASK);
    check(s->selector == task.selector && s->base == task.base && s->limit == task.limit && s->flags == task.flags,
          "segments", "in another form");
    unicorn_uc_reg_write(m->uc, REG_TR, &old);
    return *problem ? problem : NULL;
}
