/* Everything at once which a processor in software gets wrong first. Runs as /init of a Guest, or on any x86-64 Linux:
 *     gcc -O1 -static -pthread -o torture *.c -lm && ./torture DIRECTORY
 * Each line it prints is a test, and "ok" or what was wrong. Files in the directory should come from a disk.
 */
#include "torture.h"
#include <fcntl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static int wrong;

void verdict(const char *name, long got, long expected)
{
    if (got == expected) printf("torture: %s: ok\n", name);
    else printf("torture: %s: %#lx in place of %#lx\n", name, got, expected), wrong++;
    fflush(stdout);
}

static void load_drivers(void)
{
    for (int n = 0;; n++) {
        char name[40];
        snprintf(name, sizeof name, "/lib/modules/%d.ko", n);
        int fd = open(name, O_RDONLY);
        if (fd < 0) return;
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
}

/* The first program of a Guest: a console, and a file system from a disk. */
static void begin(void)
{
    mount("none", "/dev", "devtmpfs", 0, NULL);
    mount("none", "/proc", "proc", 0, NULL);
    load_drivers();
    klogctl(8, NULL, 1); /* of the kernel, only what it dies of: our lines are to be lines */
    int fd = open("/dev/console", O_RDWR);
    for (int n = 0; n < 3; n++) dup2(fd, n);
    if (mount("/dev/vda", "/disk", "ext4", 0, NULL)) perror("torture: /dev/vda"), wrong++;
}

int main(int argc, char **argv)
{
    if (getpid() == 1) begin();
    numbers();
    code();
    loaded(argc > 1 ? argv[1] : "/disk");
    faults();
    interrupted();
    processes();
    system_calls();
    traced();
    printf("torture: %s\n", wrong ? "SOMETHING IS WRONG" : "all is well");
    fflush(stdout);
    if (getpid() == 1) sync(), reboot(RB_POWER_OFF);
    return wrong != 0;
}
