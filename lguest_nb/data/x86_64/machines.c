/* Which processor belongs to whom, and where Unicorn's own functions are. */
#define _GNU_SOURCE
#include "interpose.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct wanted *wanted;

void want(struct wanted *w)
{
    w->next = wanted;
    wanted = w;
}

/* Fill in all the pointers: NULL, or a sentence. RTLD_NEXT would not find them, for Unicorn is loaded RTLD_LOCAL. */
EXPORT const char *interpose_bind(const char *library)
{
    static char text[200];
    void *lib = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (!lib) return "Unicorn is not loaded.";
    for (struct wanted *w = wanted; w; w = w->next) {
        *w->where = dlsym(lib, w->name);
        if (*w->where) continue;
        snprintf(text, sizeof text, "This build of Unicorn does not export %s.", w->name);
        dlclose(lib);
        return text;
    }
    dlclose(lib);
    return NULL;
}

/* Machines are used again and never freed, so that looking for one needs no lock. */
static struct machine *machines;
static pthread_mutex_t adding = PTHREAD_MUTEX_INITIALIZER;

struct machine *machine_of(const void *p)
{
    for (struct machine *m = __atomic_load_n(&machines, __ATOMIC_ACQUIRE); m; m = m->next)
        if (p == m->uc || p == m->cpu || p == m->env) return m;
    return NULL;
}

UNICORN(cpu *, cpu_x86_init_x86_64, uc *);
static __thread struct { uc *uc; cpu *cpu; } newest;

/* Unicorn makes an engine's processor when it is first used; we only note which one it was. */
EXPORT cpu *cpu_x86_init_x86_64(uc *u)
{
    newest.cpu = unicorn_cpu_x86_init_x86_64(newest.uc = u);
    return newest.cpu;
}

/* A machine for the engine whose processor was made last on this thread, or NULL. */
struct machine *machine_new(uc *u)
{
    if (newest.uc != u) return NULL;
    pthread_mutex_lock(&adding);
    struct machine *m = machines;
    while (m && m->uc) m = m->next;
    if (!m && (m = calloc(1, sizeof *m))) {
        m->next = machines;
        __atomic_store_n(&machines, m, __ATOMIC_RELEASE);
    }
    if (m) m->uc = u, m->cpu = newest.cpu;
    pthread_mutex_unlock(&adding);
    return m;
}

/* Before the engine is closed. */
EXPORT void machine_close(struct machine *m)
{
    pthread_mutex_lock(&adding);
    free(m->has_code);
    free(m->places);
    memset((char *)m + sizeof m->next, 0, sizeof *m - sizeof m->next);
    pthread_mutex_unlock(&adding);
}
