"""Every row of what lguest's Launcher did in 2009 has tests which hold it: tests/rows_2009.toml says which."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CONSTANTS = """
    page_size device_pages virtqueue_num lguest_vring_align vring_pages page_present bridge_pfx siocbraddif
    thread_stack lhreq_initialize lhreq_getdma lhreq_irq lhreq_break lhreq_eventfd lguest_irqs first_irq sigint_hack
"""
STRUCTURES = """
    lguest_device_desc lguest_vqconfig vring_desc vring_avail vring_used virtio_ids status_bits transport_features
    blk_features blk_config blk_header blk_status net_features net_feature_bytes net_config net_header
    console_and_rng descriptor_sizes
"""
BOOT_PARAMS = """
    e820_entries e820_map version type_of_loader loadflags ramdisk_image ramdisk_size cmd_line_ptr hardware_subarch
    rest_is_zero command_line
"""
DEVICES = """
    console console_input console_output net net_output net_input block blk_request blk_request_order rng
"""
COUNTED = {"2": 12, "3": 11, "4": 10, "5": 16, "7": 9, "8": 10}
EXPECTED = {
    *{f"1.{name}" for name in (CONSTANTS + STRUCTURES + BOOT_PARAMS).split()},
    *{f"6.{name}" for name in DEVICES.split()},
    *{f"{section}.{i}" for section, rows in COUNTED.items() for i in range(1, rows + 1)},
}
ROWS = {
    f"{section}.{name}": row
    for section, rows in tomllib.loads((TESTS / "rows_2009.toml").read_text(encoding="utf-8")).items()
    for name, row in rows.items()
}


@cache
def defined_in(path: Path) -> set[str]:
    "The tests which a file defines, as they are in a node id behind the path: `test_x` or `TestClass::test_x`."
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found |= {f"{node.name}::{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_row_is_in_the_table_and_no_other() -> None:
    assert ROWS.keys() == EXPECTED


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_holds_and_names_tests_which_exist(row: str) -> None:
    assert ROWS[row].keys() == {"holds", "tests"}
    assert ROWS[row]["holds"].strip().endswith(".")
    assert ROWS[row]["tests"], "a row which no test holds"
    for test in ROWS[row]["tests"]:
        path, _, name = test.partition("::")
        assert name in defined_in(TESTS.parent / path), f"there is no {test}"
