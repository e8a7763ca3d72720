"""The tools of `make bench` measure what they say: each is run briefly, for what it does and not for how fast."""

from collections.abc import Iterator
from pathlib import Path

import bench_growth
import bench_host
import bench_rings
import pytest
from bench_rings import BLOCK, Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> Iterator[Bench]:
    monkeypatch.setattr(bench_rings, "BLOCKS", 64)
    yield Bench(tmp_path, seconds=0.02)


@pytest.mark.parametrize("depth", [1, 32, 85])
@pytest.mark.parametrize("what", ["read", "write", "send"])
def test_the_load_is_served_and_every_answer_is_right(bench: Bench, what: str, depth: int) -> None:
    figure = bench.ours(what, depth)
    assert figure.rate > 0 and figure.cpu > 0
    assert figure.kicks <= 1 and figure.interrupts <= 1


@pytest.mark.parametrize("depth", [1, 32])
def test_another_program_serves_the_same_ring_by_vhost_user(bench: Bench, depth: int) -> None:
    figure = bench.storage_daemon("read", depth, "threads")
    assert figure.rate > 0 and figure.cpu > 0


def test_a_wrong_answer_makes_the_run_worthless(bench: Bench) -> None:
    bench.disk.write_bytes(bytes(64 * BLOCK))
    with pytest.raises(SystemExit, match="answers on the read ring were wrong"):
        bench.ours("read", 4)


def test_a_load_which_nobody_could_carry_is_refused(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="came to no good end"):
        bench.ours("read", 86)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("cost", bench_host.COSTS, ids=lambda cost: cost.name)
def test_a_cost_is_that_of_a_guest_which_lives_and_powers_off(cost: bench_host.Cost) -> None:
    for body in (cost.body, b""):
        assert bench_host.run_once(cost, 10, body) > 0


def test_growth_is_measured_in_turns_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def once(place: int) -> dict[str, float]:
        seen.append(place)
        return {"prompt": place / 10, "Launcher": 30.0}

    curves = bench_growth.measure((1, 2, 4), 2, once, {"prompt": "s", "Launcher": "MB"})
    assert seen == [1, 2, 4] * 2
    assert curves[0].medians() == [0.1, 0.2, 0.4]
    bench_growth.report("Guests: together", "Guests", curves, tmp_path, log=True)
    assert "prompt (s)" in capsys.readouterr().out
    assert (tmp_path / "guests.svg").read_text().count("<svg") == 1


@pytest.mark.usefixtures("nothing_left")
def test_guests_are_booted_to_their_prompt_and_leave() -> None:
    found = bench_growth.until_the_prompt(2)
    assert found["threads"] >= 4 and found["prompt"] > 0
    assert 0 < found["Guest"] < 16
