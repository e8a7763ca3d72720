"""A small Guest of 64 bits in a process of its own, for a program which may cost that process its life."""

import multiprocessing
from multiprocessing.connection import Connection

import pytest
from long_guest import RAM, Written, assemble, small_pc
from support import PATIENCE

from lguest_nb.host import Ending
from lguest_nb.hosts.pc.host import SoftPcHost
from lguest_nb.pc.platform import Platform

CONTEXT = multiprocessing.get_context("forkserver")  # whose processes are copies of one which has our modules already
CONTEXT.set_forkserver_preload(
    ["pytest", "lguest_nb.hosts.pc.host", "lguest_nb.hosts.pc.small", "lguest_nb.pc.platform"]
)


def live(program: bytes, board: bool, answer: Connection) -> None:
    "In that process: run it, and tell how it ended."
    memory, boot = small_pc(program)
    host = SoftPcHost()
    host.start(memory, boot, Platform(RAM, host.interrupt, host.end).bus if board else Written(value=(1 << 64) - 1))
    ending = host.run()
    host.close()
    memory.close()
    answer.send(ending)


def attack(
    program: str,
    board: bool = False,  # with all the chips of a PC; or else everything reads as ones
) -> Ending:
    "What became of the Guest. The process in which it lived must end as it should."
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=live, args=(assemble(program), board, theirs))
    process.start()
    theirs.close()
    process.join(3 * PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail("it hangs")
    assert process.exitcode == 0, f"it ended with {process.exitcode}"
    ending = ours.recv()
    ours.close()
    process.close()
    assert isinstance(ending, Ending)
    return ending
