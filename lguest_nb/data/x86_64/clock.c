/* A time-stamp counter of exactly 1 GHz: no Guest has to measure how fast it is. It begins at 0. */
#include "interpose.h"
#include <time.h>

UNICORN(uint64_t, cpu_get_tsc_x86_64, env *);

uint64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

EXPORT uint64_t cpu_get_tsc_x86_64(env *e)
{
    struct machine *m = machine_of(e);
    return m ? nanoseconds() - m->born : unicorn_cpu_get_tsc_x86_64(e);
}
