/* What the processor says of itself: that it does not guess.
 *
 * Unicorn's Opteron of 2011 has the CPUID of one, and Linux knows what can be done to those: where a branch will go is guessed,
 * and one program can teach it wrong guesses about another, or about the kernel (Retbleed, 2022). The cure puts a detour
 * into each return of the kernel. Nothing is guessed here, so say so, in AMD's own words (AMD64 manual, volume 3, appendix E).
 */
#include "interpose.h"

enum { RAX, RDX = 2, RBX };
enum { HIGHEST = 0x80000000, SIZES = 0x80000008, LAST_OF_OPTERON = 0x8000001a, MORE = 0x80000021 };
enum { SSB_NO = 1 << 26, BTC_NO = 1 << 29 }; /* SIZES: no load passes a store it should not; no branch is taken for another */
enum { AUTOMATIC_IBRS = 1 << 8 };            /* MORE: no program teaches the kernel where to jump, without being asked */

UNICORN(void, helper_cpuid_x86_64, env *);

EXPORT void helper_cpuid_x86_64(env *e)
{
    struct machine *m = machine_of(e);
    uint32_t leaf = REGISTER(e, RAX);
    unicorn_helper_cpuid_x86_64(e);
    if (!m) return;
    if (leaf == HIGHEST) REGISTER(e, RAX) = MORE;
    if (leaf == SIZES) REGISTER(e, RBX) |= SSB_NO | BTC_NO;
    if (leaf <= LAST_OF_OPTERON || leaf > MORE) return;
    REGISTER(e, RAX) = leaf == MORE ? AUTOMATIC_IBRS : 0;
    REGISTER(e, RBX) = REGISTER(e, RCX) = REGISTER(e, RDX) = 0;
}
