"""Kernel, initrd and boot parameters, where Linux and an independent reference say they belong."""

import errno
import logging
import os
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from support import Piece, ask_c, forge_bzimage, forge_elf

from lguest_nb.loading import (
    BOOT_PARAMS,
    COMMAND_LINE_AT,
    Initrd,
    Loaded,
    LoadError,
    elf_segments,
    load_initrd,
    load_kernel,
    room_for_tables,
    what_is,
    write_boot_params,
)
from lguest_nb.memory import GuestMemory

pytestmark = pytest.mark.usefixtures("nothing_left")
MB = 1 << 20


@pytest.fixture
def memory():
    "Four megabytes of Guest."
    memory = GuestMemory(4 * MB)
    yield memory
    memory.close()


@pytest.fixture
def file(tmp_path: Path):
    "Makes a file of these bytes and gives its path."

    def make(data: bytes, name: str = "vmlinux") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return make


def load(memory: GuestMemory, path: str, what: str) -> None:
    "A kernel or an initrd."
    if what == "kernel":
        load_kernel(memory, path)
    else:
        load_initrd(memory, path, Loaded(MB, MB + 1))


def refuse(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class TestElf:
    def test_each_segment_goes_to_its_physical_address(self, memory, file) -> None:
        load_kernel(memory, file(forge_elf(Piece(0x100000, b"text"), Piece(0x200000, b"data"))))
        assert memory.read(0x100000, 5) == b"text\0"
        assert memory.read(0x200000, 5) == b"data\0"
        assert memory.read(0x1000, 0xFF000) == bytes(0xFF000)

    def test_the_entry_point_is_the_headers(self, memory, file) -> None:
        kernel = load_kernel(memory, file(forge_elf(Piece(data=bytes(64)), entry=0x100010)))
        assert kernel.entry == 0x100010

    def test_bss_is_zeroed_ram_and_counts_for_where_the_kernel_ends(self, memory, file) -> None:
        kernel = load_kernel(memory, file(forge_elf(Piece(data=b"code", memsz=0x5000))))
        assert memory.read(0x100000, 0x5000) == b"code" + bytes(0x4FFC)
        assert kernel.end == 0x105000

    def test_only_pt_load_is_loaded(self, memory, file) -> None:
        load_kernel(memory, file(forge_elf(Piece(), Piece(0x200000, b"note", kind=4))))
        assert memory.read(0x200000, 4) == bytes(4)

    def test_an_offset_which_is_no_page_is_as_good_as_any(self, memory, file) -> None:
        load_kernel(memory, file(forge_elf(Piece(0x100001, b"odd"), entry=0x100001)))
        assert memory.read(0x100000, 5) == b"\0odd\0"

    def test_a_file_shortened_later_does_not_take_memory_away(self, memory, file) -> None:
        path = file(forge_elf(Piece(data=b"code" * 2048)))
        load_kernel(memory, path)
        os.truncate(path, 0)
        assert memory.read(0x100000, 8192) == b"code" * 2048

    @pytest.mark.parametrize("size", [1, 4, 51])
    def test_a_header_cut_short_is_malformed(self, memory, file, size: int) -> None:
        with pytest.raises(LoadError, match="Malformed elf header|This doesn't look like"):
            load_kernel(memory, file(forge_elf()[:size]))

    @pytest.mark.parametrize(
        "change",
        [{"type": 1}, {"type": 3}, {"phentsize": 56}, {"phentsize": 31}, {"phnum": 0}, {"phnum": 2049}],
        ids=lambda change: "-".join(f"{name}-{value}" for name, value in change.items()),
    )
    def test_a_header_which_is_no_program_is_malformed(self, memory, file, change: dict[str, int]) -> None:
        with pytest.raises(LoadError, match="Malformed elf header"):
            load_kernel(memory, file(forge_elf(**change) + bytes(2049 * 56)))

    @pytest.mark.parametrize("phnum", [1, 2048])
    def test_one_to_2048_program_headers_are_read(self, memory, file, phnum: int) -> None:
        notes = [Piece(data=b"", kind=4)] * (phnum - 1)
        assert load_kernel(memory, file(forge_elf(Piece(), *notes))).entry == 0x100000

    @pytest.mark.parametrize(
        ("ident", "machine", "said"),
        [
            (b"\x7fELF\1\1\1", 62, "a 32-bit ELF file for x86-64"),
            (b"\x7fELF\2\1\1", 183, "a 64-bit ELF file for arm64"),
            (b"\x7fELF\1\1\1", 40, "a 32-bit ELF file for arm"),
            (b"\x7fELF\1\1\1", 4711, "a 32-bit ELF file for machine 4711"),
        ],
    )
    def test_another_machine_is_called_by_its_name(self, memory, file, ident, machine, said) -> None:
        with pytest.raises(LoadError, match=f"This is {said}. I can boot a 32-bit x86 vmlinux"):
            load_kernel(memory, file(forge_elf(ident=ident, machine=machine)))

    @pytest.mark.parametrize("phoff", [80, 1 << 31, 0xFFFFFFFF])
    def test_program_headers_beyond_the_file_are_refused(self, memory, file, phoff: int) -> None:
        with pytest.raises(LoadError, match=f"Reading program headers: . of 32 bytes at {phoff}"):
            load_kernel(memory, file(forge_elf(phoff=phoff)))

    @pytest.mark.parametrize(
        ("pieces", "header", "said"),
        [
            ([Piece(0x1000)], {}, "The segment at 0x1000 lies over what ends at 0x2000"),
            ([Piece(0x100000, bytes(9)), Piece(0x100008)], {}, "lies over what ends at 0x100009"),
            (
                [Piece(0x200000), Piece(0x100000, memsz=MB + 1)],
                {},
                "0x200000 lies over what ends at 0x200001",
            ),
            ([Piece(0x3FFFFE)], {}, "ends at 0x400001, and the Guest's memory at 0x400000: .* at least 5 MB"),
            ([Piece(0xFFFFF000, memsz=0x2000)], {}, "ends at 0x100001000"),
            ([Piece(memsz=0xFFFFFFFF)], {}, "and the Guest's memory at 0x400000"),
            ([Piece(memsz=2)], {}, "has 3 bytes in the file, 2 in memory"),
            ([Piece(filesz=4)], {}, "cut short"),
            ([Piece()], {"entry": 0x1FFF}, "would start at 0x1fff, and it loads nothing there"),
            ([Piece()], {"entry": 0x100003}, "would start at 0x100003"),
            ([Piece(kind=4)], {}, "loads nothing there"),
        ],
    )
    def test_what_does_not_fit_is_refused_before_memory_is_touched(self, memory, file, pieces, header, said) -> None:
        with pytest.raises(LoadError, match=said):
            load_kernel(memory, file(forge_elf(*pieces, **header)))
        assert memory.read(0, memory.size) == bytes(memory.size)

    def test_the_last_byte_of_memory_may_be_a_segments(self, memory, file) -> None:
        assert load_kernel(memory, file(forge_elf(Piece(0x3FFFFD)))).end == memory.size

    def test_verbose_names_each_section_with_its_size_and_address(self, memory, file, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        note = Piece(0x300000, b"note", kind=4)
        load_kernel(memory, file(forge_elf(Piece(memsz=0x5000), note, Piece(0x200000, b"data"))))
        assert caplog.messages == ["Section 0: size 20480 addr 0x100000", "Section 2: size 4 addr 0x200000"]

    def test_a_linked_kernel_is_loaded_as_pyelftools_reads_it(self, memory, tmp_path: Path) -> None:
        (tmp_path / "head.s").write_text(
            ".text\n.globl start\n.space 32\nstart: hlt\njmp start\n"
            ".data\n.ascii \"data!\"\n.bss\n.space 20000\n.section .note, \"a\", @note\n.long 1, 2, 3\n"
        )  # fmt: skip
        (tmp_path / "vmlinux.ld").write_text(
            "OUTPUT_FORMAT(elf32-i386) PHDRS { text PT_LOAD; data PT_LOAD; note PT_NOTE; }\n"
            "ENTRY(phys) phys = start - 0xc0000000; SECTIONS { . = 0xc0100000;\n"
            ".text : AT(0x100000) { *(.text) } :text  .note : AT(0x180000) { *(.note) } :text :note\n"
            ". = 0xc0200100; .data : AT(0x200100) { *(.data) } :data  .bss : { *(.bss) } :data }\n"
        )
        for command in ("as --32 -o head.o head.s", "ld -m elf_i386 -T vmlinux.ld -o vmlinux head.o"):
            subprocess.run(command.split(), cwd=tmp_path, check=True)
        kernel = load_kernel(memory, str(tmp_path / "vmlinux"))
        with (tmp_path / "vmlinux").open("rb") as file:
            elf = ELFFile(file)
            wanted = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
            assert len(wanted) == 2
            for segment in wanted:
                data = segment.data().ljust(segment["p_memsz"], b"\0")
                assert memory.read(segment["p_paddr"], len(data)) == data
            assert kernel == Loaded(elf["e_entry"], max(s["p_paddr"] + s["p_memsz"] for s in wanted))
            file.seek(0)
            entry, segments = elf_segments(file, file.read(1024), memory.size)
            names = ("p_offset", "p_paddr", "p_filesz", "p_memsz")
            assert [tuple(s) for s in segments] == [tuple(s[name] for name in names) for s in wanted]
        assert kernel.entry == entry == 0x100020


class TestBzImage:
    def test_what_follows_the_setup_sectors_goes_to_a_megabyte(self, memory, file) -> None:
        code = bytes(range(256)) * 600
        kernel = load_kernel(memory, file(forge_bzimage(code, setup_sects=7, entry=0x100010)))
        assert kernel == Loaded(0x100010, MB + len(code))
        assert memory.read(MB, len(code) + 1) == code + b"\0"
        assert memory.read(0, MB) == bytes(MB)

    def test_no_setup_sectors_means_four(self, memory, file) -> None:
        load_kernel(memory, file(forge_bzimage(b"code", setup_sects=0)))
        assert memory.read(MB, 4) == b"code"

    def test_it_is_known_by_hdrs_at_0x202(self, memory, file) -> None:
        image = bytearray(forge_bzimage())
        image[0x205] = ord("s")
        with pytest.raises(LoadError, match="This doesn't look like a bzImage to me"):
            load_kernel(memory, file(image))

    @pytest.mark.parametrize("version", [0x200, 0x206])
    def test_a_boot_protocol_without_subarch_is_refused(self, memory, file, version: int) -> None:
        with pytest.raises(LoadError, match=rf"boot protocol 2.0{version & 0xFF}; lguest needs 2.07"):
            load_kernel(memory, file(forge_bzimage(version=version)))

    def test_a_64_bit_kernel_is_refused_by_name(self, memory, file) -> None:
        with pytest.raises(LoadError, match="is a 64-bit kernel, which wants a PC"):
            load_kernel(memory, file(forge_bzimage(version=0x20C, xloadflags=1)))

    def test_an_old_protocol_says_nothing_about_64_bits(self, memory, file) -> None:
        load_kernel(memory, file(forge_bzimage(version=0x20B, xloadflags=1)))

    def test_it_must_fit_up_to_the_last_byte(self, memory, file) -> None:
        load_kernel(memory, file(forge_bzimage(bytes(3 * MB))))
        with pytest.raises(LoadError, match=f"has {3 * MB + 1} bytes .* memory ends at 0x400000"):
            load_kernel(memory, file(forge_bzimage(bytes(3 * MB + 1))))

    @pytest.mark.parametrize("size", [0x206, 0x267, 1024])
    def test_one_cut_short_is_refused(self, memory, file, size: int) -> None:
        with pytest.raises(LoadError, match="ends within its header|has 0 bytes after its setup code"):
            load_kernel(memory, file(forge_bzimage()[:size]))

    @pytest.mark.parametrize("entry", [0, 0xFFFFF, 0x100003])
    def test_it_must_start_within_itself(self, memory, file, entry: int) -> None:
        with pytest.raises(LoadError, match=f"would start at {entry:#x}, and it lies from 0x100000 to 0x100003"):
            load_kernel(memory, file(forge_bzimage(entry=entry)))


class TestWrongFiles:
    def test_a_file_which_is_not_there(self, memory) -> None:
        with pytest.raises(LoadError, match="Failed to open kernel /no/such/file: No such file or directory"):
            load_kernel(memory, "/no/such/file")

    def test_a_directory(self, memory, tmp_path: Path) -> None:
        with pytest.raises(LoadError, match="is a directory"):
            load_kernel(memory, str(tmp_path))

    @pytest.mark.parametrize("what", ["kernel", "initrd"])
    def test_a_pipe_is_refused_and_not_waited_for(self, memory, tmp_path: Path, what: str) -> None:
        os.mkfifo(tmp_path / "named")
        reads, writes = os.pipe()  # as the shell gives us for <(zcat vmlinux.gz)
        for path in (str(tmp_path / "named"), f"/dev/fd/{reads}"):
            with pytest.raises(LoadError, match=f"{what} {path} is a pipe or a terminal; write it into a file first"):
                load(memory, path, what)
        os.close(reads)
        os.close(writes)

    @pytest.mark.parametrize("what", ["kernel", "initrd"])
    def test_what_cannot_be_read_is_a_sentence(self, memory, what: str) -> None:
        with pytest.raises(LoadError, match=f"Failed to read {what} /proc/self/mem: (Input/output error|Invalid arg)"):
            load(memory, "/proc/self/mem", what)

    @pytest.mark.parametrize("what", ["kernel", "initrd", "bzImage"])
    def test_a_read_error_in_the_middle_is_a_sentence(self, memory, file, monkeypatch, what: str) -> None:
        path = file(forge_bzimage(bytes(5000)) if what == "bzImage" else forge_elf(Piece(data=bytes(5000))))
        monkeypatch.setattr(os, "readv", refuse)
        kind = "initrd" if what == "initrd" else "kernel"
        with pytest.raises(LoadError, match=f"Failed to read {kind} {path}: Input/output error"):
            load(memory, path, kind)

    @pytest.mark.parametrize("what", ["kernel", "initrd", "bzImage"])
    def test_a_file_which_shrinks_while_it_is_read_is_a_sentence(self, memory, file, monkeypatch, what: str) -> None:
        path = file(forge_bzimage(bytes(5000)) if what == "bzImage" else forge_elf(Piece(data=bytes(5000))))
        readv = os.readv

        def shrinking(fd: int, views: list[memoryview]) -> int:
            count = readv(fd, [views[0][:100]])
            os.truncate(path, 0)
            return count

        monkeypatch.setattr(os, "readv", shrinking)
        with pytest.raises(LoadError, match="gave 100: the file is cut short"):
            load(memory, path, "initrd" if what == "initrd" else "kernel")

    @pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
    def test_what_is_longer_or_shorter_than_it_says_is_no_kernel_and_no_initrd(self, memory, path: str) -> None:
        with pytest.raises(LoadError, match=f"{path} is (no kernel I know|an empty file)"):
            load_kernel(memory, path)
        with pytest.raises(LoadError, match=f"The initrd {path} is empty"):
            load_initrd(memory, path, Loaded(MB, 2 * MB))

    def test_a_file_which_nobody_could_hold_is_not_read(self, memory, file, monkeypatch) -> None:
        "A sparse terabyte, which its owner made in no time."
        monkeypatch.setattr(os, "readv", lambda *_: pytest.fail("it was read"))
        for kind, data in (("bzImage", forge_bzimage()), ("initrd", b"")):
            path = file(data, kind)
            os.truncate(path, 1 << 40)
            with pytest.raises(LoadError, match="memory ends at 0x400000|does not fit into 4 MB"):
                load(memory, path, "initrd" if kind == "initrd" else "kernel")
        segments = [Piece(0x100000, memsz=0xFFFFFFFF), Piece(0x200000)]
        with pytest.raises(LoadError, match="ends at 0x1000fffff|lies over"):
            load_kernel(memory, file(forge_elf(*segments)))

    @pytest.mark.parametrize(
        ("head", "name"),
        [
            (b"", "an empty file"),
            (b"\x1f\x8b\x08", "gzip data"),
            (b"\xfd7zXZ\0", "xz data"),
            (b"\x28\xb5\x2f\xfd", "zstd data"),
            (b"\x02\x21\x4c\x18", "lz4 data"),
            (b"\x5d\0\0\x80\0", "lzma data"),
            (b"!<arch>\ndebian-binary", "a Debian package or an archive"),
            (b"070701", "a cpio archive, which is an initrd"),
            (b"#!/bin/sh", "a script"),
            (bytes(0x38) + b"ARM\x64", "an arm64 Image"),
            (bytes(510) + b"\x55\xaa", "a boot sector or disk image"),
            (b"MZ" + bytes(600), "a Windows or EFI program"),
            (bytes(600), "no kernel I know"),
        ],
    )
    def test_what_is_no_kernel_is_called_by_its_name(self, memory, file, head: bytes, name: str) -> None:
        assert what_is(head).startswith(name)
        with pytest.raises(LoadError, match=f"This doesn't look like a bzImage to me: .* is {name}.* I can boot"):
            load_kernel(memory, file(head))


class TestInitrd:
    KERNEL = Loaded(MB, 2 * MB)

    def test_it_goes_to_the_top_of_memory_in_whole_pages(self, memory, file) -> None:
        initrd = load_initrd(memory, file(b"070701" + bytes(4090) + b"x"), self.KERNEL)
        assert initrd == Initrd(4 * MB - 8192, 8192)
        assert memory.read(initrd.address, 8192) == b"070701" + bytes(4090) + b"x" + bytes(4095)

    def test_one_of_whole_pages_is_not_rounded_further(self, memory, file) -> None:
        assert load_initrd(memory, file(bytes(4096)), self.KERNEL) == Initrd(4 * MB - 4096, 4096)

    def test_verbose_says_where_it_is(self, memory, file, caplog) -> None:
        caplog.set_level(logging.INFO, "lguest_nb")
        path = file(bytes(5000))
        load_initrd(memory, path, self.KERNEL)
        assert caplog.messages == [f"mapped initrd {path} size=8192 @ {4 * MB - 8192:#x}"]

    def test_it_leaves_room_for_kernel_and_page_tables(self, memory, file) -> None:
        most = 2 * MB - room_for_tables(4 * MB)
        assert load_initrd(memory, file(bytes(most)), self.KERNEL).address == 4 * MB - most
        with pytest.raises(LoadError, match="the kernel ends at 0x200000, .* does not fit into 4 MB"):
            load_initrd(memory, file(bytes(most + 1)), self.KERNEL)

    @pytest.mark.parametrize("size", [4 * MB, 4 * MB + 1, 9 * MB])
    def test_one_larger_than_memory_is_refused(self, memory, file, size: int) -> None:
        path = file(b"")
        os.truncate(path, size)
        with pytest.raises(LoadError, match="does not fit into 4 MB"):
            load_initrd(memory, path, self.KERNEL)

    def test_an_empty_or_missing_one_is_refused(self, memory, file) -> None:
        with pytest.raises(LoadError, match="is empty"):
            load_initrd(memory, file(b""), self.KERNEL)
        with pytest.raises(LoadError, match="Failed to open initrd /no/such/initrd"):
            load_initrd(memory, "/no/such/initrd", self.KERNEL)

    @pytest.mark.parametrize(
        ("megabytes", "pages"),
        [(1, 2), (4, 2), (5, 3), (64, 17), (512, 129)],
    )
    def test_page_tables_take_a_directory_and_a_page_for_each_4_mb(self, megabytes: int, pages: int) -> None:
        assert room_for_tables(megabytes * MB) == pages * 4096


UAPI = {
    "e820_entries": "e820_entries",
    "version": "hdr.version",
    "type_of_loader": "hdr.type_of_loader",
    "loadflags": "hdr.loadflags",
    "ramdisk_image": "hdr.ramdisk_image",
    "ramdisk_size": "hdr.ramdisk_size",
    "cmd_line_ptr": "hdr.cmd_line_ptr",
    "hardware_subarch": "hdr.hardware_subarch",
    "e820_map": "e820_table[0]",
}


def uapi(name: str) -> tuple[int, int]:  # offset, size
    "Where <asm/bootparam.h> has a field of `struct boot_params`."
    places = {n: f"offsetof(struct boot_params, {field})" for n, field in UAPI.items()}
    sizes = {n: f"sizeof(((struct boot_params *)0)->{field})" for n, field in UAPI.items()}
    told = ask_c(("asm/bootparam.h",), (*places.values(), *sizes.values()))
    return told[places[name]], told[sizes[name]]


def boot_params(memory: GuestMemory, name: str) -> tuple[int, ...]:
    "What Linux will read there."
    raw = memory.read(*uapi(name))
    return struct.unpack("<QQI", raw) if name == "e820_map" else (int.from_bytes(raw, "little"),)


class TestBootParams:
    INITRD = Initrd(0x3F0000, 0x10000)

    @pytest.mark.parametrize("name", BOOT_PARAMS)
    def test_each_field_is_where_linux_has_it(self, name: str) -> None:
        field = BOOT_PARAMS[name]
        assert (field.offset, struct.calcsize(field.format)) == uapi(name)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("e820_entries", (1,)),
            ("e820_map", (0, 4 * MB, 1)),
            ("version", (0x207,)),
            ("loadflags", (0x40,)),
            ("cmd_line_ptr", (0x1000,)),
            ("hardware_subarch", (1,)),
        ],
    )
    def test_what_linux_is_told(self, memory, name: str, value: tuple[int, ...]) -> None:
        write_boot_params(memory, "", Initrd())
        assert boot_params(memory, name) == value

    def test_only_an_initrd_has_a_loader_an_address_and_a_size(self, memory) -> None:
        names = ("type_of_loader", "ramdisk_image", "ramdisk_size")
        write_boot_params(memory, "")
        assert [boot_params(memory, name) for name in names] == [(0,)] * 3
        write_boot_params(memory, "", self.INITRD)
        assert [boot_params(memory, name) for name in names] == [(0xFF,), (0x3F0000,), (0x10000,)]

    def test_everything_else_stays_zero(self, memory) -> None:
        write_boot_params(memory, "", self.INITRD)
        for field in BOOT_PARAMS.values():
            memory.write(field.offset, bytes(struct.calcsize(field.format)))
        assert memory.read(0, 4096) == bytes(4096)

    def test_memory_above_ram_is_not_in_the_e820_map(self, memory) -> None:
        memory.take_pages(4)
        write_boot_params(memory, "")
        assert boot_params(memory, "e820_map") == (0, 4 * MB, 1)

    def test_the_command_line_follows_with_its_nul(self, memory) -> None:
        memory.u8[COMMAND_LINE_AT + 5] = 0xEE
        write_boot_params(memory, "quiet")
        assert memory.read(0x1000, 6) == b"quiet\0"

    def test_bytes_of_the_command_line_are_those_the_user_typed(self, memory) -> None:
        write_boot_params(memory, os.fsdecode(b"caf\xc3\xa9 \xff"))
        assert memory.string(0x1000, 99) == b"caf\xc3\xa9 \xff"

    def test_a_command_line_linux_would_cut_is_refused(self, memory) -> None:
        write_boot_params(memory, "x" * 2047)
        assert memory.read(0x1000 + 2046, 2) == b"x\0"
        with pytest.raises(LoadError, match="command line has 2048 bytes, and it reads 2047 at most"):
            write_boot_params(memory, "x" * 2048)
