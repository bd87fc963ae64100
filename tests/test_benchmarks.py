"""The benchmarks of the network run, and what they build is what they say."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sim_eval.core.types import RenderConfig
from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """What a benchmark's file defines."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: runpy.run_path(str(BENCHMARKS / name))


@pytest.mark.parametrize("expert", ACTION_EXPERTS)
def test_the_prefix_cache_changes_nothing(program: Callable[[str], dict[str, Any]], expert: str) -> None:
    cached, uncached, difference = program("prefix_cache.py")["compare"](expert, 2)
    assert len(cached) == len(uncached) == 2
    assert difference <= 1e-5


def test_the_program_for_the_real_size_predicts_a_chunk(
    program: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = program("seven_billion.py")
    assert benchmark["main"](benchmark["SizeArguments"](size="proof", threads=1)) == 0
    shown = capsys.readouterr().out
    assert "341,383 parameters, bfloat16" in shown
    assert "one chunk of (8, 7)" in shown
    assert "peak memory" in shown


def test_what_is_built_from_nothing_is_whole(program: Callable[[str], dict[str, Any]]) -> None:
    benchmark = program("seven_billion.py")
    config = benchmark["configuration"]("proof")
    built = benchmark["build"](config)
    usual = SpatialVLAForConditionalGeneration(config)
    for (name, found), expected in zip(built.named_buffers(), usual.buffers(), strict=True):
        assert torch.equal(found, expected), name
        assert found.dtype == expected.dtype, name
    for (name, found), expected in zip(built.named_parameters(), usual.named_parameters(), strict=True):
        exact = name.startswith("vlm.position_embedding.")
        assert found.dtype == (torch.float32 if exact else torch.bfloat16), name
        if "norm" in name:
            assert torch.equal(found.float(), expected[1]), name
        elif found.dim() > 1:
            assert 0.01 < found.float().std() < 0.03, name


def test_metaworlds_pictures_show_what_mujocos_show(program: Callable[[str], dict[str, Any]]) -> None:
    taken = program("metaworld_speed.py")["frame_times"]("metaworld/door-open-v3", 2)  # which compares their depths
    assert [len(times) for times in taken.values()] == [4, 4, 4]


def test_the_compiled_control_step_is_timed_on_the_states_of_robosuites_own(
    program: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = program("control_step.py")  # which compares the states
    assert benchmark["main"](benchmark["StepArguments"](task="robosuite/Lift", steps=50)) == 0
    shown = capsys.readouterr().out
    assert "n = 50 a task" in shown
    assert "robosuite/Lift" in shown


def test_the_parent_of_many_workers_is_timed_on_real_messages_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.parent import ParentArguments, main

    assert main(ParentArguments(workers=3, episodes=2, steps=3, seconds=0.01)) == 0
    shown = capsys.readouterr()
    assert "3 workers, 6 episodes" in shown.out
    assert "success 3/6: 50.0 % [11.8, 88.2]" in shown.err


def test_a_culled_frame_is_timed_beside_its_whole_equal(program: Callable[[str], dict[str, Any]]) -> None:
    frames = program("frustum_culling.py")["frames"]
    pairs = list(frames("metaworld/door-open-v3", RenderConfig(height=32, width=32), 2))
    assert [pair.camera for pair in pairs] == ["agentview", "wrist", "corner2"] * 2
    assert all(pair.culled_geoms < pair.whole_geoms for pair in pairs if pair.camera == "wrist")
