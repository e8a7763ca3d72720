"""What `make boot` and `make debian` share: a Guest on your terminal, otherwise a visit that proves each device."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from network import Network, NoNetwork, frames, make_network
from session import GuestLost, Session


class NotProved(Exception):
    "What we saw instead of the proof."


def prove_net(
    session: Session,
    network: Network,
    ping: str = "ping {host} {count}",  # what to type for that
) -> str:
    "The tap device's counters move with a ping, by as many frames as there were echoes. Raises `NotProved`."
    pings = random.randrange(3, 8)
    before = frames()
    answer = session.ask(ping.format(host=network.host, count=pings))
    moved = {name: (sent - before[name][0], got - before[name][1]) for name, (sent, got) in frames().items()}
    taps = [name for name, (sent, got) in moved.items() if sent >= pings and got >= pings]
    if not taps:
        raise NotProved(f"{pings} pings moved the interfaces' counters by {moved}; the Guest said {answer!r}")
    sent, got = moved[taps[0]]
    return f"{pings} pings moved {taps[0]} by {sent} frames from the Guest and {got} to it"


def visit(
    session: Session,  # which has just begun, and is closed here
    prompt: str,
    proofs: Mapping[str, Callable[[], str]],  # what each device carried, or `NotProved`
    greet: Callable[[], None] = lambda: None,  # first of all, at the prompt
) -> dict[str, bool]:  # device → was it proved
    "Ask the Guest for each proof, print a line for each, and power it off. Raises `GuestLost`."
    proved = {}
    try:
        session.expect(prompt)
        greet()
        for device, proof in proofs.items():
            try:
                said, proved[device] = proof(), True
            except NotProved as instead:
                said, proved[device] = f"NOT PROVED: {instead}", False
            print(f"{device}: {said}.", flush=True)
        session.type("poweroff\r")
        status = session.wait_for_end()
        if status:
            raise GuestLost(f"powered off, and the Launcher ended with status {status}")
        print("The Guest powered off.", flush=True)
    except GuestLost as lost:
        raise GuestLost(f"{lost}. Its last words:\n{session.seen[-2000:]}") from None
    finally:
        session.close()
    return proved


def stay(
    command: Sequence[str],  # the Launcher as you would type it
    hint: str,
) -> int:  # exit status
    "Hand the terminal to the Guest until one of you leaves."
    print(hint, flush=True)
    # The keys are the Guest's now. A handler that does nothing is ours alone: the Launcher starts without it.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status == -signal.SIGINT:
        print("\nYou left by ^C^C^C.")
        return 0
    return status if status >= 0 else 128 - status


def required_devices(
    devices: Sequence[str],  # those there are
) -> list[str]:
    "What REQUIRE names. Ends this process with status 2 if there is no such device."
    required = os.environ.get("REQUIRE", "").replace(",", " ").split()
    if unknown := set(required) - set(devices):
        print(f"REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(devices)}.", file=sys.stderr)
        sys.exit(2)
    return required


def network_if_possible() -> Network | None:
    "Make one and say where it is, or say why there is none."
    try:
        network = make_network()
    except NoNetwork as reason:
        print(f"net: left out, because {reason}.", flush=True)
        return None
    print(f"net: the Host is {network.host} and the Guest {network.guest}, {network.place}.", flush=True)
    return network


def end_by_exception() -> None:
    "A signal that ends us ends in an exception, so that scratch files and the Launcher go too."
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def verdict(
    prove: Callable[[], dict[str, bool]],  # the visit
    required: Sequence[str],  # devices which must have been proved
) -> int:  # exit status
    "Pay the visit: 0 only if all was proved that was possible, and all that was required."
    try:
        proved = prove()
    except GuestLost as lost:
        print(f"The Guest {lost}", file=sys.stderr)
        return 1
    missing = [device for device in required if not proved.get(device)]
    if missing:
        print(f"REQUIRE asks for {', '.join(missing)}, which was not proved.", file=sys.stderr)
    return 0 if all(proved.values()) and not missing else 1
