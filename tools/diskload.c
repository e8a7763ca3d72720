/* diskload DEVICE read|write seq|random BYTES COUNT: what the Guest does to a disk in `make bench-debian`.
 * Every 4 KiB block begins with its own number, and each one that is read is looked at. Prints blocks and wrong ones. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	int writing = !strcmp(argv[2], "write"), random = !strcmp(argv[3], "random");
	size_t size = strtoul(argv[4], NULL, 0), count = strtoul(argv[5], NULL, 0);
	int fd = open(argv[1], O_RDWR | O_DIRECT); /* past the Guest's cache: we measure the device */
	off_t end = lseek(fd, 0, SEEK_END);
	char *buffer = aligned_alloc(BLOCK, size);

	if (fd < 0 || !buffer || end < (off_t)size)
		return 1;
	memset(buffer, 0, size);
	uint64_t places = end / size, state = 88172645463325252ull, wrong = 0;
	for (size_t i = 0; i < count; i++) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
		uint64_t place = (random ? state : i) % places;
		for (size_t b = 0; writing && b < size; b += BLOCK)
			*(uint64_t *)(buffer + b) = (place * size + b) / BLOCK;
		ssize_t done = writing ? pwrite(fd, buffer, size, place * size) : pread(fd, buffer, size, place * size);
		if (done != (ssize_t)size)
			return 1;
		for (size_t b = 0; !writing && b < size; b += BLOCK)
			wrong += *(uint64_t *)(buffer + b) != (place * size + b) / BLOCK;
	}
	printf("blocks %zu wrong %llu\n", count * size / BLOCK, (unsigned long long)wrong);
	return 0;
}
