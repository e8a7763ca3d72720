"""What is lost when: a Launcher killed in the middle, a disk that is full, cut short, read-only, a snapshot."""

import errno
import fcntl
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session import Session
from support import COMMAND, close, first_bytes
from test_block import CONTENT, SECTORS, SIZE, Lab, failing

pytest.importorskip("unicorn", reason="the software Host needs Unicorn")

from lguest_nb.block import F_RO, S_IOERR, S_OK, SECTOR, T_BARRIER, T_OUT, Block, parse_block
from lguest_nb.driver import Driver
from lguest_nb.guest import command_line, path
from lguest_nb.memory import GuestMemory, LguestError
from lguest_nb.snapshot import Overlay
from lguest_nb.vring import Virtqueue, ring_at

pytestmark = pytest.mark.usefixtures("nothing_left")
KILLS, BATCHES = 200, 8  # a batch is a disk, and the Launchers which are killed on it one after another
LINES = 48  # typed to each of them
WITHIN = 24  # of these, at most so many are waited for
UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
IN_USE = "is in use by another Launcher, or by this one already"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    "Sixteen sectors with a beginning of their own."
    file = tmp_path / "disk"
    file.write_bytes(b"".join(b"sector %d" % n + bytes(SECTOR - len(b"sector %d" % n)) for n in range(SECTORS)))
    return file


def sector(file: Path, number: int) -> bytes:
    return file.read_bytes()[number * SECTOR : (number + 1) * SECTOR].rstrip(b"\0")


# A Launcher which is killed


def text(number: int) -> bytes:
    "What the write of this number writes."
    return b"%07d." % number * 8


def one_life(disk: Path, numbers: range, enough: int) -> int:
    "Have a Guest write `numbers`, kill its Launcher when `enough` of them are acknowledged: how many were in the end."
    command = [*COMMAND, f"--block={disk}", "16", str(path())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as launcher:
        assert launcher.stdin and launcher.stdout
        said, done = b"", 0
        try:
            launcher.stdin.write(b"".join(b"disk write %d %s\n" % (n % SECTORS, text(n)) for n in numbers))
            while done < enough:
                more = launcher.stdout.read(65536)
                assert more, f"it ended by itself: {said!r}"
                said += more
                done = said.count(b".\ntiny> ")
        finally:
            launcher.kill()
        while more := launcher.stdout.read(65536):  # what it had said before it died counts as well
            said += more
    told = [n for n in numbers if b"\n%s\n" % text(n) in said]
    assert told == list(numbers[: len(told)]), "the acknowledged writes are the first ones"
    return len(told)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_acknowledged_writes_survive_sigkill(batch: int, disk: Path) -> None:
    "Again and again, on one disk: no lock outlives its Launcher either."
    dice, start = random.Random(batch), SECTORS
    newest = {}  # sector → number of the last write there which was acknowledged
    for _ in range(KILLS // BATCHES):
        numbers = range(start, start + LINES)
        told = one_life(disk, numbers, dice.randint(1, WITHIN))
        newest |= {n % SECTORS: n for n in numbers[:told]}
        content, start = disk.read_bytes(), start + LINES
        assert len(content) == SIZE
        for place, number in newest.items():
            found = content[place * SECTOR : (place + 1) * SECTOR]
            unheard = [n for n in numbers[told:] if n % SECTORS == place]  # these may be there, or not
            assert found in {text(n).ljust(SECTOR, b"\0") for n in (number, *unheard)}
            newest[place] = int(found[:7])


def test_the_lock_of_a_launcher_killed_at_a_terminal_ends_with_it(disk: Path) -> None:
    "Its terminal's guard lives a moment longer, and has let go of it."
    for _ in range(5):
        with guest(str(disk)) as session:
            session.process.kill()
            session.process.wait()
            Block(disk).close()


# Files which do not play along, under a real Guest


@contextmanager
def guest(option: str) -> Iterator[Session]:
    "A Guest with a disk, at its prompt."
    session = Session([*COMMAND, f"--block={option}", "16", str(path())])
    try:
        session.expect("tiny> ")
        yield session
    finally:
        session.close()


def reboot(session: Session) -> None:
    "Until the next prompt of the same process."
    at = len(session.seen)
    session.type("reboot\r")
    echo = session.expect("\n", at)
    session.expect("tiny> ", at + len(echo))


def test_a_guest_cannot_write_past_the_end(disk: Path) -> None:
    before = disk.read_bytes()
    with guest(str(disk)) as session:
        for beyond in (SECTORS, SECTORS + 1, 0xFFFFFFFF):
            assert f"I/O error at sector {beyond}" in session.ask(f"disk write {beyond} landed")
        assert disk.read_bytes() == before
        assert session.ask(f"disk write {SECTORS - 1} fits").endswith("\nfits")
    assert (disk.stat().st_size, sector(disk, SECTORS - 1)) == (SIZE, b"fits")


def test_a_file_cut_short_costs_the_reads_of_what_is_missing(disk: Path) -> None:
    with guest(str(disk)) as session:
        os.truncate(disk, 7 * SECTOR)
        assert "I/O error at sector 7" in session.ask("disk read 7")
        assert session.ask("disk read 6").endswith("\nsector 6")
        assert session.ask("disk write 9 grown").endswith("\ngrown")
    assert sector(disk, 9) == b"grown"


MOUNT = "mount -t tmpfs -o size=16k none"  # four pages
FULL = {"limit": "true", "tmpfs": f"{MOUNT} $ROOM"}
if subprocess.run([*UNSHARE, *MOUNT.split(), "/tmp"], stderr=subprocess.DEVNULL).returncode:
    del FULL["tmpfs"]  # not even in a namespace of our own


@pytest.mark.parametrize("full", FULL)
@pytest.mark.parametrize("how", ["", ",snapshot"])
def test_a_full_disk_costs_the_writes_which_do_not_fit(tmp_path: Path, full: str, how: str) -> None:
    "Full is the file system of the disk, or of what a snapshot's Guest writes; or no file may become that long."
    room, last = tmp_path / "room", (128 << 20) // SECTOR - 1
    room.mkdir()
    disk = (tmp_path if how else room) / "disk"
    scene = f'{FULL[full]}; truncate -s 128M {disk}; {"ulimit -f 65536;" if full == "limit" else ""} exec "$@"'
    places = [*range(0, 80, 8), last]
    writes = [f"disk write {n} filled" for n in places]
    run = command_line(*writes, "disk read 0", f"disk read {last}", "poweroff")
    done = subprocess.run(
        [*(UNSHARE if full == "tmpfs" else []), "sh", "-c", scene, "sh"]
        + [*COMMAND, f"--block={disk}{how}", "16", str(path()), run],
        env=os.environ | {"ROOM": str(room), "TMPDIR": str(room)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *wrote, first, end, _ = [part.partition("\n")[2] for part in done.stdout.split("tiny> ")[1:]]
    assert wrote[0].endswith("\nfilled\n") and f"I/O error at sector {last}" in wrote[-1]
    assert first.endswith("\nfilled\n") and "00 00 00" in end and "error" not in end
    assert "failed at sector" in done.stderr
    if how:
        assert set(disk.read_bytes()[: 128 * SECTOR]) == {0}


# One writer


@pytest.mark.parametrize("first", ["", ",ro", ",snapshot"])
@pytest.mark.parametrize("second", ["", ",ro", ",snapshot"])
def test_two_disks_on_one_file_agree_or_the_second_is_refused(disk: Path, first: str, second: str) -> None:
    held = parse_block(f"{disk}{first}")
    agree = ",ro" in (first, second) or first == second == ",snapshot"
    if agree:
        parse_block(f"{disk}{second}").close()
    else:
        with pytest.raises(LguestError, match=f"The disk {disk} {IN_USE}; {disk},ro would let"):
            parse_block(f"{disk}{second}")
    held.close()
    parse_block(f"{disk}{second}").close()


def test_a_look_at_the_file_from_the_same_process_does_not_unlock_it(disk: Path) -> None:
    held = Block(disk)
    disk.read_bytes()
    with pytest.raises(LguestError, match=IN_USE):
        Block(disk)
    held.close()


def test_a_file_which_cannot_be_locked_is_refused_unless_read_only(disk: Path, monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    for how in ("", ",snapshot"):
        with pytest.raises(LguestError, match=f"cannot be locked: No locks available; {disk},ro needs no lock"):
            parse_block(f"{disk}{how}")
    parse_block(f"{disk},ro").close()


def start(option: str) -> subprocess.CompletedProcess[str]:
    "A Launcher whose Guest reads sector 3 and powers off."
    run = command_line("disk read 3", "poweroff")
    command = [*COMMAND, f"--block={option}", "16", str(path()), run]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def refused(option: object) -> bool:
    "Is it, by one sentence? Otherwise it has read the sector."
    done = start(str(option))
    assert done.returncode == (1 if IN_USE in done.stderr else 0)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1) if done.returncode else "\nsector 3\n" in done.stdout
    return done.returncode == 1


def test_a_second_launcher_is_refused_unless_it_only_reads(disk: Path) -> None:
    with guest(str(disk)) as session:
        assert [refused(f"{disk}{how}") for how in ("", ",snapshot", ",ro")] == [True, True, False]
        assert session.ask("disk write 2 undisturbed").endswith("\nundisturbed")
    assert not refused(disk)


def test_a_snapshot_keeps_writers_away_and_a_reader_does_not(disk: Path) -> None:
    with guest(f"{disk},snapshot"):
        assert [refused(f"{disk}{how}") for how in ("", ",snapshot", ",ro")] == [True, False, False]
    with guest(f"{disk},ro"):
        assert not refused(disk)


def test_a_reboot_takes_the_lock_again_and_leaves_none_behind(disk: Path) -> None:
    with guest(str(disk)) as session:
        for _ in range(2):
            reboot(session)
            held = [os.readlink(link) for link in Path(f"/proc/{session.process.pid}/fd").iterdir()]
            assert held.count(str(disk)) == 1
            assert refused(disk)
        session.type("poweroff\r")
        assert session.wait_for_end() == 0
    assert not refused(disk)


# The wires of a disk on a bench


@contextmanager
def bench(file: Path, **how: bool) -> Iterator[Lab]:
    "The laboratory of test_block, for a disk of any kind."
    memory, disk = GuestMemory(1 << 20), Block(file, **how)
    vq = Virtqueue(memory, 256, "block:0")
    vq.place(ring_at(memory.take_pages(3), 256))
    disk.queues.append(vq)
    try:
        yield Lab(disk, vq, Driver(vq, 0x10000, 0x80000), file, [])
    finally:
        disk.close()
        vq.wakeup.close()
        close(memory)


@pytest.mark.parametrize("how", [{}, {"snapshot": True}])
def test_an_interrupted_call_fails_that_request_alone(disk: Path, monkeypatch, how: dict[str, bool]) -> None:
    with bench(disk, **how) as lab:
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwritev", failing(errno.EINTR))
            broken.setattr(os, "preadv", failing(errno.EINTR))
            assert lab.write(2, b"w" * SECTOR) == (S_IOERR, 1)
            assert lab.read(2, SECTOR)[:2] == (S_IOERR, 1)
        assert lab.read(2, SECTOR)[2].rstrip(b"\0") == b"sector 2"
        assert lab.write(2, b"w" * SECTOR) == (S_OK, 1)


# Read-only


def test_a_write_to_a_read_only_disk_is_an_io_error_and_lands_nowhere(disk: Path, caplog) -> None:
    before = disk.read_bytes()
    with bench(disk, read_only=True) as lab:
        assert fcntl.fcntl(lab.disk.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        for kind in (T_OUT, T_OUT | T_BARRIER):
            assert lab.write(3, b"w" * SECTOR, kind) == (S_IOERR, 1)
        assert lab.write(3, b"") == (S_IOERR, 1)
        assert lab.read(3, SECTOR)[2].rstrip(b"\0") == b"sector 3"
    assert disk.read_bytes() == before
    assert caplog.messages == [f"The Guest writes to the disk {disk}, which is read-only"]


def test_only_a_read_only_disk_says_so_to_the_guest(disk: Path) -> None:
    offered = {}
    for how in ("", ",ro", ",snapshot"):
        device = parse_block(f"{disk}{how}")
        offered[how] = device.features
        device.close()
    assert offered == {"": 0x05, ",ro": 0x25, ",snapshot": 0x05} and F_RO == 0x20


@pytest.mark.parametrize("how", [{"read_only": True}, {"snapshot": True}])
def test_a_barrier_has_nothing_to_wait_for_where_the_file_is_not_written(disk: Path, monkeypatch, how) -> None:
    with bench(disk, **how) as lab:
        monkeypatch.setattr(os, "fdatasync", failing(errno.EINVAL))  # squashfs has none
        assert lab.read(3, SECTOR, T_BARRIER)[0] == S_OK


@pytest.mark.parametrize("how", [{"read_only": True}, {"snapshot": True}])
def test_what_is_no_disk_is_refused_for_reading_too(tmp_path: Path, how: dict[str, bool]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "odd").write_bytes(bytes(513))
    refusals = {".": "Is a directory", "pipe": "has no end to seek to", "odd": "has 513 bytes", "no": "we may read."}
    for name, said in refusals.items():
        with pytest.raises(LguestError, match=said):
            Block(tmp_path / name, **how)


def test_a_guest_with_a_read_only_disk_reads_on(disk: Path) -> None:
    before = disk.read_bytes()
    with guest(f"{disk},ro") as session:
        assert "features offered 25" in session.ask("dev")
        assert "I/O error at sector 3" in session.ask("disk write 3 no")
        assert session.ask("disk read 3").endswith("\nsector 3")
    assert disk.read_bytes() == before


# A name and its ending


@pytest.mark.parametrize("name", ["a,b", "a,b,ro.img", "a,", ",a", "ro", "snapshot", "a,RO", "a,rw", "a,ro,", "a b,c"])
def test_a_comma_may_be_part_of_the_name(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(bytes(SECTOR))
    for ending, mode in (("", "rw"), (",ro", "ro"), (",snapshot", "snapshot")):
        device = parse_block(name + ending)
        assert (device.path, device.mode) == (name, mode)
        device.close()


def test_an_unknown_ending_is_a_name_and_so_a_missing_file(disk: Path) -> None:
    with pytest.raises(LguestError, match=f"Failed to open {disk},readonly: No such file"):
        parse_block(f"{disk},readonly")


def test_a_disk_is_not_read_only_and_a_snapshot(disk: Path) -> None:
    with pytest.raises(LguestError, match="read-only or a snapshot, not both"):
        Block(disk, read_only=True, snapshot=True)


# Snapshots


def test_a_guest_reads_what_it_wrote_to_a_snapshot_and_nobody_else_does(disk: Path, tmp_path, monkeypatch) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setenv("TMPDIR", str(room))
    before = disk.read_bytes()
    with guest(f"{disk},snapshot") as session, guest(f"{disk},snapshot") as other:
        assert session.ask("disk write 3 mine").endswith("\nmine")
        session.ask("reset 0")
        session.ask("start 0")
        assert session.ask("disk read 3").endswith("\nmine")
        assert session.ask("disk read 4").endswith("\nsector 4")
        assert other.ask("disk read 3").endswith("\nsector 3")
        assert list(room.iterdir()) == []  # it has no name
        reboot(session)
        assert session.ask("disk read 3").endswith("\nsector 3")
    assert disk.read_bytes() == before


piece = st.tuples(st.booleans(), st.integers(0, SECTORS - 1), st.integers(1, SECTORS), st.integers(1, 255))


@settings(max_examples=60, deadline=None)
@given(st.lists(piece, max_size=30), st.sampled_from([1, 7, 512, 700, SIZE]))
def test_a_snapshot_is_a_disk_like_any_other(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int, int, int]], longest: int
) -> None:
    "Against an array of bytes; and no call moves more than `longest` bytes."
    file = tmp_path_factory.mktemp("snapshot") / "disk"
    file.write_bytes(CONTENT)
    model, preadv, pwritev = bytearray(CONTENT), os.preadv, os.pwritev
    with bench(file, snapshot=True) as lab, pytest.MonkeyPatch.context() as short:
        short.setattr(os, "preadv", lambda fd, views, at: preadv(fd, first_bytes(views, longest), at))
        short.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, first_bytes(views, longest), at))
        for write, first, count, byte in pieces:
            count = min(count, SECTORS - first)
            there = slice(first * SECTOR, (first + count) * SECTOR)
            if write:
                model[there] = bytes([byte]) * count * SECTOR
                assert lab.write(first, bytes(model[there])) == (S_OK, 1)
            assert lab.read(first, count * SECTOR) == (S_OK, count * SECTOR + 1, model[there])
        assert lab.read(0, SIZE) == (S_OK, SIZE + 1, model)
    assert file.read_bytes() == CONTENT


def test_a_torn_write_to_a_snapshot_leaves_the_old_sector_whole(disk: Path, monkeypatch) -> None:
    pwritev, room = os.pwritev, [700]

    def filling_up(fd: int, views: list[memoryview], at: int) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, first_bytes(views, room.pop()), at)

    with bench(disk, snapshot=True) as lab:
        monkeypatch.setattr(os, "pwritev", filling_up)
        assert lab.write(3, b"w" * 3 * SECTOR) == (S_IOERR, 1)
        got = lab.read(3, 3 * SECTOR)[2]
    assert [got[at : at + SECTOR].rstrip(b"\0") for at in range(0, 3 * SECTOR, SECTOR)] == [
        b"w" * SECTOR,
        b"sector 4",
        b"sector 5",
    ]


def test_a_snapshot_of_a_file_cut_short_still_has_what_was_written(disk: Path) -> None:
    with bench(disk, snapshot=True) as lab:
        lab.write(9, b"w" * SECTOR)
        os.truncate(disk, 5 * SECTOR)
        assert lab.read(9, SECTOR) == (S_OK, SECTOR + 1, b"w" * SECTOR)
        assert lab.read(8, 2 * SECTOR)[:2] == (S_IOERR, 1)


def test_a_snapshot_without_room_is_refused_by_a_sentence(disk: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such/place")
    with pytest.raises(LguestError, match="no place for a snapshot in /no/such/place: No such .*TMPDIR can"):
        Block(disk, snapshot=True)
    Block(disk).close()  # its lock has gone with it


def test_the_map_of_a_huge_disk_takes_only_the_memory_of_what_was_written() -> None:
    def resident() -> int:  # pages
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = resident()
    overlay = Overlay(1 << 40, SECTOR)
    for gigabyte in (0, 500, 1000):
        overlay.wrote(gigabyte << 30, 1 << 20)
        assert overlay.run(gigabyte << 30, 1 << 34) == (True, 1 << 20)
        assert overlay.run((gigabyte << 30) + (1 << 20), 1 << 30) == (False, 1 << 30)
    grown = resident() - before
    overlay.close()
    assert grown * os.sysconf("SC_PAGE_SIZE") < 16 << 20  # three huge pages at most, and some slack
