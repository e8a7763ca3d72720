/* Programs which a device loads over each other: nobody stored to those pages, and yet they have changed. */
#include "torture.h"
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>

static int open_in(const char *directory, const char *name, int flags)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, flags, 0755);
    if (fd < 0) perror(path);
    return fd;
}

enum { PROGRAMS = 16 };
static int disk;

/* Program i is on pages 2i and 2i + 1: one function at the beginning, and one on the border between the two. */
static void write_programs(void)
{
    unsigned char *p = pages(2 * PROGRAMS, RW, OWN, -1);
    for (int i = 0; i < PROGRAMS; i++) {
        emit(p + 8192 * i, i);
        emit(p + 8192 * i + 4094, i << 8);
    }
    verdict("programs written to the disk", pwrite(disk, p, 8192 * PROGRAMS, 0), 8192 * PROGRAMS);
}

/* Two programs in turn into the same pages, and each is run. */
static void over_each_other(const char *how, unsigned char *w, unsigned char *x)
{
    char name[100];
    long good = 0;
    for (int n = 0; n < 300; n++) {
        int i = n * 7 % PROGRAMS;
        if (pread(disk, w, 8192, 8192 * i) != 8192) break;
        good += call(x) == i;
        good += call(x + 4094) == i << 8;
        int next = (i + 1) % PROGRAMS; /* and now the second page alone */
        if (pread(disk, w + 4096, 4096, 8192 * next + 4096) != 4096) break;
        good += call(x + 4094) == next << 8;
    }
    snprintf(name, sizeof name, "programs loaded over each other, %s", how);
    verdict(name, good, 900);
}

static volatile int stop;
static unsigned char *target;
static void *keeps_running(void *none)
{
    long wrong = 0;
    while (!stop) {
        int i = call(target);
        wrong += i < 0 || i >= PROGRAMS;
    }
    return (void *)wrong;
}

/* Over a program which another thread is running. */
static void while_running(void)
{
    struct twice t = twice(1);
    pthread_t thread;
    long good = 0;
    void *wrong;
    emit(t.w, 0);
    target = t.x;
    pthread_create(&thread, NULL, keeps_running, NULL);
    for (int n = 0; n < 100; n++) {
        int i = n * 5 % PROGRAMS;
        if (pread(disk, t.w, 4096, 8192 * i) != 4096) break;
        good += call(t.x) == i;
    }
    stop = 1;
    pthread_join(thread, &wrong);
    verdict("a program loaded over one which runs", good, 100);
    verdict("... and that one was always one or the other", (long)wrong, 0);
}

/* A file which is mapped, and changes behind the page cache's back. */
static void mapped(void)
{
    unsigned char *page = pages(1, RW, OWN, -1), *x = pages(1, RX, MAP_SHARED, disk);
    long good = 0;
    for (int i = 0; i < 100; i++) {
        emit(page, i);
        if (pwrite(disk, page, 4096, 0) != 4096) break;
        good += call(x) == i;
    }
    verdict("a program mapped from a file which changes", good, 100);
}

/* The smallest program there is: it exits, and says with what. */
static int write_elf(const char *directory, const char *name, int status)
{
    enum { AT = 0x400000 };
    struct { Elf64_Ehdr e; Elf64_Phdr p; unsigned char code[16]; } file = {
        { { 0x7f, 'E', 'L', 'F', 2, 1, 1 }, ET_EXEC, EM_X86_64, 1, AT + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
          sizeof(Elf64_Ehdr), 0, 0, sizeof(Elf64_Ehdr), sizeof(Elf64_Phdr), 1, 0, 0, 0 },
        { PT_LOAD, PF_R | PF_X, 0, AT, AT, sizeof file, sizeof file, 4096 },
        { 0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05 }, /* exit(status) */
    };
    int fd = open_in(directory, name, O_RDWR | O_CREAT | O_TRUNC);
    long n = write(fd, &file, sizeof file);
    fsync(fd);
    close(fd);
    return n == sizeof file;
}

static void drop_caches(int fd)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (getpid() != 1) return;
    int all = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (write(all, "3", 1) != 1) perror("torture: drop_caches");
    close(all);
}

static void executed(const char *directory)
{
    static const char *const names[] = { "one", "two" };
    long good = 0;
    for (int i = 0; i < 2; i++)
        if (!write_elf(directory, names[i], 40 + i)) return verdict("programs in files", 0, 1);
    for (int i = 0; i < 60; i++) {
        int status, fd = open_in(directory, names[i % 2], O_RDONLY);
        drop_caches(fd);
        pid_t child = vfork();
        if (!child) {
            char *none[] = { NULL };
            fexecve(fd, none, none);
            _exit(99);
        }
        close(fd);
        good += waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 40 + i % 2;
    }
    verdict("two programs executed from a disk by turns, and nothing kept in memory", good, 60);
}

void loaded(const char *directory)
{
    disk = open_in(directory, "programs", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT);
    if (disk < 0) disk = open_in(directory, "programs", O_RDWR | O_CREAT | O_TRUNC); /* a file system in memory */
    unsigned char *p = pages(2, RWX, OWN, -1);
    struct twice t = twice(2);
    write_programs();
    over_each_other("where they can be written and executed", p, p);
    over_each_other("by way of another mapping", t.w, t.x);
    while_running();
    mapped();
    close(disk);
    executed(directory);
}
