"""The doctor's checks, one by one: what is sound passes, and each error is found and named."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim_eval import collect
from sim_eval.core.normalization import FieldStats, NormalizationStats
from sim_eval.core.types import ActionSpec, CameraView, RenderConfig, Simulator
from sim_eval.datasets.episode_file import Episode, episode_files, read_episode
from sim_eval.diagnosis.answers import imitation_findings, other_mode
from sim_eval.diagnosis.demonstrations import Replay, first_pictures, replay, replay_findings
from sim_eval.diagnosis.examination import look_around
from sim_eval.diagnosis.field_statistics import against_data, against_environment, sound_statistics
from sim_eval.diagnosis.findings import Finding, examine, group_text, level_above, summary
from sim_eval.diagnosis.geometry import Moment, ray_lengths, scene_findings
from sim_eval.diagnosis.machine import locked, other_versions, unmet_requirements
from sim_eval.diagnosis.pictures import picture_findings
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.policies.registry import load_policy

TASK = "robosuite/LiftWide"
SIDE = 64
OPTIONS = RenderConfig(height=SIDE, width=SIDE)
MISTAKES: dict[str, Callable[[CameraView], CameraView]] = {
    "upside down": lambda view: replace(view, rgb=view.rgb[::-1], depth=view.depth[::-1]),
    "mirrored": lambda view: replace(view, rgb=view.rgb[:, ::-1], depth=view.depth[:, ::-1]),
    "turned by 180 degrees": lambda view: replace(view, rgb=view.rgb[::-1, ::-1], depth=view.depth[::-1, ::-1]),
    "depth in millimetres": lambda view: replace(view, depth=view.depth * 1000),
    "depth along the ray": lambda view: replace(view, depth=(view.depth * ray_lengths(view)).astype(np.float32)),
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    made = get_task(TASK).make(OPTIONS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def moments(simulator: Simulator) -> list[Moment]:
    return list(look_around(simulator))


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return collected(tmp_path_factory.mktemp("demonstrations"))


def collected(out: Path, size: int = SIDE) -> Episode:
    collect.main(collect.CollectConfig(task=TASK, out=out, episodes=1, size=size))
    return read_episode(episode_files(out)[0])


def altered(moments: Sequence[Moment], change: Callable[[CameraView], CameraView], *cameras: str) -> list[Moment]:
    """The moments, with some cameras' pictures changed; without names: all."""

    def changed(moment: Moment) -> Moment:
        views = moment.observation.views
        mine = {name: change(view) if name in (cameras or views) else view for name, view in views.items()}
        return replace(moment, observation=replace(moment.observation, views=mine))

    return [changed(moment) for moment in moments]


def named(findings: Sequence[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def levels(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_a_sound_scene_has_no_finding_but_ok(moments: list[Moment]) -> None:
    found = levels(list(scene_findings(moments)))
    assert {"reprojection", "known positions", "wrist: depth here", "agentview: rgb and depth"} < set(found)
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("camera", ["agentview", "wrist", "agentview and wrist"])
def test_reprojection_names_the_mistake_and_its_camera(moments: list[Moment], mistake: str, camera: str) -> None:
    found = named(list(scene_findings(altered(moments, MISTAKES[mistake], *camera.split(" and ")))), "reprojection")
    assert found.level == "fault"
    assert found.measured.startswith(f"{camera}: {mistake}")
    assert found.remedy


def test_cameras_that_agree_on_a_wrong_place_are_found_by_the_objects(moments: list[Moment]) -> None:
    def moved(view: CameraView) -> CameraView:
        pose = view.camera_to_world.copy()
        pose[2, 3] -= 0.15
        return replace(view, camera_to_world=pose)

    found = levels(list(scene_findings(altered(moments, moved))))
    assert found["reprojection"] == "ok"
    assert found["known positions"] == "fault"


def test_one_camera_alone_shows_what_its_depth_is(moments: list[Moment]) -> None:
    def alone(moment: Moment) -> Moment:
        views = {"agentview": moment.observation.views["agentview"]}
        return replace(moment, observation=replace(moment.observation, views=views))

    single = [alone(moment) for moment in moments]
    assert set(levels(list(scene_findings(single))).values()) == {"ok"}
    millimetres = list(scene_findings(altered(single, MISTAKES["depth in millimetres"])))
    assert "divide by 1000" in named(millimetres, "agentview: depth here").remedy
    assert named(millimetres, "known positions").level == "fault"
    holes = altered(single, lambda view: replace(view, depth=np.where(view.depth > 1, np.inf, view.depth)))
    assert named(examine("cameras", lambda: scene_findings(holes)), "agentview: depth here").level == "fault"
    turned = altered(single, MISTAKES["upside down"])
    assert named(list(scene_findings(turned)), "known positions").level == "fault"


def test_a_picture_turned_against_its_depth_is_found(moments: list[Moment]) -> None:
    found = list(scene_findings(altered(moments, lambda view: replace(view, rgb=view.rgb[::-1]), "wrist")))
    assert levels(found)["reprojection"] == "ok"
    assert named(found, "wrist: rgb and depth").level == "fault"
    assert "upside down" in named(found, "wrist: rgb and depth").measured
    assert named(found, "agentview: rgb and depth").level == "ok"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_recorded_pictures_are_compared_with_rendered_ones(moments: list[Moment], mistake: str) -> None:
    views = [moment.observation.views["agentview"] for moment in moments]
    pairs = [(MISTAKES[mistake](view), view) for view in views]
    found = list(picture_findings("agentview", pairs))
    assert named(found, "agentview: depth").level == "fault"
    assert named(found, "agentview: depth").measured.startswith(mistake)
    assert named(found, "agentview: rgb").level == ("ok" if "depth" in mistake else "fault")


def test_exchanged_colours_and_another_size_are_found(moments: list[Moment]) -> None:
    view = moments[0].observation.views["agentview"]
    found = list(picture_findings("agentview", [(replace(view, rgb=view.rgb[..., ::-1]), view)]))
    assert "red and blue exchanged" in named(found, "agentview: rgb").measured
    assert named(found, "agentview: depth").level == "ok"
    small = replace(view, rgb=view.rgb[::2, ::2], depth=view.depth[::2, ::2])
    assert levels(list(picture_findings("agentview", [(small, view)]))) == {"agentview: size": "fault"}


def test_a_demonstration_replays_and_looks_as_recorded(simulator: Simulator, episode: Episode) -> None:
    found = list(first_pictures(simulator, [episode]))
    assert set(levels(found).values()) == {"ok"}
    again = replay(simulator, episode, RolloutProtocol())
    assert again == Replay(success=True, identical=True, drift=0.0, motion=1.0, error=None)
    assert set(levels(list(replay_findings([again]))).values()) == {"ok"}


def test_actions_that_mean_something_else_fail_the_replay(simulator: Simulator, episode: Episode) -> None:
    other = replace(episode, executed_actions=episode.executed_actions / 2)
    found = list(replay_findings([replay(simulator, other, RolloutProtocol())]))
    assert levels(found) == {"replays": "fault", "motion an action": "fault"}
    assert "0 of 1" in named(found, "replays").measured


def test_a_control_rate_that_no_field_tells_of_shows_in_the_motion(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim_eval.envs.robosuite_sim.CONTROL_HZ", 10)
    slow = replace(collected(tmp_path), action=simulator.spec.action)  # it claims 20 Hz
    found = list(replay_findings([replay(simulator, slow, RolloutProtocol())]))
    assert named(found, "motion an action").level == "fault"


def statistics(mode: str = "mean_std") -> NormalizationStats:
    """Of six-dimensional actions and two proprio fields, every dimension another."""
    rng = np.random.default_rng(0)

    def field(offset: float, size: int) -> FieldStats:
        values = offset + rng.normal(rng.uniform(-0.3, 0.3, size), rng.uniform(0.05, 0.25, size), (500, size))
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        return FieldStats(*(tuple(part.tolist()) for part in (values.mean(axis=0), values.std(axis=0), low, high)))

    fields = {"action": field(0.0, 6), "eef_pos": field(0.5, 3), "other_pos": field(-0.5, 3)}
    return NormalizationStats(mode, fields)  # type: ignore[arg-type]


def changed(name: str, change: Callable[[FieldStats], FieldStats]) -> NormalizationStats:
    sound = statistics()
    return replace(sound, fields={**sound.fields, name: change(sound.fields[name])})


PERMUTED = (2, 0, 1, 3, 4, 5)
SWAPS: dict[str, tuple[NormalizationStats, str]] = {
    "mean and std": (changed("action", lambda f: replace(f, mean=f.std, std=f.mean)), "mean and std are exchanged"),
    "quantiles": (changed("action", lambda f: replace(f, q01=f.q99, q99=f.q01)), "q01 and q99 are exchanged"),
    "kinds": (changed("action", lambda f: FieldStats(f.q01, f.q99, f.mean, f.std)), "where q01 and q99 belong"),
    "dimensions": (
        changed("action", lambda f: FieldStats(*(tuple(part[i] for i in PERMUTED) for part in vars(f).values()))),
        "dimensions are permuted",
    ),
    "fields": (changed("eef_pos", lambda f: statistics().fields["other_pos"]), "they are those of other_pos"),
}


@pytest.mark.parametrize("trained_on", [True, False])
@pytest.mark.parametrize("swap", SWAPS)
def test_swapped_statistics_are_found_and_the_swap_named(swap: str, trained_on: bool) -> None:
    stats, told = SWAPS[swap]
    name = "eef_pos" if swap == "fields" else "action"
    found = list(against_data(stats, statistics(), ["action", "eef_pos"], trained_on))
    assert levels(found) == {
        "statistics of action": "fault" if name == "action" else "ok",
        "statistics of eef_pos": "fault" if name == "eef_pos" else "ok",
    }
    assert told in named(found, f"statistics of {name}").measured


def test_sound_statistics_pass_also_against_a_part_of_the_data() -> None:
    sound = statistics()
    part = changed("eef_pos", lambda f: replace(f, mean=f.q99, q01=f.mean, std=tuple(np.array(f.std) / 3)))
    assert set(levels(list(against_data(sound, sound, list(sound.fields), True))).values()) == {"ok"}
    assert set(levels(list(against_data(sound, part, ["eef_pos"], False))).values()) == {"ok"}
    assert set(levels(list(against_data(sound, part, ["eef_pos"], True))).values()) == {"fault"}


def test_statistics_that_cannot_be_are_found_without_data() -> None:
    action = ActionSpec(tuple("abcdef"), (-1.0,) * 6, (1.0,) * 6, "ee_delta_pose", 20.0)
    assert levels(list(sound_statistics(statistics(), action))) == {"statistics themselves": "ok"}
    for wrong in (SWAPS["quantiles"][0], changed("action", lambda f: replace(f, q99=(7.0,) * 6))):
        assert levels(list(sound_statistics(wrong, action))) == {"statistics themselves": "fault"}


@pytest.mark.parametrize("mode", ["mean_std", "quantile"])
def test_proprioception_in_another_unit_is_found(mode: str) -> None:
    stats = statistics(mode)
    seen = np.array(stats.fields["eef_pos"].mean)
    assert levels(list(against_environment(stats, [{"eef_pos": seen}], ["eef_pos"]))) == {"eef_pos here": "ok"}
    found = list(against_environment(stats, [{"eef_pos": 1000 * seen}], ["eef_pos"]))
    assert levels(found) == {"eef_pos here": "fault"}


def test_a_swapped_mode_shows_in_what_the_policy_answers(tmp_path: Path) -> None:
    episode = collected(tmp_path, size=128)
    policy = load_policy("deep_llama", "cpu")
    swapped = other_mode(policy)
    assert swapped is not None
    assert swapped.processor.stats.mode == "quantile"
    assert levels(list(imitation_findings(policy, [episode], 4))) == {"imitation": "ok"}
    (found,) = imitation_findings(swapped, [episode], 4)
    assert found.level == "fault"
    assert found.remedy == "set mode mean_std in processor.json"
    assert levels(list(imitation_findings(load_policy("zero"), [episode], 4))) == {"imitation": "warning"}


def test_packages_are_compared_with_what_is_required_and_locked() -> None:
    version_of = {"torch": "2.13.0+cpu", "numpy": "1.26.4"}.get
    assert unmet_requirements(["torch>=2.13", "numpy<2"], version_of) == []
    unmet = unmet_requirements(["torch==2.14.0", "h5py", "numpy<2"], version_of)
    assert unmet == ["torch==2.14.0 needed, 2.13.0+cpu installed", "h5py needed, none installed"]
    lock = locked("# every package\ntorch==2.13.0\nnumpy==1.26.5  # why\nh5py==3.16.0\n")
    assert other_versions(lock, version_of) == {"numpy": "numpy 1.26.4, locked 1.26.5"}


def test_what_is_not_a_number_is_no_good_sign() -> None:
    assert [level_above(value, 1, 2) for value in (1, 2, 3, float("nan"))] == ["ok", "warning", "fault", "fault"]


def test_a_check_that_breaks_off_is_a_fault() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("first", "ok", "fine")
        raise ValueError("two\nlines")

    first, last = examine("broken", broken)
    assert first.name == "first"
    assert (last.level, last.measured) == ("fault", "broke off (ValueError: two lines)")


def test_the_report_is_aligned_and_coloured_only_when_asked() -> None:
    findings = [Finding("a", "ok", "fine"), Finding("longer", "fault", "bad", "mend it")]
    assert group_text("title", findings, colour=False).splitlines() == [
        "title",
        "  ok       a       fine",
        "  fault    longer  bad",
        "                   remedy: mend it",
    ]
    assert "\033[31mfault" in group_text("title", findings, colour=True)
    assert summary([*findings, findings[0]]) == "doctor: 1 fault, 0 warnings, 2 ok"
