"""The documents' examples do what their pages say, packages as installed ones; commands and links are right."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim_eval import console
from sim_eval.envs.tasks import get_task
from sim_eval.policies.remote.keys import read_keys

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "extending"
# A program that another test imported runs once more, as ``__main__``.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / page).read_text(), flags=re.S | re.M)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which packages are imported, until the test is over."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    get_task.cache_clear()


def install(page: str, folder: Path) -> None:
    """What pip leaves of the page's package: its module, which is the page's last example, and a dist-info."""
    (points,), (*_, code) = blocks(page, "toml"), blocks(page, "python")
    groups = tomllib.loads(points)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in groups.items()
    ]
    (value,) = [value for each in groups.values() for value in each.values()]
    module = value.partition(":")[0]
    assert f"`{module}.py`" in (PAGES / page).read_text()
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """``python -m MODULE OPTIONS`` in this process; its exit code."""
    assert words[0] == "-m"
    monkeypatch.setattr(sys, "argv", words[1:])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    return int(stop.value.code or 0)


def roll(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Runs the page's command; the episodes' lines."""
    assert run([*words, "--out", str(folder / "run")], monkeypatch) == 0
    return [json.loads(line) for line in (folder / "run" / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("page", ["policy.md", "task.md", "simulator.md"])
def test_each_example_runs(page: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(page, site)
    command, *_ = blocks(page, "sh")
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "sim_eval.rollout"]
    episodes = roll(words[1:], site, monkeypatch)
    assert [episode["error"] for episode in episodes] == [None, None]


def test_the_policy_solves_the_task_from_what_it_sees(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("policy.md", site)
    install("task.md", site)
    words = shlex.split("-m sim_eval.rollout --policy seeker:0.5 --task acme/Reach --episodes 3 --video none")
    assert [episode["success"] for episode in roll(words, site, monkeypatch)] == [True] * 3


def test_the_examples_of_gymnasium_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *examples, _ = blocks("../gymnasium.md", "python")
    if importlib.util.find_spec("moviepy") is None:
        examples = [code for code in examples if "RecordVideo" not in code]
    variables: dict[str, object] = {}
    for code in examples:
        exec(compile(code, "gymnasium.md", "exec"), variables)


@pytest.mark.slow
@pytest.mark.peers
def test_ppo_learns_to_reach_and_is_scored(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    install("../gymnasium.md", site)
    monkeypatch.chdir(site)
    importlib.import_module("acme_ppo").train("reach.zip")
    (command,) = blocks("../gymnasium.md", "sh")
    episodes = roll(shlex.split(command)[1:], site, monkeypatch)
    assert [episode["error"] for episode in episodes] == [None] * 20
    assert sum(bool(episode["success"]) for episode in episodes) >= 15


def test_the_key_file_is_read(tmp_path: Path) -> None:
    (text,) = blocks("server.md", "toml")
    (tmp_path / "keys.toml").write_text(text)
    assert read_keys(tmp_path / "keys.toml").cameras == {"agentview": (224, 224), "wrist": (224, 224)}


def made() -> list[str]:
    """What ``make reproduce`` and ``make mt50`` run."""
    make = ["make", "--dry-run", "--assume-old=setup", "reproduce", "mt50"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    return [line.partition(" -m ")[2] for line in shown.splitlines() if " -m sim_eval." in line]


def written() -> list[str]:
    """The commands in README.md and docs/programs.md, as ``python -m`` takes them."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/programs.md"))
    found = re.findall(
        r"^sim-eval (\S.*?) *(?:#.*)?$|`sim-eval ([a-z]+ -[^`]*)`|`sim-eval ([a-z]+ runs[^`]*)`", text, re.M
    )
    return [f"sim_eval.{''.join(words)}" for words in found] + re.findall(r"python -m (sim_eval\.\S+ -[^`\n]*)", text)


@pytest.mark.parametrize(("commands", "least"), [(made, 12), (written, 16)])
def test_the_commands_are_accepted(
    commands: Callable[[], list[str]],
    least: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def only_parse(_: object, arguments: type[object], program: str) -> None:
        console.parse(arguments, program)
        sys.exit(0)

    monkeypatch.setattr(console, "run", only_parse)
    found = commands()
    assert len(found) >= least
    saved = tmp_path / "run.json"
    saved.write_text('{"config": {"policy": "deep_llama"}}')
    for command in found:
        assert run(["-m", *shlex.split(command.replace("runs/a/run.json", str(saved)))], monkeypatch) == 0
    assert capfd.readouterr().err == "", "no option has an old name"


def headings(page: Path) -> set[str]:
    """GitHub's anchors of a page."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            there = page.parent / name if name else page
            assert there.exists(), target
            assert not anchor or anchor in headings(there), target


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
