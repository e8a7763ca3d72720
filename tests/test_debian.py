"""A Guest made of Debian's packages: the archive for its memory, its drivers in order, files whole or not at all.

No network: apt is told that the archive is a directory, with packages which dpkg-deb has just made.
"""

import hashlib
import io
import lzma
import os
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import COMMAND

from lguest_nb.arguments import UsageError
from lguest_nb.debian import Apt, DebianError, Package, fetch, unpack
from lguest_nb.debian_guest import GREETING, DebianGuest, alone, build, guest_command, make_disk, whole_or_nothing
from lguest_nb.initramfs import DRIVERS, INIT, CpioWriter, ModulesError, depends, in_order, write_initramfs

KERNEL = "linux-image-6.1-cloud-amd64"
NEEDS = {
    "virtio_ring": "",
    "virtio": "virtio_ring",
    "virtio_mmio": "virtio,virtio_ring",
    "virtio_blk": "virtio,virtio_ring",
    "failover": "",
    "net_failover": "failover",
    "virtio_net": "virtio,virtio_ring,net_failover",
    "virtio_console": "virtio,virtio_ring",
    "virtio-rng": "virtio,virtio_ring",
}


def module(needs: str) -> bytes:
    "As much of a kernel module as we read."
    return b"\x7fELF\2\1\1\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"


def make_tree(tree: Path) -> Path:
    "lib/modules/VERSION, as in a package."
    for name, needs in NEEDS.items():
        path = tree / "kernel/drivers" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module(needs))
    (tree / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n")
    (tree / "modules.order").write_text("")
    return tree


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make_package(pool: Path, name: str, depends: str = "") -> Path:
    "A .deb of what is in pool/NAME."
    root = pool / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.org>\nDescription: x\n"
    (root / "DEBIAN/control").write_text(control + f"Depends: {depends}\n" * bool(depends))
    run("dpkg-deb", "-b", root, pool)
    return pool / f"{name}_1_all.deb"


def make_index(pool: Path) -> None:
    entries = []
    for deb in sorted(pool.glob("*.deb")):
        digits = hashlib.sha256(deb.read_bytes()).hexdigest()
        where = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digits}\n"
        entries.append(run("dpkg-deb", "-f", deb) + where)
    (pool / "Packages").write_text("\n".join(entries))


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "An archive of three packages, and an apt which knows no other and has no lists."
    pool = tmp_path / "pool"
    make_tree(pool / KERNEL / "lib/modules/6.1-cloud-amd64")
    (pool / KERNEL / "boot").mkdir()
    (pool / KERNEL / "boot/vmlinuz-6.1-cloud-amd64").write_bytes(b"the kernel")
    (pool / "busybox-static/bin").mkdir(parents=True)
    (pool / "busybox-static/bin/busybox").write_bytes(b"the shell")
    make_package(pool, KERNEL)
    make_package(pool, "busybox-static")
    make_package(pool, "linux-image-cloud-amd64", depends=f"{KERNEL} (= 1)")
    make_index(pool)
    (pool / "sources.list").write_text(f"deb [trusted=yes] file:{pool} ./\n")
    settings = {"Etc::SourceList": pool / "sources.list", "Etc::SourceParts": "-", "State::Lists": tmp_path / "none"}
    (pool / "apt.conf").write_text("".join(f'Dir::{name} "{value}";\n' for name, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(pool / "apt.conf"))
    return pool


class TestCpio:
    def write(self, fill: Callable[[CpioWriter], None]) -> bytes:
        file = io.BytesIO()
        cpio = CpioWriter(file)
        fill(cpio)
        cpio.close()
        return file.getvalue()

    def test_cpio_itself_lists_what_is_in_it(self) -> None:
        def fill(cpio: CpioWriter) -> None:
            cpio.directory("a/b")
            for size in range(5):  # each remainder of four
                cpio.regular(f"a/b/{'x' * (size + 1)}", b"z" * size)
            cpio.link("sh", "busybox")
            cpio.character_device("dev/console", 5, 1)

        listed = subprocess.run(
            ["cpio", "-tv"], input=self.write(fill), capture_output=True, check=True
        ).stdout.decode()
        names = [line.split()[-1] for line in listed.splitlines()]
        assert names == ["a", "a/b", *(f"a/b/{'x' * n}" for n in range(1, 6)), "busybox", "dev", "dev/console"]
        assert "sh -> busybox" in listed
        assert [line for line in listed.splitlines() if line.startswith("crw") and "5,   1" in line]

    def test_what_comes_out_is_what_went_in(self, tmp_path: Path) -> None:
        def fill(cpio: CpioWriter) -> None:
            cpio.regular("bin/tool", b"#!/bin/sh\n" * 1000, 0o755)
            cpio.link("bin/also", "tool")

        subprocess.run(["cpio", "-id", "--quiet"], input=self.write(fill), cwd=tmp_path, check=True)
        assert (tmp_path / "bin/also").read_bytes() == b"#!/bin/sh\n" * 1000
        assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755

    def test_a_directory_is_in_it_once(self) -> None:
        archive = self.write(lambda cpio: [cpio.regular(f"etc/{name}", b"") for name in "abc"] and None)
        assert archive.count(b"etc\0") == 1

    def test_the_same_input_is_the_same_bytes(self) -> None:
        written = [io.BytesIO(), io.BytesIO()]
        for file in written:
            write_initramfs(file, b"busybox", {"virtio": b"module"})
        assert written[0].getvalue() == written[1].getvalue()


class TestModules:
    def test_what_a_module_needs_comes_before_it(self, tmp_path: Path) -> None:
        order = list(in_order(make_tree(tmp_path)))
        assert sorted(order) == sorted(name.replace("-", "_") for name in NEEDS)
        for name, needs in NEEDS.items():
            for needed in filter(None, needs.split(",")):
                assert order.index(needed) < order.index(name.replace("-", "_"))

    def test_what_is_built_in_needs_no_loading(self, tmp_path: Path) -> None:
        assert in_order(make_tree(tmp_path), ["ext4", "rng-core"]) == {}

    def test_a_packed_module_is_unpacked(self, tmp_path: Path) -> None:
        (tmp_path / "virtio.ko.xz").write_bytes(lzma.compress(module("")))
        assert in_order(tmp_path, ["virtio"]) == {"virtio": module("")}

    def test_a_module_which_there_is_not_is_named(self, tmp_path: Path) -> None:
        make_tree(tmp_path)
        (tmp_path / "kernel/drivers/virtio_ring.ko").unlink()
        with pytest.raises(ModulesError, match="has no module virtio_ring, and it isn't built in"):
            in_order(tmp_path)

    def test_modules_which_need_each_other_are_no_endless_loop(self, tmp_path: Path) -> None:
        (tmp_path / "a.ko").write_bytes(module("b"))
        (tmp_path / "b.ko").write_bytes(module("a"))
        with pytest.raises(ModulesError, match="no module a"):
            in_order(tmp_path, ["a"])

    @pytest.mark.parametrize(
        ("contents", "names"),
        [
            (module(""), []),
            (module("virtio,virtio-rng"), ["virtio", "virtio_rng"]),
            (b"no module at all", []),
            (b"softdepends=x\0", []),
        ],
    )
    def test_its_needs_are_words_in_the_file(self, contents: bytes, names: list[str]) -> None:
        assert depends(contents) == names

    def test_the_script_is_one(self) -> None:
        assert subprocess.run(["sh", "-n"], input=INIT, capture_output=True, text=True).stderr == ""


class TestApt:
    def test_without_lists_it_makes_its_own(self, pool: Path, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        apt = Apt(tmp_path / "cache", lambda *each: told.append(each))
        assert [path.name for path in fetch(apt)] == [f"{KERNEL}_1_all.deb", "busybox-static_1_all.deb"]
        assert apt.own_lists
        assert all(total == 100 and 0 <= done <= 100 for _, done, total in told)

    def test_what_is_whole_is_not_fetched_again_and_what_is_not_is(self, pool: Path, tmp_path: Path) -> None:
        apt = Apt(tmp_path / "cache")
        kernel, _ = fetch(apt)
        package = apt.find(KERNEL)
        whole = (pool / kernel.name).read_bytes()
        (pool / kernel.name).unlink()
        assert apt.download(package) == kernel
        kernel.write_bytes(whole[:100])
        with pytest.raises(DebianError, match=f"fetching {KERNEL}: apt-helper failed"):
            apt.download(package)
        (pool / kernel.name).write_bytes(whole)
        apt.download(package)
        assert kernel.read_bytes() == whole

    def test_what_the_lists_do_not_say_never_gets_its_name(self, pool: Path, tmp_path: Path) -> None:
        apt = Apt(tmp_path / "cache")
        apt.update()
        package = apt.find(KERNEL)
        (pool / package.file).write_bytes(b"!" * package.size)
        with pytest.raises(DebianError, match="Hash Sum mismatch"):
            apt.download(package)
        assert not (tmp_path / "cache" / package.file).exists()

    def test_lists_which_are_older_than_the_archive_are_made_anew(self, pool: Path, tmp_path: Path) -> None:
        old = tmp_path / "none"  # where this machine's lists are
        for directory in (old / "partial", tmp_path / "apt-cache/archives/partial"):
            directory.mkdir(parents=True)
        run("apt-get", "update", "-o", f"Dir::Cache={tmp_path / 'apt-cache'}", "-o", "APT::Sandbox::User=")
        (pool / f"{KERNEL}_1_all.deb").rename(pool / "newer.deb")
        make_index(pool)
        apt = Apt(tmp_path / "cache")
        assert not apt.own_lists
        assert [path.name for path in fetch(apt)] == [f"{KERNEL}_1_all.deb", "busybox-static_1_all.deb"]
        assert apt.own_lists

    def test_a_package_which_was_cut_goes_on_where_it_was(self, pool: Path, tmp_path: Path) -> None:
        asked: list[str | None] = []
        whole = (pool / f"{KERNEL}_1_all.deb").read_bytes()

        class Archive(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = pool / Path(self.path).name
                if not path.exists():
                    self.send_error(404)
                    return
                contents, cut = path.read_bytes(), path.name.startswith(KERNEL)
                if cut:
                    asked.append(self.headers["Range"])
                first = int(self.headers["Range"][6:].partition("-")[0]) if cut and self.headers["Range"] else 0
                self.send_response(206 if first else 200)
                self.send_header("Content-Range", f"bytes {first}-{len(contents) - 1}/{len(contents)}")
                self.send_header("Last-Modified", "Fri, 12 Jun 2009 22:27:09 GMT")
                self.send_header("Content-Length", str(len(contents) - first))
                self.end_headers()
                self.wfile.write(contents[first : first + 100 if cut and len(asked) == 1 else None])
                self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                (pool / "sources.list").write_text(f"deb [trusted=yes] http://127.0.0.1:{server.server_port} ./\n")
                with (pool / "apt.conf").open("a") as settings:
                    settings.write('Acquire::Retries "0";\nAcquire::http::Proxy "DIRECT";\n')
                apt = Apt(tmp_path / "cache")
                apt.update()
                package = apt.find(KERNEL)
                with pytest.raises(DebianError, match=f"fetching {KERNEL}: apt-helper failed"):
                    apt.download(package)
                assert apt.download(package).read_bytes() == whole
            finally:
                server.shutdown()
                thread.join()
        assert asked == [None, "bytes=100-"]

    def test_an_archive_out_of_reach_is_a_sentence(self, pool: Path, tmp_path: Path) -> None:
        (pool / "sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/debian ./\n")
        with pytest.raises(DebianError, match="fetching package lists: .*127.0.0.1.*Is this machine online"):
            fetch(Apt(tmp_path / "cache"))

    def test_an_archive_without_these_packages_is_a_sentence(self, pool: Path, tmp_path: Path) -> None:
        (pool / "Packages").write_text("")
        with pytest.raises(DebianError, match="apt-cache failed: .*|depends on no package"):
            fetch(Apt(tmp_path / "cache"))

    def test_where_there_is_no_apt_a_sentence_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DebianError, match="There is no apt-cache here: this needs Debian"):
            fetch(Apt(tmp_path))
        with pytest.raises(DebianError, match="There is no dpkg-deb here"):
            unpack(tmp_path / "a.deb", tmp_path)

    def test_a_file_is_the_package_by_its_hash(self, tmp_path: Path) -> None:
        package = Package("x", "x.deb", 5, f"SHA256:{hashlib.sha256(b'hello').hexdigest()}")
        (tmp_path / "x.deb").write_bytes(b"hello")
        assert package.is_in(tmp_path / "x.deb")
        (tmp_path / "x.deb").write_bytes(b"hullo")
        assert not package.is_in(tmp_path / "x.deb")
        assert not package.is_in(tmp_path / "y.deb")


class TestGuest:
    def test_two_who_make_one_guest_at_once_do_not_meet(self, pool: Path, tmp_path: Path) -> None:
        box = tmp_path / "guest"
        box.mkdir()
        with alone(box):
            with pytest.raises(DebianError, match="Somebody else is making a Guest in .*guest: wait, or name another"):
                build(box, 8)
            build(tmp_path / "another", 8)
        left = box / ".unpacked-by-somebody-who-was-killed"
        left.mkdir()
        build(box, 8)
        assert not left.exists()

    def test_all_its_files_are_made_without_anything_beside_them(self, pool: Path, tmp_path: Path) -> None:
        said = guest_command(["debian", str(tmp_path / "guest"), "--disk=8"])
        guest = DebianGuest(tmp_path / "guest")
        assert said == "lguest-nb " + " ".join(guest.arguments())
        assert sorted(os.listdir(guest.directory)) == ["disk.img", "initramfs", "packages", "vmlinuz"]
        assert guest.kernel.read_bytes() == b"the kernel"
        assert guest.disk.stat().st_size == 8 << 20
        listed = subprocess.run(
            ["cpio", "-t", "--quiet"], input=guest.initramfs.read_bytes(), capture_output=True
        ).stdout
        names = listed.decode().split()
        assert {"init", "bin/busybox", "dev/console", *(f"lib/modules/{name}.ko" for name in DRIVERS)} <= set(names)

    def test_a_disk_which_is_there_stays(self, pool: Path, tmp_path: Path) -> None:
        guest = build(tmp_path / "guest", 8)
        guest.disk.write_bytes(b"mine")
        assert build(tmp_path / "guest", 16).disk.read_bytes() == b"mine"

    def test_an_interruption_leaves_no_half_file(self, pool: Path, tmp_path: Path) -> None:
        def interrupt(what: str, done: int, total: int) -> None:
            if what.startswith("unpacking"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "guest", 8, interrupt)
        assert os.listdir(tmp_path / "guest") == ["packages"]
        with pytest.raises(KeyboardInterrupt), whole_or_nothing(tmp_path / "file") as part:
            part.write_text("half")
            raise KeyboardInterrupt
        assert not (tmp_path / "file").exists() and not part.exists()

    def test_a_disk_has_a_file_system_which_is_clean_and_root_s(self, tmp_path: Path) -> None:
        make_disk(tmp_path / "disk", 8)
        environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        check = subprocess.run(["e2fsck", "-fn", tmp_path / "disk"], env=environment, capture_output=True, text=True)
        assert check.returncode == 0, check.stdout
        command = ["debugfs", "-R", "cat hello.txt", tmp_path / "disk"]
        assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == GREETING

    @pytest.mark.parametrize(
        "words", [[], ["debian"], ["gentoo", "x"], ["debian", "x", "y"], ["debian", "--disk=7", "x"], ["--floppy"]]
    )
    def test_a_wrong_command_is_told_how_it_goes(self, words: list[str]) -> None:
        with pytest.raises(UsageError, match="Usage|8 to 1048576 megabytes"):
            guest_command(words)

    def test_a_directory_which_cannot_be_is_a_sentence(self, pool: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DebianError, match="file.*: (Not a directory|File exists)"):
            build(tmp_path / "file")

    def test_the_command_line_has_it(self, pool: Path, tmp_path: Path) -> None:
        done = subprocess.run(
            [*COMMAND, "guest", "debian", tmp_path / "a guest", "--disk=8"], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("lguest-nb '--block=") and done.stdout.endswith("vmlinuz'\n")
        for words, status in (
            (["guest"], 2),
            (["guest", "debian", str(pool / "apt.conf")], 1),
            (["guest", "--help"], 0),
        ):
            done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
            assert done.returncode == status
            assert "Traceback" not in done.stderr
