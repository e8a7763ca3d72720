"""A network for one Guest which leaves the machine's alone: in a namespace if we may, or a free address."""

import ctypes
import errno
import fcntl
import ipaddress
import os
import struct
from dataclasses import dataclass
from pathlib import Path

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA  # <linux/if_tun.h>
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # <linux/sched.h>


class NoNetwork(Exception):
    "Why a Guest gets no network here, in words."


@dataclass(frozen=True)
class Network:
    "Two addresses, and where they are."

    host: str  # of the tap device, on our side
    guest: str
    place: str  # in words


def unshare(
    flags: int,  # CLONE_NEW...
) -> None:
    "Leave the namespaces named. Python has this only from 3.12 on. Raises `OSError`."
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def enter_own_namespace() -> bool:  # False if we are not allowed one
    "Move this process and its children into a network namespace: as root, or as root of a user namespace."
    try:
        unshare(CLONE_NEWNET)
        return True
    except OSError:
        pass
    user, group = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        return True
    except OSError:
        return False


def try_a_tap() -> None:
    "Make a tap device as the Launcher will; it is gone again at once. Raises `NoNetwork`."
    request = struct.pack("16sH22x", b"", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = " (`modprobe tun` may bring it)" if absent else ""
        raise NoNetwork(f"{TUN} cannot be opened: {error.strerror}{hint}") from None
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, request)
    except OSError as error:
        raise NoNetwork(f"{TUN} gives us no tap device: {error.strerror}") from None
    finally:
        os.close(descriptor)


def networks_in_use(
    table: str,  # the text of /proc/net/route
) -> list[ipaddress.IPv4Network]:
    "The IPv4 networks that have a route here, without the default route."
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (int(fields[column], 16).to_bytes(4, "little") for column in (1, 7))
        if any(mask):
            address = ipaddress.IPv4Address(destination)
            found.append(ipaddress.IPv4Network((address, str(ipaddress.IPv4Address(mask))), strict=False))
    return found


def free_network(
    used: list[ipaddress.IPv4Network],  # those with a route
) -> ipaddress.IPv4Network:
    "A 192.168.x.0/24 that nobody uses here. (The mask is what the address has meant since classes of them.)"
    for third in range(19, 255):
        candidate = ipaddress.IPv4Network(f"192.168.{third}.0/24")
        if not any(candidate.overlaps(network) for network in used):
            return candidate
    raise NoNetwork("every 192.168.x.0/24 from 192.168.19.0 on has a route here already")


def make_network() -> Network:
    "What a Guest can have here. Moves this process into a network namespace if it may. Raises `NoNetwork`."
    own = enter_own_namespace()
    try_a_tap()
    addresses = free_network(networks_in_use(Path("/proc/self/net/route").read_text()))
    place = "in a network namespace of its own" if own else "on this machine's own network stack"
    return Network(str(addresses[1]), str(addresses[2]), place)


def frames() -> dict[str, tuple[int, int]]:  # interface → (from the Guest, to the Guest)
    "How many frames each interface of our namespace has carried."
    counts = {}
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        fields = numbers.split()
        counts[name.strip()] = int(fields[1]), int(fields[9])
    return counts
