"""Command lines and configuration files: old names still work, and what does not fit is named in one line."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, get_type_hints

import pytest
import tyro
from annotated_types import Ge

import sim_eval
from sim_eval import __main__ as everything
from sim_eval import collect, compare, doctor, leaderboard, results, rollout, serve, train, verify
from sim_eval.configs import TrainConfig
from sim_eval.console import parse, run
from sim_eval.core import programs
from sim_eval.core.decoding import encode
from sim_eval.core.errors import SimEvalError
from sim_eval.envs.opengl import choose_backend
from sim_eval.help_text import options_of


@dataclass(frozen=True)
class Ward:
    beds: Annotated[int, Ge(1)] = 4
    night: bool = False


@dataclass(frozen=True)
class HospitalConfig:
    """Run a hospital.

    Attributes:
        name: of the hospital.
        doctors: their names.
        share: of the beds in use.
        n_action_steps: actions a day.
        instruction_condition: how a patient is told.
        ward: the ward.
    """

    name: str
    doctors: tuple[str, ...] = ()
    share: float | None = None
    n_action_steps: Annotated[int, Ge(1)] = 4
    instruction_condition: Literal["correct", "counterfactual"] = "correct"
    cache: Path | None = None
    ward: Annotated[Ward, tyro.conf.FlagConversionOff] = field(default_factory=Ward)


def read(*words: str) -> HospitalConfig:
    return parse(HospitalConfig, "hospital", words)


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


FILE = HospitalConfig("North", ("Ann", "Bo"), 1e-3, 2, "counterfactual", Path("x"), Ward(night=True))
YAML = """
name: North
doctors: [Ann, Bo]
share: 1e-3   # a number, although YAML 1.1 reads a word
n_action_steps: 2
instruction_condition: counterfactual
cache: x
ward: {night: true}
"""


def test_a_file_sets_the_defaults_and_options_override_them(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    assert read("--config", path) == FILE
    assert read(f"--config={path}", "--doctors", "Cy", "--ward.beds", "7") == replace(
        FILE, doctors=("Cy",), ward=Ward(7, True)
    )
    assert read("--name", "South", "--config", path, "--ward.night", "False").ward == Ward()
    with pytest.raises(SimEvalError, match="--name"):
        read()


def test_what_a_program_saved_is_such_a_file(tmp_path: Path) -> None:
    saved = {"version": 3, "config": encode(FILE), "episodes": [1, 2]}
    assert read("--config", write(tmp_path, json.dumps(saved), "run.json")) == FILE
    log = json.dumps(saved) + "\n" + json.dumps({"episode": 1}) + "\n{"
    assert read("--config", write(tmp_path, log, "attempts.jsonl")) == FILE


PROGRAMS = {
    train: "",
    collect: "--task robosuite/Lift --out x",
    rollout: "--policy deep_llama",
    verify: "run",
    leaderboard: "runs",
    compare: "one two",
    results: "--trainings a b --runs c --out d",
    doctor: "",
    serve: "--policy deep_llama",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_takes_its_own_options_from_a_file(program: ModuleType, tmp_path: Path) -> None:
    config = next(iter(get_type_hints(program.main).values()))
    asked = parse(config, "program", PROGRAMS[program].split())
    path = write(tmp_path, json.dumps(encode(asked)), "config.json")
    assert parse(config, "program", ["--config", path]) == asked


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nmae: North", "unknown field 'nmae': the fields are name, doctors, share, n_action_steps"),
        ("name: 3", "'name': input should be a valid string, not 3"),
        ("n_action_steps: 0", "'n_action_steps': input should be greater than or equal to 1, not 0"),
        ("n_action_steps: '2'", "'n_action_steps': input should be a valid integer, not '2'"),
        ("n_action_steps: 2.5", "'n_action_steps': input should be a valid integer, not 2.5"),
        ("instruction_condition: right", "'instruction_condition': input should be 'correct' or 'counterfactual'"),
        ("doctors: Ann", "'doctors': input should be a valid array, not 'Ann'"),
        ("ward: 3", "'ward': input should be an object, not 3"),
        ("ward: {bed: 3}", "ward: unknown field 'bed': the fields are beds, night"),
        ("ward: {beds: 0}", "ward: 'beds': input should be greater than or equal to 1, not 0"),
        ("name: 2020-01-01", "no place for date in JSON"),
        ("- name", "must hold a table of fields, not a list"),
        ("", "must hold a table of fields, not a NoneType"),
        ("name: [", "is neither YAML nor JSON"),
        ("name: !!int ''", "is neither YAML nor JSON"),
        ("name: !!bool x", "is neither YAML nor JSON"),
        ("name: !!timestamp x", "is neither YAML nor JSON"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nname: *b", "references are not supported"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 100_000, "maximum recursion depth"),
        ("x" * 2**24, "too long"),
        ("name: \udcff", "is neither YAML nor JSON"),
    ],
)
def test_a_bad_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SimEvalError) as caught:
        read("--config", str(path))
    message = str(caught.value)
    assert str(path) in message
    assert says in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SimEvalError, match=f"--config {path} cannot be read"):
            read("--config", str(path))


def test_an_old_name_works_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert read("--name", "x", "--replan", "2", "--telling=wrong") == read(
        "--name", "x", "--n-action-steps", "2", "--instruction-condition", "counterfactual"
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "--replan is now --n-action-steps" in lines[0]
    assert "--telling is now --instruction-condition" in lines[1]


def test_old_names_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--draws 2 --every 3 --balance 0.2 --set text.layers=3 expert.layers=3 voxel_size=null --seed 4"
    asked = parse(TrainConfig, "train", words.split())
    assert (asked.flow_samples, asked.frame_stride, asked.sampling_temperature, asked.seed) == (2, 3, 1.25, 4)
    assert (asked.network.text.layers, asked.network.expert.layers, asked.network.voxel_size) == (3, 3, None)
    assert len(capsys.readouterr().err.splitlines()) == 4
    assert parse(TrainConfig, "train", ["--balance", "1"]).sampling_temperature == float("inf")
    assert parse(TrainConfig, "train", ["--set", "expert.horizon=4"]).network.expert.chunk_size == 4
    for wrong in ("2", "x", "nan"):
        with pytest.raises(SimEvalError, match="balance must lie between 0 and 1"):
            parse(TrainConfig, "train", ["--balance", wrong])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--name x --n-action-steps 0", "--n-action-steps: input should be greater than or equal to 1, not 0"),
        ("--name x --n-action-steps many", "give --n-action-steps N, not 'many'; see hospital --help"),
        ("--name x --share many", "give --share X, not 'many'"),
        ("--name x --instruction-condition no", "give --instruction-condition {correct,counterfactual}, not 'no'"),
        ("--name x --shaer 3", "unrecognized options: --shaer 3 (similar: --share)"),
        ("--name", "Missing value for argument '--name'"),
        ("", "--name TEXT must be given"),
        ("--name x --config", "Missing value for argument '--config'"),
    ],
)
def test_a_bad_command_line_is_one_line(words: str, says: str) -> None:
    with pytest.raises(SimEvalError) as caught:
        read(*words.split())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def shown(capsys: pytest.CaptureFixture[str], config: type, *words: str) -> str:
    """What a program prints instead of running, 100 columns wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as stop:
            parse(config, "hospital", words)
    assert stop.value.code == 0
    return capsys.readouterr().out


HELP = """\
usage: hospital --name TEXT [OPTIONS]

Run a hospital.

options
  --name TEXT             of the hospital (required)
  --doctors TEXT [TEXT ...]
                          their names
  --share X               of the beds in use
  --n-action-steps N      actions a day (default: 4)
  --instruction-condition {correct,counterfactual}
                          how a patient is told (default: correct)
  --cache PATH

help
  --config FILE           YAML or JSON file that sets the defaults; a file in which a program saved
                          its options will do
  -h, --help              show this text
  --help-all              show the options --ward.FIELD as well
"""


def test_the_help_names_types_and_defaults_that_say_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, HospitalConfig, "--help") == HELP
    everything = shown(capsys, HospitalConfig, "--help-all")
    assert "options ward.FIELD\n  --ward.beds N" in everything
    assert "--ward.night {True,False}" in everything


def test_the_help_shows_the_defaults_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, HospitalConfig, "--config", write(tmp_path, YAML), "--help")
    for default in ("of the hospital (default: North)", "their names (default: Ann Bo)", "in use (default: 0.001)"):
        assert default in text
    assert "(required)" not in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_is_explained_in_a_section(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the programs with many options no option is left without a section, and no line is too wide."""
    config = next(iter(get_type_hints(program.main).values()))
    text = shown(capsys, config, "--help")
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"None|\bSTR\b|default: (\)|''|False)", text)
    options = list(options_of(config, config(*[tyro.MISSING] * text.count("(required)"))))
    assert all(option.about for option in options)
    if sections := getattr(config, "SECTIONS", {}):
        assert {option.section for option in options if not option.nested} == set(sections)


def test_old_json_file_of_doctor_is_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--json", "findings.json"], ["--json=findings.json"]):
        asked = parse(doctor.DoctorConfig, "doctor", words)
        assert (asked.out, asked.json) == (Path("findings.json"), False)
        assert "--json is now --out FILE" in capsys.readouterr().err
    for words in (["--json"], ["--json", "--device", "cpu"]):
        assert parse(doctor.DoctorConfig, "doctor", words).json
    assert parse(leaderboard.LeaderboardArguments, "leaderboard", ["--json", "runs"]).runs == (Path("runs"),)


@dataclass(frozen=True)
class SickConfig:
    """Show figures of an unstable simulation."""

    json: bool = False


def test_figures_stand_alone_whatever_mujoco_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo also writes its log here
    monkeypatch.setattr(sys, "argv", ["sick", "--json"])

    def main(config: SickConfig) -> int:
        choose_backend()
        import mujoco

        body = "<body><freejoint/><geom size='1'/></body>"
        model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
        data = mujoco.MjData(model)
        data.qpos[:] = float("nan")
        mujoco.mj_step(model, data)
        print(json.dumps({"unstable": True}))
        return 0

    with pytest.raises(SystemExit):
        run(main, SickConfig, "sick")
    shown = capfd.readouterr()
    assert json.loads(shown.out) == {"unstable": True}
    assert "Nan, Inf or huge value in QPOS" in shown.err
    print("as before")
    assert capfd.readouterr().out == "as before\n"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Runs ``sim-eval WORDS`` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sim-eval", *words])
    try:
        everything.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_one_command_has_all_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"sim_eval.{each.name}" for each in programs.PROGRAMS} >= {program.__name__ for program in PROGRAMS}
    assert call(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(f"  {each.name:<13}{each.summary}" in listed for each in programs.PROGRAMS)
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"sim_eval {sim_eval.__version__}\n"
    assert call(monkeypatch, "leaderbord") == 2
    assert "no program 'leaderbord' (similar: leaderboard); see sim-eval --help" in capsys.readouterr().err
    call(monkeypatch, "train", "--help")
    assert capsys.readouterr().out.startswith("usage: sim-eval train [OPTIONS]")
    assert call(monkeypatch, "rollout", "--polcy", "zero") == 2
    assert "(similar: --policy); see sim-eval rollout --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "form"),
    [
        ("/home/me/.venv/bin/sim-eval", "sim-eval train"),
        ("C:/envs/Scripts/sim-eval.exe", "sim-eval train"),
        ("/home/me/sim_eval/sim_eval/__main__.py", "python -m sim_eval train"),
        ("/home/me/sim_eval/sim_eval/rollout.py", "python -m sim_eval.train"),
        ("my_script.py", "python -m sim_eval.train"),
        ("", "python -m sim_eval.train"),
    ],
)
def test_hints_have_the_form_that_the_user_typed(called: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert programs.command("train") == form
