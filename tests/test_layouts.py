"""What our devices and Linux say to each other, compared with Linux's own headers by a C compiler."""

import struct

import pytest
from support import ask_c

from lguest_nb import block, block_today, console, net, net_today


def layout(header: str, structure: str, *fields: str) -> list[tuple[int, int]]:
    "Offset and size of each of the fields, and of the whole at offset 0."
    places = [f"offsetof(struct {structure}, {field})" for field in fields]
    sizes = [f"sizeof(((struct {structure} *)0)->{field})" for field in fields]
    told = ask_c((header,), (*places, *sizes, f"sizeof(struct {structure})"))
    *rest, size = told.values()
    return [*zip(rest[: len(fields)], rest[len(fields) :], strict=True), (0, size)]


def packed(structure: struct.Struct) -> list[tuple[int, int]]:
    "The same of a `struct.Struct` whose fields are written without repetitions."
    codes = structure.format.lstrip("<=")
    found, at = [], 0
    for code in codes:
        found.append((at, struct.calcsize("<" + code)))
        at += found[-1][1]
    return [*found, (0, at)]


def test_a_request_of_a_disk_begins_with_type_ioprio_and_sector() -> None:
    assert packed(block.HEADER) == layout("linux/virtio_blk.h", "virtio_blk_outhdr", "type", "ioprio", "sector")
    assert block.HEADER.size == 16


def test_the_config_of_a_disk_is_all_that_stands_before_its_geometry() -> None:
    *fields, _ = layout("linux/virtio_blk.h", "virtio_blk_config", "capacity", "size_max", "seg_max", "geometry")
    assert packed(block.CONFIG) == [*fields[:3], (0, fields[3][0])]
    assert block.CONFIG.size == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VIRTIO_BLK_T_IN", 0),
        ("VIRTIO_BLK_T_OUT", block.T_OUT),
        ("VIRTIO_BLK_T_SCSI_CMD", block.T_SCSI_CMD),
        ("VIRTIO_BLK_T_BARRIER", block.T_BARRIER),
        ("VIRTIO_BLK_S_OK", block.S_OK),
        ("VIRTIO_BLK_S_IOERR", block.S_IOERR),
        ("VIRTIO_BLK_S_UNSUPP", block.S_UNSUPP),
        ("1 << VIRTIO_BLK_F_BARRIER", block.F_BARRIER),
        ("1 << VIRTIO_BLK_F_SEG_MAX", block.F_SEG_MAX),
    ],
)
def test_the_numbers_of_a_disk_are_linuxs(name: str, value: int) -> None:
    assert ask_c(("linux/virtio_blk.h",), (name,)) == {name: value}


def test_the_config_of_a_disk_of_today_is_linuxs_up_to_may_unmap() -> None:
    names = (
        "capacity size_max seg_max blk_size wce num_queues max_discard_sectors max_discard_seg "
        "discard_sector_alignment max_write_zeroes_sectors max_write_zeroes_seg write_zeroes_may_unmap"
    ).split()
    *fields, _ = layout("linux/virtio_blk.h", "virtio_blk_config", *names, "max_secure_erase_sectors")
    values = [int.from_bytes(bytes(range(at + 1, at + 1 + size)), "little") for at, size in fields[:-1]]
    packed_config = block_today.CONFIG.pack(*values)
    for at, size in fields[:-1]:
        assert packed_config[at : at + size] == bytes(range(at + 1, at + 1 + size))
    assert block_today.CONFIG.size == fields[-1][0] == 60
    assert block_today.WRITEBACK == fields[names.index("wce")][0]


def test_a_range_to_forget_is_sector_count_and_flags() -> None:
    fields = ("sector", "num_sectors", "flags")
    assert packed(block_today.RANGE) == layout("linux/virtio_blk.h", "virtio_blk_discard_write_zeroes", *fields)


@pytest.mark.parametrize("name", "T_FLUSH T_GET_ID T_DISCARD T_WRITE_ZEROES ID_BYTES".split())
def test_the_numbers_of_a_disk_of_today_are_linuxs(name: str) -> None:
    (told,) = ask_c(("linux/virtio_blk.h",), (f"VIRTIO_BLK_{name}",)).values()
    assert getattr(block_today, name) == told


@pytest.mark.parametrize("name", "BLK_SIZE FLUSH CONFIG_WCE DISCARD WRITE_ZEROES".split())
def test_the_feature_bits_of_a_disk_of_today_are_linuxs(name: str) -> None:
    (told,) = ask_c(("linux/virtio_blk.h",), (f"1 << VIRTIO_BLK_F_{name}",)).values()
    assert getattr(block_today, f"F_{name}") == told


def test_the_flags_of_holes_are_linuxs() -> None:
    names = "KEEP_SIZE PUNCH_HOLE ZERO_RANGE".split()
    told = ask_c(("linux/falloc.h",), tuple(f"FALLOC_FL_{name}" for name in names))
    assert list(told.values()) == [getattr(block_today, name) for name in names]
    (unmap,) = ask_c(("linux/virtio_blk.h",), ("VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP",)).values()
    assert block_today.UNMAP == unmap


def test_the_config_of_a_console_is_its_size_and_two_numbers_for_others() -> None:
    fields = ("cols", "rows", "max_nr_ports", "emerg_wr")
    assert packed(console.CONFIG) == layout("linux/virtio_console.h", "virtio_console_config", *fields)
    (bit,) = ask_c(("linux/virtio_console.h",), ("1 << VIRTIO_CONSOLE_F_SIZE",)).values()
    assert console.F_SIZE == bit


def test_the_config_of_a_network_card_is_mac_and_status() -> None:
    *fields, _ = layout("linux/virtio_net.h", "virtio_net_config", "mac", "status", "max_virtqueue_pairs")
    assert fields[:2] == [(0, 6), (6, 2)]
    assert net.CONFIG.size == fields[2][0] == 8
    assert net.CONFIG.pack(b"abcdef", 0x201) == b"abcdef\1\2"


def test_the_header_of_a_packet_is_the_old_one_of_ten_bytes() -> None:
    (size,) = ask_c(("linux/virtio_net.h",), ("sizeof(struct virtio_net_hdr)",)).values()
    assert net.VNET_HEADER == size == 10


def test_the_header_of_today_has_twelve_bytes_and_ends_with_the_number_of_buffers() -> None:
    fields = "flags gso_type hdr_len gso_size csum_start csum_offset num_buffers".split()
    *_, last, whole = layout("linux/virtio_net.h", "virtio_net_hdr_v1", *fields)
    assert whole == (0, net_today.MODERN_HEADER) == (0, 12)
    assert last == (net.VNET_HEADER, net_today.NUM_BUFFERS.size) == (10, 2)


def test_the_numbers_of_a_network_card_of_today_are_linuxs() -> None:
    names = ("1 << VIRTIO_NET_F_MRG_RXBUF", "1 << VIRTIO_NET_F_STATUS", "VIRTIO_NET_S_LINK_UP")
    told = ask_c(("linux/virtio_net.h",), names)
    assert list(told.values()) == [net_today.F_MRG_RXBUF, net_today.F_STATUS, net_today.LINK_UP]
    (size,) = ask_c(("sys/ioctl.h", "linux/if_tun.h"), ("TUNSETVNETHDRSZ",)).values()
    assert net_today.TUNSETVNETHDRSZ == size


def test_the_feature_bits_of_a_network_card_are_linuxs() -> None:
    names = "CSUM GUEST_CSUM MAC GUEST_TSO4 GUEST_TSO6 GUEST_ECN HOST_TSO4 HOST_TSO6 HOST_ECN".split()
    told = ask_c(("linux/virtio_net.h",), tuple(f"1 << VIRTIO_NET_F_{name}" for name in names))
    assert list(told.values()) == [getattr(net, f"F_{name}") for name in names]


def test_the_requests_to_a_tap_are_linuxs() -> None:
    names = (
        "TUNSETIFF TUNSETOFFLOAD TUNSETNOCSUM IFF_TAP IFF_NO_PI IFF_VNET_HDR "
        "TUN_F_CSUM TUN_F_TSO4 TUN_F_TSO6 TUN_F_TSO_ECN"
    ).split()
    told = ask_c(("sys/ioctl.h", "linux/if_tun.h"), tuple(names))
    assert list(told.values()) == [getattr(net, name) for name in names]


def test_the_requests_to_an_interface_are_linuxs() -> None:
    names = "SIOCBRADDIF SIOCSIFADDR SIOCSIFFLAGS IFF_UP IFNAMSIZ".split()
    told = ask_c(("sys/socket.h", "linux/sockios.h", "linux/if.h"), tuple(names))
    assert list(told.values()) == [getattr(net, name) for name in names]
