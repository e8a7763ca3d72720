"""What a chain of descriptors is, written from virtio 1.2 §2.7.5 and without looking at the walk which it judges."""

from collections.abc import Callable, Sequence

Entry = tuple[int, int, int, int]  # address, length, flags, next
Buffers = list[tuple[int, int]]  # address and length of each


def all_of_it(entries: Sequence[Entry], index: int, most: int) -> list[Entry] | None:
    "The descriptors which a chain has in one table; None if it leaves the table or has more than `most`."
    found: list[Entry] = []
    while True:
        if index >= len(entries) or len(found) == most:
            return None
        found.append(entries[index])
        if not entries[index][2] & 1 or entries[index][2] & 4:
            return found
        index = entries[index][3]


def by_the_book(
    ring: Sequence[Entry],  # the whole descriptor table
    table_at: Callable[[int, int], Sequence[Entry]],  # the entries of an indirect table: its address and their number
    limit: int,  # the end of memory
    head: int,
    negotiated: bool,  # may there be indirect tables?
) -> tuple[Buffers, Buffers] | None:
    "Readable and writable buffers of a chain, or None if no driver may make it."
    num = len(ring)
    elements = all_of_it(ring, head, num + 1)
    if elements and elements[-1][2] & 4:
        *elements, (address, length, flags, _) = elements
        in_memory = address + length <= limit
        if not negotiated or flags & 1 or not length or length % 16 or not in_memory:
            return None
        further = all_of_it(table_at(address, length // 16), 0, num + 1)
        if not further or further[-1][2] & 4:
            return None
        elements += further
    if not elements or len(elements) > num or any(a + n > limit for a, n, _, _ in elements):
        return None
    kinds = [flags & 2 for _, _, flags, _ in elements]
    if kinds != sorted(kinds):
        return None
    parts = [[(a, n) for a, n, flags, _ in elements if n and flags & 2 == kind] for kind in (0, 2)]
    return parts[0], parts[1]
