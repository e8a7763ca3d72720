/* These run in ring 3, at 0x08048000, and see nothing of the kernel but int 0x80. */
typedef unsigned int u32;

static u32 call(u32 number, u32 a, u32 b, u32 c) {
    asm volatile("int $0x80" : "+a"(number) : "b"(a), "c"(b), "d"(c) : "memory");
    return number;
}
static void say(const char *text) {
    u32 n = 0;
    while (text[n]) n++;
    call(4, 1, (u32)text, n);
}
static void exit(u32 code) {
    for (;;) call(1, code, 0, 0);
}

void user_hello(void) {
    u32 cs;
    asm("movl %%cs, %0" : "=r"(cs));
    say("hello from ring ");
    say(&"0\0001\0002\0003"[2 * (cs & 3)]);
    say(call(13, 0, 0, 0) > 1000000000 ? ", I can ask the time" : ", I have no clock");
    say(call(99, 0, 0, 0) == -38u ? ", there is no call 99\n" : ", what is call 99?\n");
    exit(42);
}
void user_stack(void) {
    volatile char deep[3 * 4096];
    for (u32 i = 0; i < sizeof deep; i += 1024) deep[i] = i >> 10;
    u32 sum = 0;
    for (u32 i = 0; i < sizeof deep; i += 1024) sum += deep[i];
    say(sum == 66 ? "three pages of stack came when I touched them\n" : "my stack forgets\n");
    exit(0);
}

static volatile u32 *at(u32 address) {           /* gcc is not to reason about where this points */
    asm("" : "+r"(address));
    return (volatile u32 *)address;
}
void user_kernel(void) { *at(0xC0010000) = 0; exit(0); }
void user_null(void) { exit(*at(0x10)); }
void user_cli(void) { asm volatile("cli"); exit(0); }
void user_divide(void) { volatile u32 zero = 0; exit(7 / zero); }
void user_loop(void) { for (;;) {} }
void user_cheat(void) { exit(call(4, 1, 0xC0010000, 16) == -14u ? 0 : 1); }
