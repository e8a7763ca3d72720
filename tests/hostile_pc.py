"""A PC with an rng, a console, a disk and a network card, and tests/long's Guest in it: COM1 is our input and output.

For test_bad_mmio_guest.py, which wants it in a process of its own: what kills us is seen by whoever started us.
"""

import logging
import os
import sys

from lguest_nb.block import Block
from lguest_nb.cli import make_pc_host
from lguest_nb.console import Console
from lguest_nb.device import Device
from lguest_nb.net import Net
from lguest_nb.pc.launcher import PcLauncher
from lguest_nb.rng import Rng


class Counter(Rng):
    "An rng with a predictable source: 01 02 03 ..., from the beginning after each reset."

    def __init__(self) -> None:
        super().__init__("/dev/zero")
        self.given = 0

    def started(self) -> None:
        self.given = 0

    def _read(self, view: memoryview) -> int:
        view[:] = bytes((self.given + i + 1) & 0xFF for i in range(len(view)))
        self.given += len(view)
        return len(view)


def warn_again(device: Device) -> None:
    "What was said once is said again after a reset."

    def changed(event: str) -> None:
        if event == "reset":
            device.said.clear()

    device.changed = changed


def main(guest: str, disk: str, how: str, network: str, keys: str, screen: str, host: str = "soft") -> None:
    "Paths of the Guest and its disk; how the latter is opened; descriptors; who runs the CPU."
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.setswitchinterval(0.0005)
    with PcLauncher(16, make_pc_host(host), os.dup(1), os.dup(0)) as launcher:
        block = Block(disk, read_only=how == "ro")
        for device in (Counter(), Console(int(keys), int(screen)), block, Net(int(network))):
            launcher.add(device)
            warn_again(device)
        launcher.load(guest)
        ending = launcher.run()
    print(f"ending: {ending.how}: {ending.reason}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
