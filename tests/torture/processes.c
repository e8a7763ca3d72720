/* Threads and processes: they share what is shared, and nothing else. */
#include "torture.h"
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long shared, atomic;
static void *count(void *none)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&mutex);
        shared++;
        pthread_mutex_unlock(&mutex);
        __atomic_add_fetch(&atomic, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void threads(void)
{
    pthread_t t[8];
    for (int i = 0; i < 8; i++) pthread_create(&t[i], NULL, count, NULL);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
    verdict("eight threads and a mutex", shared, 160000);
    verdict("eight threads and an atomic", atomic, 160000);
}

static void forks(void)
{
    long good = 0;
    char *page = pages(1, RW, OWN, -1);
    for (int i = 0; i < 150; i++) {
        int status;
        page[0] = i;
        pid_t child = fork();
        if (!child) {
            char seen = page[0];
            page[0] = 99; /* copied on write */
            _exit(seen == (char)i ? i & 0x7f : 255);
        }
        good += waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == (i & 0x7f)
             && page[0] == (char)i;
    }
    verdict("children which exit and say with what", good, 150);
}

/* Sixty-three processes at once, each of which makes the next two; all write the same code page, which is never the same. */
static long storm(unsigned char *page, int depth)
{
    long good = 0;
    pid_t child[2] = { 0 };
    for (int i = 0; depth && i < 2; i++) {
        child[i] = fork();
        if (!child[i]) {
            emit(page, depth * 2 + i);
            long mine = call(page) == depth * 2 + i;
            _exit(mine + storm(page, depth - 1));
        }
    }
    for (int i = 0; depth && i < 2; i++) {
        int status;
        if (waitpid(child[i], &status, 0) == child[i] && WIFEXITED(status)) good += WEXITSTATUS(status);
    }
    return good;
}

static void storms(void)
{
    unsigned char *page = pages(1, RWX, OWN, -1);
    emit(page, 1000);
    verdict("a storm of forks, and code of their own for all", storm(page, 5), 62);
    verdict("... and for the first of them", call(page), 1000);
}

/* Stopped is stopped, and continued is as if nothing had been. */
static void stops(void)
{
    volatile long *counter = pages(1, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    int status, good = 0;
    pid_t child = fork();
    if (!child)
        for (;;) counter[0]++, counter[1]++;
    while (!counter[0]) sched_yield();
    for (int i = 0; i < 150; i++) {
        kill(child, SIGSTOP);
        if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) break;
        long before = counter[0], difference = before - counter[1];
        sched_yield();
        good += counter[0] == before && (difference == 0 || difference == 1);
        kill(child, SIGCONT);
        if (waitpid(child, &status, WCONTINUED) != child || !WIFCONTINUED(status)) break;
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    verdict("a child which is stopped and continued", good, 150);
}

void processes(void)
{
    threads();
    forks();
    storms();
    stops();
}
