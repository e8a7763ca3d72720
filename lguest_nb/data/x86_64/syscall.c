/* SYSCALL: Unicorn calls its hooks and steps over it. This is what the processor does (AMD64 manual, volume 3). And SYSENTER,
 * which it steps over as well: on a processor of AMD's that is no instruction in long mode. */
#include "interpose.h"

enum { FL_CC = 0x8d5, FL_DF = 0x400, FL_RF = 0x10000 }; /* CC: the six arithmetic ones */
enum { HF_CPL = 3, HF_CS32 = 0x10, HF_SS32 = 0x20, HF_ADDSEG = 0x40, HF_LMA = 0x4000, HF_CS64 = 0x8000 };
enum { EFER_SCE = 1, UNDEFINED_OPCODE = 6 };

UNICORN(void, helper_syscall_x86_64, env *, int);
UNICORN(void, helper_sysenter_x86_64, env *, int);
UNICORN(uint64_t, helper_read_eflags_x86_64, env *);
UNICORN(void, helper_write_eflags_x86_64, env *, uint64_t, uint32_t);
UNICORN(void, raise_exception_err_ra_x86_64, env *, int vector, int error, void *retaddr);

EXPORT void helper_syscall_x86_64(env *e, int length)
{
    struct machine *m = machine_of(e);
    uint32_t mode = m ? FIELD(uint32_t, e, hflags) : 0;
    if (!(mode & HF_LMA)) {
        unicorn_helper_syscall_x86_64(e, length);
        return;
    }
    if (!(FIELD(uint64_t, e, efer) & EFER_SCE)) /* does not return */
        unicorn_raise_exception_err_ra_x86_64(e, UNDEFINED_OPCODE, 0, __builtin_return_address(0));
    m->counts[SYSCALLS]++;
    uint32_t selector = FIELD(uint64_t, e, star) >> 32 & 0xfffc;
    REGISTER(e, RCX) = FIELD(uint64_t, e, rip) + length;
    REGISTER(e, R11) = unicorn_helper_read_eflags_x86_64(e) & ~FL_RF;
    /* QEMU keeps the arithmetic flags and DF in places of their own, and takes offence at finding them here, too. */
    unicorn_helper_write_eflags_x86_64(e, REGISTER(e, R11) & ~FIELD(uint64_t, e, fmask), ~(FL_CC | FL_DF));
    FIELD(uint64_t, e, rip) = mode & HF_CS64 ? FIELD(uint64_t, e, lstar) : FIELD(uint64_t, e, cstar);
    SEGMENT(e, CODE) = (struct segment){ selector, 0, 0xffffffff, 0xa09b00 };      /* 64 bits, level 0 */
    SEGMENT(e, STACK) = (struct segment){ selector + 8, 0, 0xffffffff, 0xc09300 }; /* data, level 0 */
    FIELD(uint32_t, e, hflags) = (mode & ~(HF_CPL | HF_ADDSEG)) | HF_CS64 | HF_CS32 | HF_SS32;
}

EXPORT void helper_sysenter_x86_64(env *e, int length)
{
    struct machine *m = machine_of(e);
    if (m && FIELD(uint32_t, e, hflags) & HF_LMA) /* does not return */
        unicorn_raise_exception_err_ra_x86_64(e, UNDEFINED_OPCODE, 0, __builtin_return_address(0));
    unicorn_helper_sysenter_x86_64(e, length);
}
