/*
 * The Guest's side of one ring, as fast as a processor can play it: the load for `make bench`.
 *
 * Whoever serves the other side (our own devices, or another program's, by vhost-user) shares this memory and two
 * eventfds with us, and both get exactly the same work: 256 descriptors, a fixed number of requests in flight, each
 * checked when it comes back. A wrong status or a wrong byte is counted and printed, and makes the run worthless.
 *
 * usage: ringload MEMFD RING KICKFD CALLFD read|write|send DEPTH SECONDS BLOCKS
 *
 * MEMFD holds the memory, RING is the offset of a ring laid out as in 2009 (its three parts in three pages), BLOCKS is
 * how many 4096-byte blocks the disk has. Block B of the disk must begin with B, as eight bytes, little endian.
 * Prints: requests seconds kicks interrupts wrong-answers
 */
#define _GNU_SOURCE
#include <err.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { NUM = 256, BLOCK = 4096, PACKET = 98, PATIENCE_MS = 10000 };
enum { NEXT = 1, WRITE = 2, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, idx, ring[NUM]; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[NUM]; };
struct blk_header { uint32_t type, ioprio; uint64_t sector; };

/* What one request in flight owns: a header, the data on a page of its own, and the status byte. */
struct slot { struct blk_header header; uint8_t pad[BLOCK - sizeof(struct blk_header)];
              uint8_t data[BLOCK]; uint8_t status; uint8_t pad2[BLOCK - 1]; uint64_t block; };

static volatile struct desc *desc;
static volatile struct avail *avail;
static volatile struct used *used;
static struct slot *slots;
static enum { READ_BLOCKS, WRITE_BLOCKS, SEND } mode;
static unsigned per; /* descriptors of one request */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void describe(unsigned head, uint64_t base)
{
	uint64_t at = base + (uint64_t)(head / per) * sizeof(struct slot);

	if (mode == SEND) {
		/* virtio_net_hdr and frame: ten bytes and a ping of 98. */
		desc[head] = (struct desc){ at, 10, NEXT, head + 1 };
		desc[head + 1] = (struct desc){ at + BLOCK, PACKET, 0, 0 };
		return;
	}
	desc[head] = (struct desc){ at, sizeof(struct blk_header), NEXT, head + 1 };
	desc[head + 1] = (struct desc){ at + BLOCK, BLOCK, NEXT | (mode == READ_BLOCKS ? WRITE : 0), head + 2 };
	desc[head + 2] = (struct desc){ at + 2 * BLOCK, 1, WRITE, 0 };
}

static uint64_t random_block(uint64_t blocks)
{
	static uint64_t x = 88172645463325252ull; /* xorshift64, the same sequence in every run */

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % blocks;
}

static void fill(struct slot *s, uint64_t blocks)
{
	if (mode == SEND)
		return;
	s->block = random_block(blocks);
	s->header = (struct blk_header){ mode == WRITE_BLOCKS, 0, s->block * (BLOCK / 512) };
	s->status = 0xff;
	*(uint64_t *)s->data = mode == WRITE_BLOCKS ? s->block : ~0ull;
}

static bool right(const struct slot *s)
{
	return mode == SEND || (s->status == 0 && *(const uint64_t *)s->data == s->block);
}

int main(int argc, char *argv[])
{
	if (argc != 9)
		errx(2, "usage: ringload MEMFD RING KICKFD CALLFD read|write|send DEPTH SECONDS BLOCKS");
	int memfd = atoi(argv[1]), kickfd = atoi(argv[3]), callfd = atoi(argv[4]);
	uint64_t ring = strtoull(argv[2], NULL, 0), blocks = strtoull(argv[8], NULL, 0), one = 1, count;
	unsigned depth = atoi(argv[6]), free_heads[NUM], nfree = 0;
	double seconds = atof(argv[7]), start, end;
	long requests = 0, kicks = 0, interrupts = 0, wrong = 0, in_flight = 0;
	struct stat st;

	mode = strcmp(argv[5], "read") == 0 ? READ_BLOCKS : strcmp(argv[5], "write") == 0 ? WRITE_BLOCKS : SEND;
	per = mode == SEND ? 2 : 3;
	if (depth < 1 || depth > NUM / per)
		errx(2, "The depth is 1 to %u, not %u.", NUM / per, depth);
	if (fstat(memfd, &st))
		err(1, "fstat");
	uint8_t *memory = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	uint64_t base = 0x100000;
	desc = (void *)(memory + ring);
	avail = (void *)(memory + ring + 4096);
	used = (void *)(memory + ring + 8192);
	slots = (void *)(memory + base);
	for (unsigned i = 0; i < depth; i++) {
		describe(i * per, base);
		free_heads[nfree++] = i * per;
	}
	uint16_t added = avail->idx, seen = used->idx;

	start = now();
	end = start + seconds;
	for (bool going = true; going || in_flight; going = going && now() < end) {
		uint16_t before = added;
		while (going && nfree) {
			unsigned head = free_heads[--nfree];
			fill(&slots[head / per], blocks);
			avail->ring[added++ % NUM] = head;
			in_flight++;
		}
		if (added != before) {
			__atomic_thread_fence(__ATOMIC_RELEASE);
			avail->idx = added;
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			if (!(used->flags & NO_NOTIFY)) {
				if (write(kickfd, &one, 8) != 8)
					err(1, "kick");
				kicks++;
			}
		}
		while (used->idx == seen) {
			struct pollfd p = { callfd, POLLIN, 0 };
			if (poll(&p, 1, PATIENCE_MS) <= 0)
				errx(1, "No interrupt in %d ms: %ld requests done, %ld in flight.", PATIENCE_MS, requests, in_flight);
			if (read(callfd, &count, 8) != 8)
				err(1, "interrupt");
			interrupts++;
		}
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		for (; seen != used->idx; seen++) {
			unsigned head = used->ring[seen % NUM].id;
			if (head % per || head / per >= depth)
				errx(1, "Head %u came back, which nobody sent.", head);
			wrong += !right(&slots[head / per]);
			free_heads[nfree++] = head;
			in_flight--;
			requests++;
		}
	}
	printf("%ld %.9f %ld %ld %ld\n", requests, now() - start, kicks, interrupts, wrong);
	return 0;
}
