"""docs/lguest_c.toml names every function of lguest.c, and only objects which exist."""

import tomllib
from pathlib import Path

import pytest
from docs_generate import GenerateError, coming_from_lguest, link, resolve, summary

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "lguest_c.toml"
# Of Linux 2.6.31, after "lguest: have example Launcher service all devices in separate threads", in the file's order.
LGUEST_C = """
    _convert iov_empty iov_consume get_feature_bits from_guest_phys to_guest_phys open_or_die map_zeroed_pages get_pages
    map_at map_elf load_bzimage load_kernel page_align load_initrd concat tell_kernel _check_pointer next_desc
    trigger_irq wait_for_vq_desc add_used add_used_and_trigger console_input console_output net_output will_block
    net_input do_thread kill_launcher reset_device create_thread start_device cleanup_devices update_device_status
    handle_output device_config new_dev_desc add_virtqueue add_feature set_config new_device setup_console str2ip
    str2mac add_to_bridge configure_device get_tun_device setup_tun_net blk_request setup_block_file rng_input setup_rng
    restart_guest run_guest usage main
""".split()
ROWS = {
    function: row
    for section in tomllib.loads(TABLE.read_text(encoding="utf-8")).values()
    for function, row in section.items()
}


def test_every_function_of_lguest_c_is_there_and_no_other() -> None:
    assert sorted(ROWS) == sorted(LGUEST_C)


@pytest.mark.parametrize("function", ROWS)
def test_what_does_its_work_exists_and_says_so(function: str) -> None:
    row = ROWS[function]
    assert row.keys() <= {"here", "difference"} and row["here"]
    for path in row["here"]:
        resolve(path)
        assert len(summary(path)) > 10
    assert row.get("difference", "It is.").endswith(".")


def test_an_object_which_has_gone_is_a_sentence(tmp_path: Path) -> None:
    table = tmp_path / "table.toml"
    table.write_text('["Rings"]\nnext_desc = { here = ["lguest_nb.vring.next_desc"] }\n')
    with pytest.raises(GenerateError, match=r"There is no lguest_nb\.vring\.next_desc in the package any more\."):
        coming_from_lguest(table)


def test_a_link_goes_to_the_object_under_its_short_name() -> None:
    assert link("lguest_nb.vring.Virtqueue.wait") == "{py:obj}`Virtqueue.wait <lguest_nb.vring.Virtqueue.wait>`"
