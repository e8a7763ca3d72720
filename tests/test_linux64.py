"""A 64-bit kernel: found in its parcel, put into memory, given all it needs to start, or refused by a sentence."""

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.block
import pytest
import zstandard
from support import ask_c, close

from lguest_nb import linux64
from lguest_nb.decompress import decompress, format_of
from lguest_nb.linux64 import ELF_X86_64, SETUP_HEADER, load_initrd64, load_kernel64, load_linux64
from lguest_nb.loading import BOOT_PARAMS, LoadError, kernel_kind, load_kernel
from lguest_nb.memory import PAGE_SIZE, GuestMemory

MB = 1 << 20
CODE = b"\xf4\xeb\xfd"  # hlt; jmp to it
Name = Callable[..., str]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    "As much as a small kernel at its usual place needs."
    memory = GuestMemory(32 * MB, 0)
    yield memory
    close(memory)


@pytest.fixture
def file(tmp_path: Path) -> Name:
    def write(contents: bytes, name: str = "vmlinuz") -> str:
        path = tmp_path / name
        path.write_bytes(contents)
        return str(path)

    return write


def forge_vmlinux(code: bytes = CODE, address: int = 16 * MB, **change: int) -> bytes:
    "An ELF64 file with one segment."
    f = {"kind": 2, "machine": 62, "phentsize": 56, "phnum": 1, "memsz": len(code), "entry": address} | change
    head = (b"\x7fELF\2\1\1", f["kind"], f["machine"], 1, f["entry"], 64, 0, 0, 64, f["phentsize"], f["phnum"], 0, 0, 0)
    program = (1, 7, f.get("offset", 120), 0xFFFFFFFF80000000 + address, address, len(code), f["memsz"], 1 << 21)
    return ELF_X86_64.header.pack(*head) + ELF_X86_64.program.pack(*program) + code


def lz4_legacy(data: bytes) -> bytes:
    "A legacy frame, of blocks of 8 MiB."
    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 * MB):
        block = lz4.block.compress(data[at : at + 8 * MB], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


def sized(data: bytes, packed: bytes) -> bytes:
    "With the size of the unpacked kernel behind it, as the kernel's makefiles do."
    return packed + struct.pack("<I", len(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data),  # its last four bytes are the size already
    "bzip2": lambda data: sized(data, bz2.compress(data)),
    "lzma": lambda data: sized(data, lzma.compress(data, format=lzma.FORMAT_ALONE)),
    "xz": lambda data: sized(
        data,
        lzma.compress(
            data,
            check=lzma.CHECK_CRC32,
            filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}],
        ),
    ),
    "zstd": lambda data: sized(data, zstandard.ZstdCompressor(level=22).compress(data)),
    "lz4": lambda data: sized(data, lz4_legacy(data)),
}


def forge_bzimage(payload: bytes, sectors: int = 1, **change: int) -> bytes:
    "A 64-bit bzImage around a payload."
    image = bytearray((1 + sectors) * 512 + 48)
    fields = {"boot_flag": 0xAA55, "jump": 0x6AEB, "initrd_addr_max": 0x7FFFFFFF, "cmdline_size": 2047}
    fields |= {"payload_offset": 48, "payload_length": len(payload)} | change
    image[0x1EF], image[0x1F1], image[0x202:0x208], image[0x236] = 0xFF, sectors, b"HdrS\x0f\2", 1
    for name, value in fields.items():
        at, form = SETUP_HEADER[name]
        struct.pack_into(form, image, at, value)
    return bytes(image) + payload


class TestKind:
    @pytest.mark.parametrize(
        ("head", "kind"),
        [
            (forge_vmlinux(), "pc"),
            (forge_bzimage(b""), "pc"),
            (b"\x7fELF\1\1\1".ljust(16, b"\0") + b"\2\0\3\0", "lguest"),
            (bytes(0x202) + b"HdrS\x0b\2", "lguest"),
        ],
    )
    def test_the_file_decides_by_what_is_in_it(self, head: bytes, kind: str) -> None:
        assert kernel_kind(head, "kernel") == kind

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            (b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\2\0\xb7\0", "a 64-bit ELF file for arm64"),
            (b"\x7fELF\2\1\1".ljust(16, b"\0") + b"\2\0\xf3\0", "a 64-bit ELF file for RISC-V"),
            (b"\x7fELF\1\1\1".ljust(16, b"\0") + b"\2\0\x3e\0", "a 32-bit ELF file for x86-64"),
            (b"\x7fELF", "Malformed elf header: 4 bytes"),
            (lz4_legacy(b"x"), "lz4 data"),
            (lzma.compress(b"x", format=lzma.FORMAT_ALONE), "lzma data"),
            (b"!<arch>\ndebian-binary", "a Debian package"),
            (bytes(0x38) + b"RSC\x05", "a RISC-V Image"),
            (b"MZ" + bytes(600), "a Windows or EFI program"),
        ],
    )
    def test_anything_else_is_called_by_its_name(self, head: bytes, said: str) -> None:
        with pytest.raises(LoadError, match=said):
            kernel_kind(head, "file")

    def test_each_loader_refuses_the_others_kernels(self, memory: GuestMemory, file: Name) -> None:
        with pytest.raises(LoadError, match="is a 64-bit kernel"):
            load_kernel(memory, file(forge_vmlinux()))
        with pytest.raises(LoadError, match="is a 32-bit kernel"):
            load_kernel64(memory, file(bytes(0x202) + b"HdrS\x0b\2"))


class TestPayload:
    @pytest.mark.parametrize("name", PACKERS)
    def test_a_kernel_is_found_in_a_parcel_of_each_kind(self, memory: GuestMemory, file: Name, name: str) -> None:
        code = CODE + bytes(range(256)) * 40
        kernel = load_kernel64(memory, file(forge_bzimage(PACKERS[name](forge_vmlinux(code)))))
        assert kernel.loaded == (16 * MB, 16 * MB + len(code))
        assert memory.read(16 * MB, len(code)) == code

    @pytest.mark.parametrize(
        ("tool", "name"),
        [
            (("lz4", "-l", "-c", "-"), "lz4"),
            (("zstd", "-22", "--ultra", "-c"), "zstd"),
            (("xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB", "-c"), "xz"),
            (("xz", "--format=lzma", "-c"), "lzma"),
            (("bzip2", "-9", "-c"), "bzip2"),
            (("gzip", "-9", "-c"), "gzip"),
        ],
    )
    def test_what_the_kernels_makefiles_call_packs_what_we_unpack(self, tool: tuple[str, ...], name: str) -> None:
        assert shutil.which(tool[0]), f"the tests need {tool[0]}: see tools/test_packages.sh"
        data = bytes(range(256)) * (9 * MB // 256)  # more than a block of lz4
        packed = subprocess.run(tool, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
        assert format_of(packed) == name
        assert decompress(packed, len(data)) == data

    @pytest.mark.parametrize("name", PACKERS)
    def test_the_limit_is_exact_and_kept_before_all_is_unpacked(self, name: str) -> None:
        packed = PACKERS[name](bytes(9 * MB))
        packed = packed if name == "gzip" else packed[:-4]
        assert len(decompress(packed, 9 * MB)) == 9 * MB
        with pytest.raises(LoadError, match=f"{name} data which unpacks to more than {9 * MB - 1} bytes"):
            decompress(packed, 9 * MB - 1)

    @pytest.mark.parametrize("name", PACKERS)
    def test_a_damaged_parcel_is_a_sentence(self, memory: GuestMemory, file: Name, name: str) -> None:
        payload = bytearray(PACKERS[name](forge_vmlinux(bytes(range(256)) * 40)))
        payload[6:22] = b"\xa5" * 16
        with pytest.raises(LoadError, match="damaged|should have|bytes, and there is room"):
            load_kernel64(memory, file(forge_bzimage(bytes(payload))))
        with pytest.raises(LoadError, match="damaged|should have|bytes, and there is room"):
            load_kernel64(memory, file(forge_bzimage(bytes(payload[: len(payload) // 2]))))

    def test_a_size_which_the_guest_has_no_room_for_is_refused_unseen(self, memory: GuestMemory, file: Name) -> None:
        payload = bz2.compress(bytes(MB)) + struct.pack("<I", 32 * MB + 1)
        with pytest.raises(LoadError, match=f"has {32 * MB + 1} bytes, and there is room for {32 * MB}"):
            load_kernel64(memory, file(forge_bzimage(payload)))

    def test_what_unpacks_to_less_than_it_says_is_refused(self, memory: GuestMemory, file: Name) -> None:
        payload = bz2.compress(bytes(MB)) + struct.pack("<I", MB + 1)
        with pytest.raises(LoadError, match=f"should have {MB + 1} bytes, and it unpacks to {MB}"):
            load_kernel64(memory, file(forge_bzimage(payload)))

    @pytest.mark.parametrize(
        "change", [{"payload_length": 1 << 31}, {"payload_length": 3}, {"payload_offset": 1 << 31}]
    )
    def test_a_parcel_outside_the_file_is_refused(
        self, memory: GuestMemory, file: Name, change: dict[str, int]
    ) -> None:
        with pytest.raises(LoadError, match="has its kernel in .* bytes from .* on, and it ends at"):
            load_kernel64(memory, file(forge_bzimage(PACKERS["gzip"](forge_vmlinux()), **change)))

    def test_zero_sectors_mean_four(self, memory: GuestMemory, file: Name) -> None:
        image = bytearray(forge_bzimage(PACKERS["gzip"](forge_vmlinux()), sectors=4))
        image[0x1F1] = 0
        assert load_kernel64(memory, file(image)).loaded.entry == 16 * MB

    @pytest.mark.parametrize("size", [0x238, 0x267])
    def test_a_header_cut_short_is_a_sentence(self, memory: GuestMemory, file: Name, size: int) -> None:
        with pytest.raises(LoadError, match=f"ends within its header, after {size} bytes"):
            load_kernel64(memory, file(forge_bzimage(b"")[:size]))


class TestElf:
    def test_it_must_fit_up_to_the_last_byte(self, memory: GuestMemory, file: Name) -> None:
        assert load_kernel64(memory, file(forge_vmlinux(memsz=16 * MB))).loaded.end == 32 * MB
        with pytest.raises(LoadError, match="ends at 0x2000001, and the Guest's memory at 0x2000000: .* 33 MB"):
            load_kernel64(memory, file(forge_vmlinux(memsz=16 * MB + 1)))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"kind": 3}, "Malformed elf header: type 3"),
            ({"phentsize": 32}, "of 32 bytes"),
            ({"phnum": 0}, "0 program headers"),
            ({"address": MB - 1}, "lies over what ends at 0x100000"),
            ({"memsz": 1}, "3 bytes in the file, 1 in memory"),
            ({"memsz": (1 << 64) - 1}, "give it at least"),
            ({"entry": 1 << 63}, "would start at 0x8000000000000000"),
            ({"offset": 1 << 62}, "cut short"),
        ],
    )
    def test_a_malformed_one_loads_nothing(
        self, memory: GuestMemory, file: Name, change: dict[str, int], said: str
    ) -> None:
        for image in (vmlinux := forge_vmlinux(**change), forge_bzimage(PACKERS["gzip"](vmlinux))):
            with pytest.raises(LoadError, match=said):
                load_kernel64(memory, file(image))
        assert not any(memory.read(0, 32 * MB).strip(b"\0"))

    def test_a_vmlinux_gets_the_header_of_a_boot_loader(self, memory: GuestMemory, file: Name) -> None:
        boot = load_linux64(memory, file(forge_vmlinux()))
        page = memory.read(boot.boot_params, PAGE_SIZE)
        assert page[0x1FE:0x200] == b"\x55\xaa"
        assert page[0x202:0x208] == b"HdrS\x0f\2"


class TestInitrd:
    def test_it_goes_to_the_top_in_whole_pages_with_its_exact_size(self, memory: GuestMemory, file: Name) -> None:
        kernel = load_kernel64(memory, file(forge_vmlinux()))
        placed = load_initrd64(memory, file(b"x" * 5000, "initrd"), kernel)
        assert placed == (32 * MB - 2 * PAGE_SIZE, 5000)
        assert memory.read(placed.address, 5000) == b"x" * 5000

    def test_it_ends_where_the_kernel_says(self, memory: GuestMemory, file: Name) -> None:
        image = forge_bzimage(PACKERS["gzip"](forge_vmlinux()), initrd_addr_max=20 * MB - 1)
        kernel = load_kernel64(memory, file(image))
        assert load_initrd64(memory, file(b"x", "initrd"), kernel).address == 20 * MB - PAGE_SIZE

    def test_it_fits_beside_the_kernel_or_is_refused_with_the_numbers(self, memory: GuestMemory, file: Name) -> None:
        kernel = load_kernel64(memory, file(forge_vmlinux(memsz=15 * MB)))
        assert load_initrd64(memory, file(bytes(MB), "initrd"), kernel).address == kernel.loaded.end
        with pytest.raises(LoadError, match=f"has {MB + 1} bytes .* kernel ends at 0x1f00000: .* 32 MB of memory"):
            load_initrd64(memory, file(bytes(MB + 1), "initrd"), kernel)
        with pytest.raises(LoadError, match="is empty"):
            load_initrd64(memory, file(b"", "initrd"), kernel)

    def test_whoever_waits_is_told_how_far_it_is(self, memory: GuestMemory, file: Name) -> None:
        told: list[tuple[str, int, int]] = []
        initrd = file(bytes(3 * MB), "initrd")
        load_linux64(memory, file(forge_vmlinux()), initrd=initrd, tell=lambda *each: told.append(each))
        assert [done for what, done, total in told if what == f"reading {initrd}" and total == 3 * MB][-1] == 3 * MB


class TestParameters:
    def test_the_sentinel_stays_behind_and_the_header_comes_along(self, memory: GuestMemory, file: Name) -> None:
        image = forge_bzimage(PACKERS["gzip"](forge_vmlinux()))
        boot = load_linux64(memory, file(image), "quiet", rsdp=0xE0000)
        page = memory.read(boot.boot_params, PAGE_SIZE)
        assert page[0x1EF] == 0
        assert page[0x1FE:0x210] == image[0x1FE:0x210]
        assert page[0x248:0x250] == image[0x248:0x250]
        assert page[0x210] == 0xFF
        assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
        (command_line,) = struct.unpack_from("<I", page, 0x228)
        assert memory.string(command_line, 100) == b"quiet"

    def test_ram_is_all_but_the_hole_below_a_megabyte(self, memory: GuestMemory, file: Name) -> None:
        boot = load_linux64(memory, file(forge_vmlinux()))
        page = memory.read(boot.boot_params, PAGE_SIZE)
        e820 = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
        assert [(start, start + size) for start, size, kind in e820 if kind == 1] == [(0, 0x9FC00), (MB, 32 * MB)]

    def test_a_command_line_has_the_length_which_the_kernel_reads(self, memory: GuestMemory, file: Name) -> None:
        image = file(forge_bzimage(PACKERS["gzip"](forge_vmlinux()), cmdline_size=255))
        load_linux64(memory, image, "x" * 255)
        with pytest.raises(LoadError, match="has 256 bytes, and it reads 255 at most"):
            load_linux64(memory, image, "x" * 256)

    def test_every_address_below_4_gib_is_mapped_to_itself_and_none_above(
        self, memory: GuestMemory, file: Name
    ) -> None:
        boot = load_linux64(memory, file(forge_vmlinux()))

        def translate(address: int) -> int | None:
            table = boot.page_tables
            for shift in (39, 30, 21):
                (entry,) = struct.unpack("<Q", memory.read(table + 8 * (address >> shift & 511), 8))
                if entry & 3 != 3:
                    return None
                assert bool(entry & 0x80) == (shift == 21)
                table = entry & 0xFFFFFFFFFF000
            return table + (address & 0x1FFFFF)

        for address in range(0, 1 << 32, 1 << 21):
            assert translate(address + 0x1234) == address + 0x1234
        assert translate(1 << 32) is None
        assert translate(1 << 39) is None

    def test_what_is_ours_lies_apart_and_in_ram(self) -> None:
        pieces = [
            (linux64.GDT_AT, len(linux64.GDT)),
            (linux64.STACK_TOP - 0x2000, 0x2000),
            (linux64.TABLES_AT, 6 * PAGE_SIZE),
            (linux64.BOOT_PARAMS_AT, PAGE_SIZE),
            (linux64.COMMAND_LINE64_AT, 2048),
        ]
        for (start, size), (following, _) in zip(pieces, [*pieces[1:], (linux64.LOW_RAM_END, 0)], strict=True):
            assert start + size <= following


class TestLayouts:
    "Compared with Linux's own header by a C compiler."

    HEADERS = ("linux/types.h", "asm/bootparam.h", "stddef.h")

    def test_the_fields_of_the_setup_header_are_linuxs(self) -> None:
        places = {f"offsetof(struct boot_params, hdr.{name})": at for name, (at, _) in SETUP_HEADER.items()}
        assert ask_c(self.HEADERS, tuple(places)) == places
        sizes = {
            f"sizeof(((struct boot_params *)0)->hdr.{name})": struct.calcsize(form)
            for name, (_, form) in SETUP_HEADER.items()
        }
        assert ask_c(self.HEADERS, tuple(sizes)) == sizes

    def test_the_fields_of_the_zero_page_are_linuxs(self) -> None:
        names = {"e820_map": "e820_table", "e820_entries": "e820_entries"}
        expected = {
            f"offsetof(struct boot_params, {names.get(name, f'hdr.{name}')})": field.offset
            for name, field in BOOT_PARAMS.items()
        }
        expected |= {
            "offsetof(struct boot_params, acpi_rsdp_addr)": linux64.ACPI_RSDP_ADDR[0],
            "sizeof(struct boot_params)": PAGE_SIZE,
            "sizeof(struct boot_e820_entry)": 20,
            "LOADED_HIGH": linux64.LOADED_HIGH,
            "XLF_KERNEL_64": 1,
        }
        assert ask_c(self.HEADERS, tuple(expected)) == expected

    def test_the_headers_of_an_elf_file_are_linuxs(self) -> None:
        expected = {
            "sizeof(Elf64_Ehdr)": ELF_X86_64.header.size,
            "sizeof(Elf64_Phdr)": ELF_X86_64.program.size,
            "offsetof(Elf64_Phdr, p_paddr)": 24,
            "EM_X86_64": ELF_X86_64.machine,
            "ELFCLASS64": ELF_X86_64.bits,
        }
        assert ask_c(("linux/elf.h", "linux/elf-em.h", "stddef.h"), tuple(expected)) == expected
