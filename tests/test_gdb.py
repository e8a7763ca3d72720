"""The remote protocol of gdb: whatever arrives, in whatever pieces, and whoever sends it."""

import select
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PATIENCE, until

from lguest_nb.debuggable import I386, SIGABRT, SIGINT, SIGTRAP, Register, Stop, Target, TargetError, describe
from lguest_nb.gdb import LARGEST, ProtocolError, Reader, Stub, escape, packet, unescape
from lguest_nb.gdb_server import ADDRESS, GdbServer
from lguest_nb.host import Ending
from lguest_nb.memory import LguestError

pytestmark = pytest.mark.usefixtures("nothing_left")


class FakeTarget:
    "Two registers and a page of memory. It runs until somebody says `stop`."

    registers = (Register("eax", 32), Register("eip", 32), Register("st0", 80))

    def __init__(self) -> None:
        self.values = [b"\1\0\0\0", b"\0\1\0\0", bytes(10)]
        self.memory = bytearray(b"0123456789abcdef" * 256)
        self.now: Stop | Ending | None = Stop(SIGTRAP)
        self.calls: list[object] = []
        self.on_stop = lambda: None

    def stop(self, why: Stop | Ending) -> None:
        self.now = why
        self.on_stop()

    def stopped(self) -> Stop | Ending | None:
        return self.now

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self, step: bool) -> None:
        self.calls.append("step" if step else "continue")
        self.now = None

    def release(self) -> None:
        self.calls.append("release")
        self.now = None

    def read_register(self, number: int) -> bytes:
        return self.values[number]

    def write_register(self, number: int, value: bytes) -> None:
        self.calls.append(("register", number, value))
        self.values[number] = value

    def read(self, address: int, length: int) -> bytes:
        if not self.memory[address : address + length]:
            raise TargetError("nothing there")
        return bytes(self.memory[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        if address + len(data) > len(self.memory):
            raise TargetError("nothing there")
        self.memory[address : address + len(data)] = data

    def set_breakpoint(self, address: int) -> None:
        self.calls.append(("set", address))

    def clear_breakpoint(self, address: int) -> None:
        self.calls.append(("clear", address))

    def command(self, line: str) -> str:
        return f"<{line}>"


@pytest.fixture
def target() -> FakeTarget:
    return FakeTarget()


@pytest.fixture
def stub(target: FakeTarget) -> Stub:
    "In a conversation without acknowledgements, which has begun."
    stub = Stub(target, kill=lambda: target.calls.append("kill"))
    stub.received(packet(b"QStartNoAckMode"))
    stub.output = b""
    target.calls.clear()
    return stub


def ask(stub: Stub, request: bytes) -> str:
    "The answer's payload; an answer of nothing at all is a hyphen."
    stub.received(packet(request))
    answer, stub.output = stub.output, b""
    assert not answer or answer == packet(answer[1:-3])
    return answer[1:-3].decode() if answer else "-"


class TestPackets:
    @given(st.lists(st.binary(max_size=40)), st.data())
    def test_how_the_bytes_are_cut_makes_no_difference(self, payloads: list[bytes], data: st.DataObject) -> None:
        whole = b"".join(b"+" + packet(escape(p)) for p in payloads) + b"\3-"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
        reader, found = Reader(), []
        for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            found += reader.feed(whole[first:last])
        wanted = [each for p in payloads for each in (("+", b""), ("packet", escape(p)))]
        assert found == [*wanted, ("\3", b""), ("-", b"")]

    @given(st.binary())
    def test_binary_data_survives(self, data: bytes) -> None:
        assert unescape(escape(data)) == data
        assert not set(escape(data)) & set(b"#$*")

    def test_a_wrong_sum_is_a_broken_packet(self) -> None:
        assert list(Reader().feed(b"$?#00$?#3F")) == [("broken", b"?"), ("packet", b"?")]

    @pytest.mark.parametrize(
        "rubbish", [b"GET / HTTP/1.1\r\n", b"\0", b"\x16\x03\x01\x02", b"$?#3", b"$?#x", b"+-\3 ", b"$a$", b"#"]
    )
    def test_what_no_gdb_says_ends_the_conversation_at_its_first_byte(self, rubbish: bytes) -> None:
        reader = Reader()
        if rubbish == b"$?#3":  # may still become a packet
            assert list(reader.feed(rubbish)) == []
            rubbish = b"g"
        with pytest.raises(ProtocolError):
            list(reader.feed(rubbish))

    def test_a_packet_which_never_ends_is_not_waited_for(self) -> None:
        reader = Reader()
        assert list(reader.feed(b"$" + b"x" * LARGEST)) == []
        with pytest.raises(ProtocolError, match=f"more than {LARGEST}"):
            list(reader.feed(b"xxxx"))


class TestAcknowledging:
    def test_good_ones_are_acknowledged_until_gdb_has_enough_of_it(self, target: FakeTarget) -> None:
        stub = Stub(target, kill=lambda: None)
        stub.received(packet(b"?"))
        assert stub.output == b"+" + packet(b"T05thread:1;")
        stub.output = b""
        stub.received(b"+" + packet(b"QStartNoAckMode"))
        assert stub.output == b"+" + packet(b"OK")
        stub.output = b""
        stub.received(b"+" + packet(b"?"))
        assert stub.output == packet(b"T05thread:1;")

    def test_broken_ones_are_asked_for_again_and_so_may_be_ours(self, target: FakeTarget) -> None:
        stub = Stub(target, kill=lambda: None)
        stub.received(b"$?#00")
        assert (stub.output, target.calls) == (b"-", [])
        stub.output = b""
        stub.received(packet(b"?") + b"-")
        assert stub.output == b"+" + packet(b"T05thread:1;") * 2

    def test_without_noise_a_broken_one_is_rubbish(self, stub: Stub) -> None:
        with pytest.raises(ProtocolError):
            stub.received(b"$?#00")


class TestAnswers:
    def test_registers_one_by_one_and_all_together(self, stub: Stub, target: FakeTarget) -> None:
        assert ask(stub, b"p0") == "01000000"
        assert ask(stub, b"P0=2a000000") == "OK"
        assert ask(stub, b"g") == "2a000000" + "00010000" + "00" * 10
        target.calls.clear()
        assert ask(stub, b"G" + b"2a000000" + b"34120000" + b"00" * 10) == "OK"
        assert target.calls == [("register", 1, b"\x34\x12\0\0")]  # what has not changed is not written

    def test_memory_in_hexadecimal_and_in_binary(self, stub: Stub, target: FakeTarget) -> None:
        assert ask(stub, b"m3,4") == b"3456".hex()
        assert ask(stub, b"M3,2:4142") == "OK"
        assert ask(stub, b"X5,4:" + escape(b"#$}*")) == "OK"
        assert target.memory[:10] == b"012AB#$}*9"
        assert ask(stub, b"X0,0:") == "OK"  # how gdb asks whether we know this packet
        assert ask(stub, b"mffe,20") == b"ef".hex()  # as much as there is
        assert ask(stub, b"m1000,1") == ask(stub, b"Mfff,2:4142") == "E0e"

    def test_breakpoints_of_both_kinds_and_no_others(self, stub: Stub, target: FakeTarget) -> None:
        assert [ask(stub, b"Z0,c0100000,1"), ask(stub, b"z1,c0100000,1")] == ["OK", "OK"]
        assert target.calls == [("set", 0xC0100000), ("clear", 0xC0100000)]
        assert ask(stub, b"Z2,c0100000,4") == ""

    def test_what_we_do_not_know_has_an_empty_answer(self, stub: Stub) -> None:
        for request in (b"vMustReplyEmpty", b"qSymbol::", b"R0", b"", b"\xff", b"qTStatus", b"!", b"vRun;x"):
            assert ask(stub, request) == ""

    @pytest.mark.parametrize(
        "request_",
        "p p3 pz p-1 P0 P0= P0=1 P0=123456789a P9=01000000 G G00 m m0 m0, m,1 m123456789,1 m-1,2 M0,1: M0,2:41 X0,1: "
        "Z0 Z0, Z0,x,1 vCont; vCont;x vCont;t:1 cxyz qRcmd,0 qXfer:features:read:target.xml:x,y".split(),
    )
    def test_what_makes_no_sense_is_refused(self, stub: Stub, target: FakeTarget, request_: str) -> None:
        before = [*target.values], bytes(target.memory)
        assert ask(stub, request_.encode()) in ("E16", "")
        assert ([*target.values], bytes(target.memory)) == before

    @given(st.binary(max_size=30) | st.from_regex(rb"\A[?gGpPmMXZzqQvHTDkcsCS][0-9a-f,:;=]{0,12}\Z"))
    def test_every_packet_has_at_most_one_answer(self, request_: bytes) -> None:
        target = FakeTarget()
        stub = Stub(target, kill=lambda: None)
        stub.received(packet(b"QStartNoAckMode"))
        stub.output = b""
        stub.received(packet(escape(request_)))
        assert stub.output.count(b"$") <= 1

    def test_the_description_comes_in_pieces(self, stub: Stub, target: FakeTarget) -> None:
        text, more = "", "m"
        while more == "m":
            answer = ask(stub, b"qXfer:features:read:target.xml:%x,40" % len(text))
            more, text = answer[0], text + answer[1:]
        assert (more, text) == ("l", describe(target.registers))
        assert ask(stub, b"qXfer:features:read:other.xml:0,40") == ""

    def test_the_description_names_what_gdb_insists_on(self) -> None:
        names = [r.name for r in I386 if r.feature == "org.gnu.gdb.i386.core"]
        assert len(names) == 32
        assert names[8:10] == ["eip", "eflags"]
        assert "<architecture>i386</architecture>" in describe(I386)

    def test_what_stands_behind_monitor(self, stub: Stub) -> None:
        assert bytes.fromhex(ask(stub, b"qRcmd," + b"what now".hex().encode())) == b"<what now>"

    def test_there_is_one_thread(self, stub: Stub) -> None:
        asked = [b"qfThreadInfo", b"qsThreadInfo", b"qC", b"Hg1", b"T1", b"qAttached"]
        assert [ask(stub, each) for each in asked] == ["m1", "l", "QC1", "OK", "OK", "1"]


class TestRunning:
    @pytest.mark.parametrize(
        ("request_", "did"),
        [
            (b"c", "continue"), (b"s", "step"), (b"C05", "continue"), (b"S05", "step"), (b"vCont;c", "continue"),
            (b"vCont;s:1;c", "step"), (b"vCont;C05:1", "continue"), (b"vCont;S05:1;c", "step"),
        ],
    )  # fmt: skip
    def test_a_stop_is_owed_and_paid_once(self, stub: Stub, target: FakeTarget, request_: bytes, did: str) -> None:
        assert ask(stub, request_) == "-"
        assert target.calls == [did]
        stub.proceed()
        assert stub.output == b""
        target.stop(Stop(SIGTRAP, breakpoint=True))
        stub.proceed()
        stub.proceed()
        assert stub.output == packet(b"T05swbreak:;thread:1;")

    def test_it_may_go_on_somewhere_else(self, stub: Stub, target: FakeTarget) -> None:
        assert ask(stub, b"c1234") == "-"
        assert target.calls == [("register", 1, b"\x34\x12\0\0"), "continue"]

    def test_packets_wait_while_it_runs_and_control_c_does_not(self, stub: Stub, target: FakeTarget) -> None:
        stub.received(packet(b"c") + b"\3" + packet(b"p0"))
        assert (stub.output, target.calls) == (b"", ["continue", "pause"])
        target.stop(Stop(SIGINT))
        stub.proceed()
        assert stub.output == packet(b"T02thread:1;") + packet(b"01000000")

    def test_a_control_c_which_comes_too_early_is_kept(self, stub: Stub, target: FakeTarget) -> None:
        stub.received(b"\3" + packet(b"p0"))
        assert target.calls == []
        stub.received(packet(b"c"))
        assert target.calls == ["continue", "pause"]
        target.stop(Stop(SIGINT))
        stub.received(packet(b"c"))
        assert target.calls == ["continue", "pause", "continue"]

    def test_so_many_packets_do_not_wait(self, stub: Stub) -> None:
        with pytest.raises(ProtocolError, match="64 packets wait"):
            stub.received(packet(b"c") + packet(b"?") * 1000)

    def test_a_running_target_is_stopped_by_the_first_packet_and_answers_then(self, target: FakeTarget) -> None:
        target.now = None
        stub = Stub(target, kill=lambda: None)
        stub.received(b"+\3-$q")
        assert target.calls == []
        stub.received(packet(b"qC")[2:])
        assert (target.calls, stub.output) == (["pause"], b"+")
        target.stop(Stop(SIGINT))
        stub.proceed()
        assert stub.output == b"+" + packet(b"QC1")

    @pytest.mark.parametrize(
        ("ending", "said"),
        [
            (Ending("power-off"), b"W00"), (Ending("restart"), b"W00"), (Ending("died", "CRASH"), b"X06"),
            (Ending("stopped"), b"X0f"),
        ],
    )  # fmt: skip
    def test_an_end_is_told(self, stub: Stub, target: FakeTarget, ending: Ending, said: bytes) -> None:
        ask(stub, b"c")
        target.stop(ending)
        stub.proceed()
        assert stub.output == packet(said)

    def test_the_last_words_of_a_guest_ring_no_bell(self, stub: Stub, target: FakeTarget) -> None:
        ask(stub, b"c")
        target.stop(Stop(SIGABRT, words="CRASH: \x1b[2J\7ü"))
        stub.proceed()
        words, stop = stub.output.split(b"$")[1:]
        assert bytes.fromhex(words[1:-3].decode()) == rb"CRASH: \x1b[2J\x07\xfc" + b"\n"
        assert stop == b"T06thread:1;#" + packet(b"T06thread:1;")[-2:]

    def test_detaching_releases_and_so_does_vanishing(self, target: FakeTarget) -> None:
        for leave in ("D", ""):
            stub = Stub(target, kill=lambda: None)
            target.now = Stop(SIGTRAP)
            stub.received(packet(b"?"))
            target.calls.clear()
            if leave:
                stub.received(packet(b"D"))
                assert stub.output.endswith(packet(b"OK"))
            stub.lost()
            assert target.calls == ["release"]

    def test_a_visitor_who_said_nothing_sensible_has_changed_nothing(self, target: FakeTarget) -> None:
        stub = Stub(target, kill=lambda: None)
        stub.received(b"\3+$?#00")
        stub.lost()
        assert target.calls == []

    @pytest.mark.parametrize("request_", [b"k", b"vKill;1"])
    def test_kill_kills(self, stub: Stub, target: FakeTarget, request_: bytes) -> None:
        assert ask(stub, request_) == ("-" if request_ == b"k" else "OK")
        stub.lost()
        assert target.calls == ["kill"]


class TestServer:
    @pytest.fixture
    def server(self, target: FakeTarget) -> Iterator[GdbServer]:
        server = GdbServer(target, 0)
        server.start(kill=lambda: target.calls.append("kill"))
        yield server
        server.close()

    def visit(self, server: GdbServer) -> socket.socket:
        visitor = socket.create_connection((ADDRESS, server.port))
        visitor.settimeout(PATIENCE)
        return visitor

    def hear(self, visitor: socket.socket, end: bytes) -> bytes:
        heard = b""
        while not heard.endswith(end):
            assert (piece := visitor.recv(4096)), heard
            heard += piece
        return heard

    def gone(self, visitor: socket.socket) -> bool:
        "Whether it has been hung up, politely or not."
        try:
            while visitor.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def test_the_targets_are_targets(self, target: FakeTarget) -> None:
        assert isinstance(target, Target)

    def test_it_listens_here_and_nowhere_else(self, server: GdbServer) -> None:
        assert ADDRESS == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port))

    def test_a_port_which_is_taken_is_a_sentence(self, server: GdbServer, target: FakeTarget) -> None:
        with pytest.raises(LguestError, match=f"port {server.port} of 127.0.0.1: Address already in use"):
            GdbServer(target, server.port)

    def test_a_server_which_was_never_started_can_be_closed(self, target: FakeTarget) -> None:
        GdbServer(target, 0).close()

    def test_word_from_the_target_reaches_gdb(self, server: GdbServer, target: FakeTarget) -> None:
        with self.visit(server) as visitor:
            visitor.sendall(packet(b"QStartNoAckMode") + packet(b"c"))
            self.hear(visitor, packet(b"OK"))
            target.stop(Stop(SIGTRAP))
            self.hear(visitor, packet(b"T05thread:1;"))

    def test_the_end_reaches_gdb_though_the_server_is_closed_at_once(self, target: FakeTarget) -> None:
        server = GdbServer(target, 0)
        server.start(kill=lambda: None)
        with self.visit(server) as visitor:
            visitor.sendall(packet(b"QStartNoAckMode") + packet(b"c"))
            self.hear(visitor, packet(b"OK"))
            target.stop(Ending("power-off"))
            server.close()
            self.hear(visitor, packet(b"W00"))
            assert self.gone(visitor)

    def test_a_second_debugger_is_sent_away_and_the_first_stays(self, server: GdbServer) -> None:
        with self.visit(server) as first, self.visit(server) as second:
            assert self.gone(second)
            first.sendall(packet(b"qC"))
            self.hear(first, packet(b"QC1"))

    @pytest.mark.parametrize(
        "rubbish", [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"$" * 9, b"$m0,4#2f}", bytes(range(99, 256))]
    )
    def test_rubbish_is_hung_up_on_and_the_next_one_is_served(self, server: GdbServer, rubbish: bytes) -> None:
        with self.visit(server) as visitor:
            visitor.sendall(rubbish if rubbish[:1] not in b"+-\3" else b"x")
            if rubbish.startswith(b"$m"):
                visitor.shutdown(socket.SHUT_WR)
            assert self.gone(visitor)
        with self.visit(server) as visitor:
            visitor.sendall(packet(b"qC"))
            self.hear(visitor, packet(b"QC1"))

    def test_a_debugger_which_is_killed_in_the_middle_of_a_word_releases(
        self, server: GdbServer, target: FakeTarget
    ) -> None:
        with self.visit(server) as visitor:
            visitor.sendall(packet(b"qC") + b"$m0")
            self.hear(visitor, packet(b"QC1"))
        with self.visit(server) as visitor:  # until it is served, the first one has been noticed to be gone
            visitor.sendall(b"\xff")
            assert self.gone(visitor)
        assert target.calls[-1] == "release"

    def test_one_who_comes_in_the_moment_in_which_another_has_gone_is_let_in(
        self, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = GdbServer(target, 0)
        door, go_on = server._door.fileno(), threading.Event()

        class Late:
            "A poll which sees everything that happens until it is let go, and names the door first."

            def __init__(self) -> None:
                self.poll_ = select.poll()
                self.register, self.unregister = self.poll_.register, self.poll_.unregister

            def poll(self) -> list[tuple[int, int]]:
                self.poll_.poll()
                go_on.wait(PATIENCE)
                return sorted(self.poll_.poll(), key=lambda ready: ready[0] != door)

        monkeypatch.setattr(server, "_poll", Late())
        go_on.set()
        server.start(kill=lambda: None)
        try:
            with self.visit(server) as first:
                first.sendall(packet(b"qC"))
                self.hear(first, packet(b"QC1"))
                go_on.clear()
            with self.visit(server) as second:
                go_on.set()
                second.sendall(packet(b"qC"))
                until(lambda: target.calls[-2:] == ["release", "pause"])  # the first has gone, the second has come
        finally:
            go_on.set()
            server.close()

    def test_one_who_does_not_take_his_answers_holds_nobody_up(self, target: FakeTarget) -> None:
        server = GdbServer(target, 0)
        server.start(kill=lambda: None)
        with socket.socket() as visitor:
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            visitor.connect((ADDRESS, server.port))
            visitor.settimeout(0.2)
            visitor.sendall(packet(b"QStartNoAckMode"))
            with pytest.raises((TimeoutError, ConnectionError)):  # nothing fits between us any more, or it's enough
                while True:
                    visitor.sendall(packet(b"m0,1000"))
            server.close()

    def test_one_who_asks_and_asks_is_hung_up_on(self, server: GdbServer) -> None:
        with self.visit(server) as visitor:
            visitor.sendall(packet(b"m0,1000") * 2000)
            assert self.gone(visitor)

    def test_a_mistake_of_ours_costs_the_debugger_only(
        self, server: GdbServer, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(FakeTarget, "read_register", lambda *_: 1 // 0)
            with self.visit(server) as visitor:
                visitor.sendall(packet(b"g"))
                assert self.gone(visitor)
        with self.visit(server) as visitor:
            target.now = Stop(SIGTRAP)
            visitor.sendall(packet(b"p0"))
            self.hear(visitor, packet(b"01000000"))
