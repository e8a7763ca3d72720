/* The first and only program of the Linux Guest which tests/test_real_kernel.py boots: a prompt on /dev/hvc0 that tries
 * the devices when it is told to.  It has no C library, so that any gcc which knows -m32 makes it, and it asks of the
 * kernel only what 2.6.31 had already.  Each command answers with a line; a failure is `WHAT: error NUMBER`. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long usize;

/* ---- The kernel: numbers from its arch/x86/include/asm/unistd_32.h, and from the headers named beside them. */
enum {
    SYS_read = 3, SYS_write = 4, SYS_open = 5, SYS_close = 6, SYS_mknod = 14, SYS_mount = 21, SYS_sync = 36,
    SYS_mkdir = 39, SYS_ioctl = 54, SYS_dup2 = 63, SYS_reboot = 88, SYS_socketcall = 102, SYS_syslog = 103,
    SYS_fsync = 118, SYS_uname = 122, SYS_poll = 168, SYS_pread64 = 180, SYS_pwrite64 = 181,
};
enum { O_RDONLY = 0, O_RDWR = 2, O_DIRECT = 0x4000 };                           /* <asm/fcntl.h> */
enum { S_IFCHR = 0x2000, S_IFBLK = 0x6000 };                                    /* <linux/stat.h> */
enum { CALL_SOCKET = 1, CALL_SENDTO = 11, CALL_RECV = 10 };                     /* <linux/net.h> */
enum { AF_INET = 2, SOCK_DGRAM = 2, SOCK_RAW = 3, IPPROTO_ICMP = 1 };           /* <linux/socket.h>, <linux/in.h> */
enum { SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS, SIOCSIFADDR = 0x8916, SIOCSIFNETMASK = 0x891c, IFF_UP = 1 };
enum { ECHO_REPLY = 0, ECHO_REQUEST = 8 };                                      /* <linux/icmp.h> */
enum { CONSOLE_OFF = 6, POLLIN = 1 };                                           /* syslog(2), poll(2) */
enum { MAGIC1 = 0xfee1dead, MAGIC2 = 672274793, RESTART = 0x01234567, POWER_OFF = 0x4321fedc };    /* reboot(2) */

static int syscall(int number, usize a, usize b, usize c, usize d, usize e) {
    int result;
    asm volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;                              /* negative: an error number */
}
#define CALL5(n, a, b, c, d, e) syscall(SYS_##n, (usize)(a), (usize)(b), (usize)(c), (usize)(d), (usize)(e))
#define CALL3(n, a, b, c) CALL5(n, a, b, c, 0, 0)

/* i386 had all of the network behind one system call until 4.3: which function it is, and where its arguments are. */
static int socketcall(int function, usize a, usize b, usize c, usize d, usize e, usize f) {
    usize arguments[] = { a, b, c, d, e, f };
    return CALL3(socketcall, function, arguments, 0);
}

/* ---- What a C library would have.  gcc itself may call the first two; in assembler, it cannot turn them into calls of
 * themselves. */
void *memset(void *to, int byte, usize n) {
    void *p = to;
    asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(byte) : "memory");
    return to;
}
void *memcpy(void *to, const void *from, usize n) {
    void *p = to;
    asm volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n) : : "memory");
    return to;
}
static usize length(const char *s) {
    usize n = 0;
    while (s[n]) n++;
    return n;
}
static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}
static void print(const char *s) {
    for (usize left = length(s); left;) {
        int n = CALL3(write, 1, s, left);
        if (n <= 0) return;                     /* nobody to tell */
        s += n, left -= n;
    }
}
static void print_number(u32 value) {
    char digits[11], *p = digits + 10;
    for (*p = 0; p == digits + 10 || value; value /= 10) *--p = '0' + value % 10;
    print(p);
}
static int good(const char *what, int result) {
    if (result >= 0) return 1;
    print(what), print(": error "), print_number(-result), print("\n");
    return 0;
}
static u32 number(const char **text) {          /* takes its digits off the text */
    u32 value = 0;
    while (**text >= '0' && **text <= '9') value = value * 10 + *(*text)++ - '0';
    return value;
}
static char *word(char **line) {                /* takes the next word off the line */
    char *start = *line;
    while (**line && **line != ' ') (*line)++;
    if (**line) *(*line)++ = 0;
    return start;
}

/* ---- The disk, past the page cache: what the test wrote to the file a moment ago is to be seen here, and what we
 * write is to be seen there.  O_DIRECT wants its memory aligned like the disk's sectors. */
enum { SECTOR = 512 };
static char sector[SECTOR + 1] __attribute__((aligned(SECTOR)));

static void transfer(const char *where, int writing) {
    u32 index = number(&where), low = index << 9, high = index >> 23;      /* times 512 */
    int disk = CALL3(open, "/dev/vda", O_RDWR | O_DIRECT, 0);
    if (!good("open /dev/vda", disk)) return;
    int done = writing ? CALL5(pwrite64, disk, sector, SECTOR, low, high)
                       : CALL5(pread64, disk, sector, SECTOR, low, high);
    if (good("transfer", done) && (!writing || good("fsync", CALL3(fsync, disk, 0, 0)))) {
        print(writing ? "written" : sector);
        print("\n");
    }
    CALL3(close, disk, 0, 0);
}
static void write_sector(const char *where, const char *text) {
    usize n = length(text);
    memset(sector, 0, sizeof sector);
    memcpy(sector, text, n < SECTOR ? n : SECTOR);
    transfer(where, 1);
}

/* ---- Entropy. */
static void entropy(void) {
    u8 bytes[16];
    int got = 0, n = 1, device = CALL3(open, "/dev/hwrng", O_RDONLY, 0);
    if (!good("open /dev/hwrng", device)) return;
    while (got < 16 && (n = CALL3(read, device, bytes + got, 16 - got)) > 0) got += n;
    CALL3(close, device, 0, 0);
    if (!good("read /dev/hwrng", n)) return;
    for (int i = 0; i < got; i++) {
        char hex[] = { "0123456789abcdef"[bytes[i] >> 4], "0123456789abcdef"[bytes[i] & 15], 0 };
        print(hex);
    }
    print("\n");
}

/* ---- The network. */
struct address { u16 family, port; u32 ip; u8 zero[8]; };                       /* struct sockaddr_in */
struct request { char name[16]; union { struct address address; u16 flags; } u; };      /* struct ifreq */
struct echo { u8 type, code; u16 checksum, id, sequence; u8 data[56]; };        /* struct icmphdr, and ping's data */

static struct address address(const char *text) {       /* 192.168.19.2, in network order as all of the kernel has it */
    struct address to = { .family = AF_INET };
    for (int i = 0; i < 4; i++) {
        to.ip |= number(&text) << 8 * i;
        if (*text == '.') text++;
    }
    return to;
}
static void set_address(const char *text) {
    struct request request = { .name = "eth0", .u.address = address(text) };
    int s = socketcall(CALL_SOCKET, AF_INET, SOCK_DGRAM, 0, 0, 0, 0);   /* the ioctls of any socket will do */
    if (!good("socket", s)) return;
    int result = CALL3(ioctl, s, SIOCSIFADDR, &request);
    request.u.address = address("255.255.255.0");
    if (result >= 0) result = CALL3(ioctl, s, SIOCSIFNETMASK, &request);
    if (result >= 0) result = CALL3(ioctl, s, SIOCGIFFLAGS, &request);
    request.u.flags |= IFF_UP;
    if (result >= 0) result = CALL3(ioctl, s, SIOCSIFFLAGS, &request);
    if (good("eth0", result)) print("up\n");
    CALL3(close, s, 0, 0);
}
static u16 checksum(const void *data, usize n) {        /* RFC 1071; n is even */
    u32 sum = 0;
    for (const u16 *p = data; n; n -= 2) sum += *p++;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}
static int replied(int s, u16 sequence) {       /* within a second of silence */
    struct { int fd; u16 events, got; } waiting = { s, POLLIN, 0 };
    static u8 packet[1500];
    while (CALL3(poll, &waiting, 1, 1000) > 0) {
        int n = socketcall(CALL_RECV, s, (usize)packet, sizeof packet, 0, 0, 0);
        int header = (packet[0] & 15) * 4;      /* a raw socket gives us the IP header as well */
        struct echo *echo = (struct echo *)(packet + header);
        if (n == header + (int)sizeof *echo && echo->type == ECHO_REPLY && echo->sequence == sequence) return 1;
    }
    return 0;
}
static void ping(const char *whom, const char *count) {
    struct address to = address(whom);
    u32 replies = 0, pings = number(&count);
    int s = socketcall(CALL_SOCKET, AF_INET, SOCK_RAW, IPPROTO_ICMP, 0, 0, 0);
    if (!good("socket", s)) return;
    for (u32 i = 0; i < pings; i++) {
        struct echo echo = { .type = ECHO_REQUEST, .sequence = i };
        echo.checksum = checksum(&echo, sizeof echo);
        if (!good("send", socketcall(CALL_SENDTO, s, (usize)&echo, sizeof echo, 0, (usize)&to, sizeof to))) break;
        replies += replied(s, i);
    }
    print_number(replies), print(" replies\n");
    CALL3(close, s, 0, 0);
}

/* ---- Getting up. */
/* Which numbers a device has, sysfs knows: /dev/vda's are not the same in every kernel. */
static void make_node(const char *path, const char *numbers, int kind) {
    char text[16] = "";
    const char *p = text;
    int file = CALL3(open, numbers, O_RDONLY, 0);
    if (file < 0) return;                       /* no such device: whoever wants it will say so */
    CALL3(read, file, text, sizeof text - 1);
    CALL3(close, file, 0, 0);
    u32 major = number(&p);
    p++;                                        /* the colon */
    u32 minor = number(&p);
    CALL3(mknod, path, kind | 0600, (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12);
}
static void get_up(void) {
    CALL3(mkdir, "/sys", 0755, 0);
    good("mount /sys", CALL5(mount, "sysfs", "/sys", "sysfs", 0, 0));
    make_node("/dev/hvc0", "/sys/class/tty/hvc0/dev", S_IFCHR);
    make_node("/dev/hwrng", "/sys/class/misc/hw_random/dev", S_IFCHR);
    make_node("/dev/vda", "/sys/block/vda/dev", S_IFBLK);
    int console = CALL3(open, "/dev/hvc0", O_RDWR, 0);
    if (good("open /dev/hvc0", console))
        for (int fd = 0; fd < 3; fd++) CALL3(dup2, console, fd, 0);
    CALL3(syslog, CONSOLE_OFF, 0, 0);           /* or the kernel's messages would come between our answers' letters */
}
static void leave(u32 how) {                    /* does not return, unless it fails */
    CALL3(sync, 0, 0, 0);
    good("reboot", CALL5(reboot, MAGIC1, MAGIC2, how, 0, 0));
}

static void obey(char *line) {
    const char *command = word(&line);
    if (same(command, "uname")) {
        char names[6][65];                      /* struct new_utsname: system, node, release, version, ... */
        if (good("uname", CALL3(uname, names, 0, 0))) print(names[2]), print("\n");
    } else if (same(command, "read")) {
        memset(sector, 0, sizeof sector);       /* past the end of the disk, nothing is read and nothing fails */
        transfer(word(&line), 0);
    } else if (same(command, "write")) {
        const char *where = word(&line);
        write_sector(where, line);
    } else if (same(command, "entropy")) {
        entropy();
    } else if (same(command, "address")) {
        set_address(word(&line));
    } else if (same(command, "ping")) {
        const char *whom = word(&line);
        ping(whom, word(&line));
    } else if (same(command, "echo")) {
        print(line), print("\n");
    } else if (same(command, "reboot")) {
        leave(RESTART);
    } else if (same(command, "poweroff")) {
        leave(POWER_OFF);
    } else {
        print("I know uname, read, write, entropy, address, ping, echo, reboot and poweroff.\n");
    }
}
void _start(void) {
    static char line[1024];
    get_up();
    for (;;) {
        print("linux> ");
        int n = CALL3(read, 0, line, sizeof line);      /* the terminal gives us whole lines, and echoes them */
        if (n <= 0) leave(POWER_OFF);                   /* a first program which returned would be a panic */
        else if (n > 1) line[n - 1] = 0, obey(line);
    }
}
