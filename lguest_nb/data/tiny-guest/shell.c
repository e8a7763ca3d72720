#include "tiny.h"
#include "virtio.h"

static char *word(char **line) {                /* the next word, or "" */
    char *start, *p = *line;
    while (*p == ' ') p++;
    for (start = p; *p && *p != ' '; p++) {}
    if (*p) *p++ = 0;
    *line = p;
    return start;
}
static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}
static int parse(const char *s, u32 *value) {   /* 123 or 0x7b */
    int base = 10;
    if (s[0] == '0' && (s[1] | 32) == 'x') { base = 16; s += 2; }
    if (!*s) return 0;
    for (*value = 0; *s; s++) {
        if (digit(*s) >= base) return 0;
        *value = *value * base + digit(*s);
    }
    return 1;
}
static int want(char **line, u32 *value, const char *what) {
    char *s = word(line);
    if (parse(s, value)) return 1;
    print("I need %s, a number like 123 or 0x7b, not \"%s\"\n", what, s);
    return 0;
}
static u32 optional(char **line, u32 otherwise) {
    u32 value;
    return parse(word(line), &value) ? value : otherwise;
}
static int parse_ip(const char *s, u32 *ip) {
    *ip = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 n = 0;
        if (digit(*s) > 9) return 0;
        while (digit(*s) <= 9 && n < 256) n = n * 10 + digit(*s++);
        if (n > 255 || (i < 3 && *s++ != '.')) return 0;
        *ip |= n << 8 * i;
    }
    return *s == 0 || *s == ' ' || *s == '/';
}

static void phys_copy(u32 physical, u8 *bytes, u32 n, int write) {
    while (n) {
        u32 now = PAGE_SIZE - physical % PAGE_SIZE;
        if (now > n) now = n;
        void *there = window(physical);
        if (write) memcpy(there, bytes, now); else memcpy(bytes, there, now);
        physical += now; bytes += now; n -= now;
    }
}
static void dump(u32 label, const u8 *bytes, u32 n) {  /* lines like the one before become one star */
    for (u32 i = 0, star = 0; i < n; i += 16) {
        if (i && i + 16 < n && !memcmp(bytes + i, bytes + i - 16, 16)) {
            if (!star) print("*\n");
            star = 1;
            continue;
        }
        star = 0;
        print("%08x ", label + i);
        for (u32 k = i; k < i + 16; k++)
            if (k < n) print(" %02x", bytes[k]); else print("   ");
        print("  |");
        for (u32 k = i; k < i + 16 && k < n; k++)
            putch(bytes[k] >= ' ' && bytes[k] < 127 ? bytes[k] : '.');
        print("|\n");
    }
}

static void cmd_peek(char *line) {
    static u8 bytes[PAGE_SIZE];
    u32 address, n;
    if (!want(&line, &address, "an address")) return;
    for (u32 left = optional(&line, 64); left && !interrupted(); left -= n, address += n) {
        n = left < PAGE_SIZE ? left : PAGE_SIZE;
        phys_copy(address, bytes, n, 0);
        dump(address, bytes, n);
    }
}
static void cmd_poke(char *line) {
    u32 address;
    if (!want(&line, &address, "an address")) return;
    for (;;) {
        while (*line == ' ') line++;
        if (!*line) return;
        if (digit(line[0]) > 15 || digit(line[1]) > 15) { print("not a hex byte: %s\n", line); return; }
        u8 byte = digit(line[0]) << 4 | digit(line[1]);
        phys_copy(address++, &byte, 1, 1);
        line += 2;
    }
}
static void cmd_kick(char *line) {
    u32 address;
    if (want(&line, &address, "an address")) { console_drain(); hcall(NOTIFY, address, 0, 0); }
}
static void cmd_call(char *line) {
    u32 address;
    if (!want(&line, &address, "an address")) return;
    console_drain();
    u32 eax = ((u32 (*)(void))window(address))();
    print("eax = 0x%08x\n", eax);
}

static struct device *wanted_device(char **line) {
    u32 n;
    if (!want(line, &n, "a device's number")) return 0;
    if (n < n_devices) return &devices[n];
    print("there are %u devices\n", n_devices);
    return 0;
}
static void bytes(const char *label, const u8 *p, u32 n) {
    print("%s", label);
    for (u32 i = 0; i < n; i++) print(" %02x", p[i]);
}
static void cmd_dev(char *line) {
    (void)line;
    for (u32 i = 0; i < n_devices; i++) {
        struct device *d = &devices[i];
        u32 f = d->desc->feature_len;
        print("%u: type %u %s at 0x%x, status %u%s\n", i, d->desc->type, d->driver ? d->driver->name : "?",
              ram + d->offset, d->desc->status, d->live ? "" : ", not started");
        struct vqconfig *c = (void *)(d->desc + 1);
        for (u32 q = 0; q < d->desc->num_vq; q++)
            print("   queue %u: %u entries at 0x%x, irq %u\n", q, c[q].num, c[q].pfn * PAGE_SIZE, c[q].irq);
        if (f) {
            bytes("   features offered", offered_features(d), f);
            bytes(", accepted", offered_features(d) + f, f);
            putch('\n');
        }
        if (d->desc->config_len) { bytes("   config", config(d), d->desc->config_len); putch('\n'); }
    }
}
static void cmd_reset(char *line) {
    struct device *d = wanted_device(&line);
    if (d) reset_device(d);
}
static void cmd_start(char *line) {
    struct device *d = wanted_device(&line);
    if (!d) return;
    if (!d->driver) print("I have no driver for it\n");
    else if (d->live) print("it is running\n");
    else start_device(d);
}

static u8 sector_buffer[512] __attribute__((aligned(512)));

static int disk_do(struct device *d, u32 type, u32 sector, u32 address, u32 size) {
    int status = block_request(d, type, sector, address, size);
    if (status == 0) return 1;
    if (status < 0) print("the disk is not started\n");
    else print("%s at sector %u (status %u)\n", status == 1 ? "I/O error" : "not supported", sector, status);
    return 0;
}
static void disk_show(struct device *d, u32 sector) {
    memset(sector_buffer, 0xaa, sizeof(sector_buffer));
    if (!disk_do(d, 0, sector, pa(sector_buffer), 512)) return;
    dump(0, sector_buffer, 512);
    for (u32 i = 0; i < 512 && sector_buffer[i]; i++)           /* and as text, if it is text */
        putch(sector_buffer[i] >= ' ' && sector_buffer[i] < 127 ? sector_buffer[i] : '.');
    if (sector_buffer[0]) putch('\n');
}
static void disk_write(struct device *d, u32 type, u32 sector, const char *text) {
    u32 n = strlen(text);
    memset(sector_buffer, 0, sizeof(sector_buffer));
    memcpy(sector_buffer, text, n < 512 ? n : 512);
    if (disk_do(d, type, sector, pa(sector_buffer), 512)) disk_show(d, sector);
}
static void disk_load(struct device *d, u32 sector, char *line) {
    u32 address, count;
    if (!want(&line, &address, "an address")) return;
    count = optional(&line, 1);
    if (disk_do(d, 0, sector, address, count * 512)) print("%u bytes at 0x%x\n", count * 512, address);
}
static void cmd_disk(char *line) {              /* disk [N] [read|write|barrier|load|save SECTOR ...] */
    char *verb = word(&line);
    u32 n = 0, sector;
    if (parse(verb, &n)) verb = word(&line);
    struct device *d = find_device(BLOCK, n);
    if (!d) { print("there is no disk %u\n", n); return; }
    if (!*verb) { print("disk %u: %u sectors of 512 bytes\n", n, block_capacity(d)); return; }
    if (!want(&line, &sector, "a sector")) return;
    while (*line == ' ') line++;
    if (!memcmp(verb, "read", 5)) disk_show(d, sector);
    else if (!memcmp(verb, "write", 6)) disk_write(d, 1, sector, line);
    else if (!memcmp(verb, "barrier", 8)) disk_write(d, 0x80000001, sector, line);
    else if (!memcmp(verb, "load", 5)) disk_load(d, sector, line);
    else print("disk [N] read|write|barrier|load SECTOR ...\n");
}

static void cmd_rng(char *line) {
    static u8 random[64];
    struct device *d = find_device(RNG, 0);
    if (!d) { print("there is no rng\n"); return; }
    for (u32 left = optional(&line, 16), n; left && !interrupted(); left -= n) {
        n = rng_read(d, random, left < 32 ? left : 32);
        if (!n) { print("it gave nothing\n"); return; }
        for (u32 i = 0; i < n; i++) print("%02x", random[i]);
        putch('\n');
    }
}
static void cmd_ping(char *line) {
    struct device *d = find_device(NET, 0);
    char *to = word(&line);
    u32 ip, count = optional(&line, 3), size = optional(&line, 56);
    if (!d) print("there is no network device\n");
    else if (!my_ip) print("I have no address: boot me with ip=A.B.C.D\n");
    else if (!parse_ip(to, &ip)) print("ping A.B.C.D [count [size]], not \"%s\"\n", to);
    else if (size > 1472) print("at most 1472 bytes fit a packet\n");
    else ping(d, ip, count, size);
}

static void cmd_time(char *line) {
    (void)line;
    nap(100000);                                /* the Host tells the time when it interrupts us */
    u32 sec = lguest_data.sec, day = sec / 86400, s = sec % 86400;
    u32 era = (day += 719468) / 146097, doe = day % 146097;
    u32 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    u32 doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    u32 month = mp < 10 ? mp + 3 : mp - 9;
    print("%u-%02u-%02u %02u:%02u:%02u.%09u UTC, %u timer interrupts since boot\n",
          yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) / 5 + 1,
          s / 3600, s / 60 % 60, s % 60, lguest_data.nsec, ticks);
}
static void cmd_sleep(char *line) {
    u32 ms = optional(&line, 1000);
    for (; ms > 1000 && !interrupted(); ms -= 1000) nap(1000000000);
    if (ms) nap(ms * 1000000);
}
static void cmd_stat(char *line) {
    (void)line;
    print("%u hypercalls; interrupts:", hypercalls);
    for (u32 i = 0; i < 32; i++)
        if (irqs_taken[i]) print(" irq%u %u", i, irqs_taken[i]);
    putch('\n');
}

static void shut_down(const char *text, u32 how) {
    static char words[128];
    u32 n = strlen(text);
    console_drain();
    memset(words, 0, sizeof(words));
    memcpy(words, text, n < 127 ? n : 127);
    for (;;) hcall(SHUTDOWN, pa(words), how, 0);
}
static void cmd_poweroff(char *line) { (void)line; shut_down("Power down", POWEROFF); }
static void cmd_reboot(char *line) { (void)line; shut_down("Restarting", RESTART); }
static void cmd_panic(char *line) { shut_down(*line ? line : "you asked for it", POWEROFF); }
static void cmd_oops(char *line) {
    u32 value;
    (void)line;
    console_drain();
    asm volatile("movl 0x10, %0" : "=r"(value));
    print("%u\n", value);
}
static void cmd_hang(char *line) {
    (void)line;
    console_drain();
    irq_disable();
    for (;;) asm volatile("pause");
}
static void cmd_halt(char *line) {
    (void)line;
    flush();
    for (;;) hcall(HALT, 0, 0, 0);
}

static void cmd_hcall(char *line) {
    u32 number, a, b, c;
    if (!want(&line, &number, "a hypercall's number")) return;
    a = optional(&line, 0); b = optional(&line, 0); c = optional(&line, 0);
    console_drain();
    print("eax = 0x%08x\n", hcall(number, a, b, c));
}
static void cmd_in(char *line) {
    u32 port, value;
    if (!want(&line, &port, "a port")) return;
    asm volatile("inl %w1, %0" : "=a"(value) : "d"(port));
    print("0x%08x\n", value);
}
static void cmd_out(char *line) {
    u32 port, value;
    if (!want(&line, &port, "a port") || !want(&line, &value, "a value")) return;
    asm volatile("outb %b0, %w1" : : "a"(value), "d"(port));
}
static void cmd_echo(char *line) { print("%s\n", line); }
static void cmd_user(char *line) { run_user(word(&line)); }
static void cmd_help(char *line);

static const struct { const char *name; void (*run)(char *); const char *help; } commands[] = {
    { "help", cmd_help, "this" },
    { "dev", cmd_dev, "the devices in the descriptor page" },
    { "disk", cmd_disk, "[N] [read SECTOR | write SECTOR TEXT | barrier SECTOR TEXT | load SECTOR ADDR [COUNT]]" },
    { "rng", cmd_rng, "[N] random bytes" },
    { "ping", cmd_ping, "A.B.C.D [COUNT [SIZE]]" },
    { "time", cmd_time, "by the Host's clock" },
    { "sleep", cmd_sleep, "[MS]" },
    { "user", cmd_user, "[hello|stack|kernel|null|cli|divide|loop|cheat] in ring 3" },
    { "stat", cmd_stat, "hypercalls made, interrupts taken" },
    { "echo", cmd_echo, "TEXT" },
    { "peek", cmd_peek, "ADDR [LEN] of physical memory" },
    { "poke", cmd_poke, "ADDR HEXBYTES..." },
    { "kick", cmd_kick, "ADDR: NOTIFY, raw" },
    { "call", cmd_call, "ADDR: run what is there in ring 1, print eax" },
    { "hcall", cmd_hcall, "N [A [B [C]]]: any hypercall" },
    { "in", cmd_in, "PORT (32 bits)" },
    { "out", cmd_out, "PORT BYTE" },
    { "reset", cmd_reset, "DEV: status 0" },
    { "start", cmd_start, "DEV: all of its initialisation" },
    { "oops", cmd_oops, "read where there is nothing, in the kernel" },
    { "panic", cmd_panic, "[TEXT]" },
    { "hang", cmd_hang, "spin with interrupts off" },
    { "halt", cmd_halt, "sleep for ever, interrupts on" },
    { "reboot", cmd_reboot, "" },
    { "poweroff", cmd_poweroff, "" },
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void cmd_help(char *line) {
    (void)line;
    for (u32 i = 0; i < N_COMMANDS; i++) print("%8s %s\n", commands[i].name, commands[i].help);
}
static void run(char *line) {
    char *name = word(&line);
    while (*line == ' ') line++;
    if (!*name) return;
    for (u32 i = 0; i < N_COMMANDS; i++)
        if (!memcmp(name, commands[i].name, strlen(commands[i].name) + 1)) { commands[i].run(line); return; }
    print("I do not know \"%s\"; try help\n", name);
}

static char line[2048];

static u32 read_line(void) {
    u32 n = 0;
    for (;;) {
        int c = getch();
        if (c == '\r' || c == '\n') break;
        if (c == 3) { print("^C"); n = 0; break; }
        if ((c == 8 || c == 127) && n) { n--; print("\b \b"); }
        if (c == 21) for (; n; n--) print("\b \b");             /* ^U */
        if (c >= ' ' && c < 127 && n < sizeof(line) - 1) { line[n++] = c; putch(c); }
    }
    line[n] = 0;
    putch('\n');
    return n;
}

static const char *option(const char *name) {   /* what follows name= on the command line */
    u32 n = strlen(name);
    for (const char *p = command_line; *p; p++)
        if ((p == command_line || p[-1] == ' ') && !memcmp(p, name, n)) return p + n;
    return 0;
}
static void boot_commands(const char *p) {      /* run="one; two", or run=one; two up to the end */
    char end = *p == '"' ? *p++ : 0;
    while (*p && *p != end) {
        u32 n = 0;
        while (*p == ' ') p++;
        for (; *p && *p != ';' && *p != end; p++)
            if (n < sizeof(line) - 1) line[n++] = *p;
        while (n && line[n - 1] == ' ') n--;
        line[n] = 0;
        if (*p == ';') p++;
        print("tiny> %s\n", line);
        run(line);
    }
}

void shell(void) {
    const char *p;
    if ((p = option("ip=")) && !parse_ip(p, &my_ip)) print("ip= wants A.B.C.D\n");
    if ((p = option("run="))) boot_commands(p);
    for (;;) {
        print("tiny> ");
        read_line();
        run(line);
    }
}
