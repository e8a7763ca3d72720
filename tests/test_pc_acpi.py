"""ACPI tables: Intel's own compiler and interpreter read them as we meant them."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lguest_nb.memory import BadAddress, GuestMemory, LguestError
from lguest_nb.pc.acpi import ACPI_TABLES, MmioSlot, acpi_tables, dsdt, place_acpi, sized

LINES = (5, 7, 10, 11, 12, 3, 6, 14, 15)
SLOTS = [MmioSlot(0xD000_0000 + 0x1000 * i, 0x1000, irq) for i, irq in enumerate(LINES)]
FILES = {b"XSDT": "xsdt", b"FACP": "facp", b"FACS": "facs", b"DSDT": "dsdt"}


def run(*command: str, at: Path) -> str:
    "What a program of acpica-tools says. Raises `AssertionError` if it fails."
    program = shutil.which(command[0])
    assert program, f"{command[0]} is missing: tools/test_packages.sh installs acpica-tools"
    done = subprocess.run([program, *command[1:]], cwd=at, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def written(at: Path, slots: Sequence[MmioSlot] = SLOTS) -> dict[str, bytes]:
    tables = {FILES[table[:4]]: table for table in acpi_tables(slots).values() if table[:4] in FILES}
    for name, table in tables.items():
        (at / f"{name}.aml").write_bytes(table)
    return tables


@pytest.mark.parametrize("count", [0, 1, 9])
def test_iasl_takes_every_table_apart_without_a_warning_and_builds_the_same_bytes_again(
    count: int, tmp_path: Path
) -> None:
    for name, table in written(tmp_path, SLOTS[:count]).items():
        said = run("iasl", "-d", f"{name}.aml", at=tmp_path)
        source = (tmp_path / f"{name}.dsl").read_text()
        assert not re.search(r"warning|error|invalid|incorrect", said + source, re.IGNORECASE), said + source
        said = run("iasl", "-p", f"again-{name}", f"{name}.dsl", at=tmp_path)
        assert "0 Errors, 0 Warnings" in said or "Compilation successful. 0 Errors" in said, said
        again = (tmp_path / f"again-{name}.aml").read_bytes()
        if name != "facs":  # iasl signs with its own name, and so the sum differs
            table, again = (bytes(9) + t[10:28] + bytes(8) + t[36:] for t in (table, again))
        assert again == table


def test_iasl_sees_a_device_for_each_slot_with_its_registers_and_its_line(tmp_path: Path) -> None:
    written(tmp_path)
    run("iasl", "-d", "dsdt.aml", at=tmp_path)
    source = (tmp_path / "dsdt.dsl").read_text()
    found = re.findall(
        r'Device \(VR(\d\d)\).*?"LNRO0005".*?_UID, (\w+|0x\w+).*?Memory32Fixed \(ReadWrite,\s+(0x\w+),.*?(0x\w+),'
        r".*?Interrupt \(ResourceConsumer, Edge, ActiveHigh, Exclusive.*?(0x\w+),",
        source,
        re.DOTALL,
    )
    uids = {"Zero": 0, "One": 1}
    assert [
        (int(n), uids.get(u) if u in uids else int(u, 16), *(int(x, 16) for x in rest)) for n, u, *rest in found
    ] == [(i, i, slot.address, slot.length, slot.irq) for i, slot in enumerate(SLOTS)]


def test_the_interpreter_of_linux_finds_the_devices_and_how_to_switch_off(tmp_path: Path) -> None:
    "acpiexec is ACPICA as a program: it loads the namespace and evaluates what Linux's drivers evaluate."
    written(tmp_path)
    said = run(
        "acpiexec", "-b", r"evaluate \_SB.VR08._CRS; evaluate \_SB.VR08._HID; evaluate \_S5", "dsdt.aml", at=tmp_path
    )
    assert "LNRO0005" in said
    assert SLOTS[8].address.to_bytes(4, "little").hex(" ").upper() in said
    assert not re.search(r"ACPI (Error|Warning)|AE_", said.replace("AE_OK", "")), said
    assert re.search(r"_S5.*Package\] Contains 4 Elements:\s+\[Integer\] = 0+5\s", said, re.DOTALL), said


def test_the_fixed_registers_are_where_the_ports_are(tmp_path: Path) -> None:
    written(tmp_path)
    run("iasl", "-d", "facp.aml", at=tmp_path)
    source = (tmp_path / "facp.dsl").read_text()
    for line in (
        "PM1A Event Block Address : 00000600",
        "PM1A Control Block Address : 00000604",
        "PM Timer Block Address : 00000608",
        "SCI Interrupt : 0009",
        "SMI Command Port : 00000000",
        "Value to cause reset : 06",
        "8042 Present on ports 60/64 (V2) : 0",
        "Reset Register Supported (V2) : 1",
        "Hardware Reduced (V5) : 0",
        "RTC Century Index : 32",
    ):
        assert line in source, f"{line} is not in\n{source}"


def test_every_checksum_is_zero_and_every_pointer_arrives() -> None:
    tables = acpi_tables(SLOTS)
    root = tables[ACPI_TABLES]
    assert sum(root[:20]) % 256 == sum(root) % 256 == 0
    xsdt = tables[int.from_bytes(root[24:32], "little")]
    fadt = tables[int.from_bytes(xsdt[36:44], "little")]
    facs, devices = (tables[int.from_bytes(fadt[at : at + 8], "little")] for at in (132, 140))
    assert [table[:4] for table in (xsdt, fadt, facs, devices)] == [b"XSDT", b"FACP", b"FACS", b"DSDT"]
    assert all(sum(table) % 256 == 0 for table in (xsdt, fadt, devices))
    ends = [(at, at + len(table)) for at, table in sorted(tables.items())]
    assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
    assert all(at % 16 == 0 for at, _ in ends)


@given(st.integers(0, 70_000))
def test_a_length_counts_itself_and_what_follows(length: int) -> None:
    whole = sized(bytes(length))
    more = whole[0] >> 6
    low = whole[0] & (0xF if more else 0x3F)
    assert low | int.from_bytes(whole[1 : 1 + more], "little") << 4 == len(whole)
    assert len(whole) == length + 1 + more


def test_tables_land_in_the_guests_memory(memory: GuestMemory) -> None:
    assert place_acpi(memory, SLOTS) == ACPI_TABLES
    for address, table in acpi_tables(SLOTS).items():
        assert memory.read(address, len(table)) == table


def test_a_guest_with_too_little_memory_is_refused() -> None:
    memory = GuestMemory(512 << 10)
    with pytest.raises(BadAddress):
        place_acpi(memory, SLOTS)
    memory.close()


@pytest.mark.parametrize("irq", [-1, 16])
def test_a_line_which_no_pc_has_is_refused_in_a_sentence(irq: int) -> None:
    with pytest.raises(LguestError, match=f"interrupt {irq}; a PC's controller has lines 0 to 15"):
        dsdt([MmioSlot(0xD000_0000, 0x1000, irq)])


def test_more_devices_than_fit_are_refused_in_a_sentence() -> None:
    with pytest.raises(LguestError, match=r"2000 devices need \d+ bytes of ACPI; \d+ are free"):
        acpi_tables([SLOTS[0]] * 2000)
