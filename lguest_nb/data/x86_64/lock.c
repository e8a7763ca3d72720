/* LOCK in front of what cannot be locked.
 *
 * A processor raises #UD then. QEMU's translator does so for most instructions, and for a few (lock btc %esp, %ecx is one)
 * takes an address which nobody computed, and calls abort(): any program in a Guest could end our process. So we look at the
 * bytes first. If they are no good we show the translator others of the same length, which end in UD2.
 */
#include "interpose.h"

typedef struct { uint64_t pc, code_base; uint32_t flags; } block;         /* how QEMU's TranslationBlock begins */
typedef struct { block *block; uint64_t first, next; } translation;       /* ... and its DisasContextBase */
typedef void translate(translation *t, cpu *c);
typedef struct { void *before[4]; translate *instruction; void *after[2]; } operations; /* TranslatorOps */

enum { HF_CS64 = 0x8000 };

UNICORN(void, translator_loop_x86_64, const operations *, translation *, cpu *, block *, int);
UNICORN(uint32_t, cpu_ldub_code_x86_64, env *, uint64_t);

static __thread struct {
    struct machine *machine;
    translate *instruction;
    uint64_t start; /* of the instruction which is being translated */
    bool look;      /* nobody has looked at it yet */
    bool long_mode; /* 64 bits: 0x40 to 0x4f are prefixes */
    int forged;     /* bytes of it which the translator must not see */
} now;

bool translating_for_a_machine(void) { return now.machine != NULL; }

static bool is_prefix(int byte)
{
    return (byte & 0xe7) == 0x26 || (byte & 0xfc) == 0x64 || byte == 0xf0 || (byte & 0xfe) == 0xf2
        || (now.long_mode && (byte & 0xf0) == 0x40);
}

/* Intel's manual, volume 2, LOCK: what may be locked, if its destination is memory. `op`: 0x0f00 and more are two bytes. */
static bool lockable(int op, int modrm)
{
    int kind = modrm >> 3 & 7;
    if (modrm >= 0xc0) return false;
    if (op < 0x38) return (op & 7) < 2;                               /* ADD OR ADC SBB AND SUB XOR */
    switch (op) {
    case 0x80: case 0x81: case 0x82: case 0x83: return kind != 7;     /* the same, but for CMP */
    case 0x86: case 0x87: return true;                                /* XCHG */
    case 0xf6: case 0xf7: return kind == 2 || kind == 3;              /* NOT NEG */
    case 0xfe: case 0xff: return kind < 2;                            /* INC DEC */
    case 0x0fab: case 0x0fb3: case 0x0fbb: return true;               /* BTS BTR BTC */
    case 0x0fba: return kind > 4;                                     /* the same */
    case 0x0fb0: case 0x0fb1: case 0x0fc0: case 0x0fc1: return true;  /* CMPXCHG XADD */
    case 0x0fc7: return kind == 1;                                    /* CMPXCHG8B, CMPXCHG16B */
    }
    return false;
}

/* Has this opcode got the byte which says where its operands are? Only of those matters which could be locked. */
static bool has_modrm(int op)
{
    return op < 0x38 ? (op & 7) < 2 : (op >= 0x80 && op < 0x88) || (op & 0xf6) == 0xf6 || op > 0xff;
}

/* How many bytes show that this instruction is locked and must not be; 0 if it is all right. Reads no byte more than the
 * translator would: the next one may be on a page which isn't there. */
static int locked_wrongly(env *e, uint64_t pc)
{
    bool locked = false;
    int length = 0, byte;
    while (is_prefix(byte = unicorn_cpu_ldub_code_x86_64(e, pc + length++))) {
        locked |= byte == 0xf0;
        if (length == 14) return 0;
    }
    if (!locked) return 0;
    int op = byte == 0x0f ? 0x0f00 | (int)unicorn_cpu_ldub_code_x86_64(e, pc + length++) : byte;
    if (op == 0x0f20 || op == 0x0f22) return 0; /* MOV CR8 by AMD's other name: QEMU knows */
    if (!has_modrm(op)) return length;
    return lockable(op, unicorn_cpu_ldub_code_x86_64(e, pc + length++)) ? 0 : length;
}

EXPORT uint32_t cpu_ldub_code_x86_64(env *e, uint64_t pc)
{
    if (now.look && pc == now.start) {
        now.look = false;
        now.forged = locked_wrongly(e, pc);
    }
    uint64_t i = pc - now.start;
    if (i >= (uint64_t)now.forged) return unicorn_cpu_ldub_code_x86_64(e, pc);
    return i + 1 == (uint64_t)now.forged ? 0x0b : i + 2 == (uint64_t)now.forged ? 0x0f : 0x3e; /* 3e...: ds ud2 */
}

static void one_instruction(translation *t, cpu *c)
{
    now.start = t->next;
    now.look = true;
    now.instruction(t, c);
    now.look = false;
    now.forged = 0;
}

EXPORT void translator_loop_x86_64(const operations *o, translation *t, cpu *c, block *b, int most)
{
    operations ours = *o;
    now.machine = machine_of(c);
    now.instruction = o->instruction;
    now.long_mode = b->flags & HF_CS64;
    now.forged = 0;
    ours.instruction = one_instruction;
    unicorn_translator_loop_x86_64(&ours, t, c, b, most);
}
