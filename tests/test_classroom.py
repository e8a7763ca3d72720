"""A lesson without a hub: what is asked of the machine, how a hub is configured, what a kernel's words mean."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import classroom
import classroom_hub
import classroom_machine as machine
import classroom_student
import pytest
from classroom_machine import ClassError
from classroom_student import Student, Talk, leave, work

pytestmark = pytest.mark.usefixtures("nothing_left")


class TestTheMachine:
    def test_a_process_runs_until_it_has_ended_even_if_nobody_has_asked_how(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert machine.runs(child.pid) and machine.runs(os.getpid())
        assert child.stdin
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
        assert not machine.runs(child.pid)
        child.wait()
        assert not machine.runs(child.pid)

    def test_a_guests_memory_is_told_from_the_launchers(self) -> None:
        from lguest_nb.memory import GuestMemory

        before = machine.of_the_guest(os.getpid())
        memory = GuestMemory(8 << 20)
        memory.write(0, b"x" * (4 << 20))
        assert 4 <= machine.of_the_guest(os.getpid()) - before < 5
        assert machine.in_memory(os.getpid()) > 4
        memory.close()

    def test_a_user_who_cannot_be_made_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(command: list[str], **_: object) -> object:
            assert command[0] == "useradd" and command[-1] == "pupil"
            assert f"{machine.OURS}{os.getpid()}" in command
            return SimpleNamespace(returncode=1, stderr="useradd: no\n")

        monkeypatch.setattr(subprocess, "run", refuse)
        with pytest.raises(ClassError, match=r"^useradd could not make the user pupil: useradd: no$"):
            machine.make_user("pupil", tmp_path)

    def test_only_users_of_a_lesson_which_is_over_are_removed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        people = {"root": "root", "now": f"{machine.OURS}{os.getpid()}", "then": f"{machine.OURS}{ended.pid}"}
        users = [SimpleNamespace(pw_name=name, pw_gecos=comment) for name, comment in people.items()]
        removed: list[str] = []
        monkeypatch.setattr("pwd.getpwall", lambda: users)
        monkeypatch.setattr(machine, "remove_user", removed.append)
        machine.remove_left_over()
        assert removed == ["then"]

    def test_what_others_cannot_reach_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.touch()
        python.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(python))
        assert machine.unreachable() == str(python)


class TestTheHub:
    def settings(self, real_users: bool) -> dict[str, Any]:
        arguments = "http://127.0.0.1:1", "secret", Path("/place"), ["one", "two"], real_users, Path("/proxy")
        return classroom_hub.settings(*arguments)

    @pytest.mark.parametrize("real_users", [False, True])
    def test_nobody_gets_in_but_the_students_and_the_lesson(self, real_users: bool) -> None:
        chosen = self.settings(real_users)
        assert chosen["DummyAuthenticator.allowed_users"] == {"one", "two"}
        assert len(chosen["DummyAuthenticator.password"]) == 32
        assert chosen["JupyterHub.services"] == [{"name": "lesson", "api_token": "secret"}]
        assert all(
            "//127.0.0.1:" in value for name, value in chosen.items() if name.endswith("_url") and "db" not in name
        )

    def test_only_one_who_is_not_each_student_is_asked_for_a_home_for_them(self) -> None:
        home = "SimpleLocalProcessSpawner.home_dir_template"
        assert self.settings(False)[home] == "/place/{username}" and home not in self.settings(True)
        assert "--allow-root" not in self.settings(True)["Spawner.cmd"]

    def test_every_setting_can_be_written_into_a_file_and_read_again(self) -> None:
        for value in self.settings(False).values():
            assert eval(repr(value)) == value

    def test_a_hub_which_has_ended_is_a_sentence_with_its_last_words(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("no such port")
        hub: Any = classroom_hub.Hub.__new__(classroom_hub.Hub)
        hub.place, hub.process = tmp_path, SimpleNamespace(poll=lambda: 3, returncode=3)

        async def never() -> bool:
            raise ConnectionRefusedError

        with pytest.raises(ClassError, match="ended with status 3. Its last words:\nno such port"):
            asyncio.run(hub.until("It does not answer", never))


class Wire:
    "A kernel's websocket: what it says is written down beforehand, and takes the id of what it was asked."

    def __init__(self, *said: tuple[str, dict[str, Any]]) -> None:
        self.said = list(said)
        self.ident = ""

    async def write_message(self, text: str) -> None:
        self.ident = json.loads(text)["header"]["msg_id"]

    async def read_message(self) -> str | None:
        if not self.said:
            return None
        kind, content = self.said.pop(0)
        ident = "somebody else's" if content.get("strange") else self.ident
        return json.dumps({"header": {"msg_type": kind}, "parent_header": {"msg_id": ident}, "content": content})


IDLE = ("status", {"execution_state": "idle"})


def printed(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "stream", {"name": "stdout", "text": text, **more}


class TestAStudent:
    def run(self, *said: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        return asyncio.run(Talk(Wire(*said)).run("a cell"))

    def test_what_a_cell_prints_is_put_together_until_the_kernel_is_idle(self) -> None:
        noise = printed("oh!", name="stderr"), ("status", {"execution_state": "busy"})
        assert self.run(*noise, printed('{"boot":'), printed(" 1.5}"), IDLE, printed("x")) == {"boot": 1.5}

    def test_what_another_cell_prints_is_not_ours(self) -> None:
        assert self.run(printed("[]", strange=True), ("status", IDLE[1] | {"strange": True}), printed("{}"), IDLE) == {}

    def test_an_error_and_a_closed_wire_are_sentences(self) -> None:
        with pytest.raises(ClassError, match="^A cell failed: OSError: no$"):
            self.run(("error", {"ename": "OSError", "evalue": "no"}))
        with pytest.raises(ClassError, match="websocket was closed"):
            self.run()

    def at_work(self, home: Path, said: str, disk: bytes) -> Student:
        (home / "disk.img").write_bytes(bytes(3 * 512) + disk.ljust(512, b"\0"))
        heard = printed(json.dumps({"command": 0.25, "said": said}))
        student = Student("one", home, secret="abc", kernel=os.getpid(), talk=Talk(Wire(heard, IDLE)))
        asyncio.run(work(student, 1))
        return student

    def test_an_answer_counts_if_it_is_ones_own_on_the_screen_and_on_the_disk(self, tmp_path: Path) -> None:
        student = self.at_work(tmp_path, "write abc\nabc", b"abc")
        assert student.seconds == {"a line typed, to the next prompt": 0.25}
        with pytest.raises(ClassError, match="Guest of one did not answer abc, but: 'write abc'"):
            self.at_work(tmp_path, "write abc", b"abc")
        with pytest.raises(ClassError, match="abc is not in the third sector of one's disk"):
            self.at_work(tmp_path, "write abc\nabc", b"somebody else's")

    def test_a_guest_which_does_not_end_is_a_sentence(self, tmp_path: Path) -> None:
        heard = printed(json.dumps({"over": False, "status": "It runs."}))
        with pytest.raises(ClassError, match="Guest of one did not end: It runs."):
            asyncio.run(leave(Student("one", tmp_path, talk=Talk(Wire(heard, IDLE)))))

    def test_cells_are_programs(self) -> None:
        for cell in ("FIRST_CELL", "BOOT_CELL", "TYPE_CELL", "STOP_CELL"):
            compile(getattr(classroom_student, cell), cell, "exec")

    def test_no_two_have_the_same_secret(self, tmp_path: Path) -> None:
        assert Student("one", tmp_path).secret != Student("two", tmp_path).secret


def test_the_report_tells_the_middle_one_and_the_worst(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    students = [Student(str(n), tmp_path) for n in range(3)]
    for student, seconds in zip(students, (1.0, 5.0, 2.0), strict=True):
        student.seconds["a prompt"] = seconds
        student.megabytes = {"server": 100.0, "kernel with a Guest": 50.0}
    classroom.report(students, 3.5, "all of them in one room")
    said = capsys.readouterr().out
    assert said.startswith("3 students at once on ") and "all of them in one room" in said
    assert "median  2.000 s   worst   5.000 s" in said and "450.0 MB" in said


@pytest.mark.parametrize("count", ["0", "-3"])
def test_a_lesson_for_nobody_is_refused(count: str) -> None:
    tool = Path(classroom.__file__)
    done = subprocess.run([sys.executable, tool, f"--students={count}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"There is no lesson for {count} students." in done.stderr
