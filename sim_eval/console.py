"""What all command lines share: parsing, ``--config``, old names of options, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_type_hints

from sim_eval.core import old_files
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.help_text import HELP, HELP_ALL, Option, help_text, options_of

Config = TypeVar("Config")

BAD_INPUT, INTERRUPTED = 2, 130
CONFIG_CHARACTERS = 2**20
# What tyro says of a value of another type, and of one that is no choice.
MISTYPED = re.compile(r"Error parsing (\S+): .*[ \[]('.*?')\]?$|invalid choice ('.*?') for argument '(\S+)'")
# Options from before 0.2, which still work: the name of today, and how a value is converted.
OLD_OPTIONS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "replan": ("n_action_steps", str),
    "settle": ("post_success_steps", str),
    "telling": ("instruction_condition", lambda word: old_files.CONDITIONS.get(word, word)),
    "draws": ("flow_samples", str),
    "every": ("frame_stride", str),
    "balance": ("sampling_temperature", lambda number: str(old_files.temperature(number))),
    "rehearse": ("dry_run_first", str),
}


def parse(config: type[Config], program: str, words: Sequence[str] | None = None) -> Config:
    """The command line as the dataclass ``config``; ``--help`` and ``--help-all`` print and exit.

    ``--config FILE`` sets the defaults. Where the default of a nested dataclass depends on other fields, these are
    named in ``config.PRESETS``.

    Args:
        words: the options; None: of this process.

    Raises:
        SimEvalError: the command line or the file does not fit ``config``.
    """
    import tyro

    typed = list(_renamed(config, list(sys.argv[1:] if words is None else words)))
    path = _typed_fields({"config": Path}, typed).get("config")
    default = _defaults(config, {} if path is None else _read_config(path, config), typed, path)
    if asked := {*HELP, HELP_ALL} & set(typed):
        width = min(100, shutil.get_terminal_size((100, 0)).columns)
        print(help_text(config, program, default, HELP_ALL in asked, width))
        sys.exit(0)
    line: Any = dataclasses.make_dataclass(
        "Line",
        [
            ("config", Path | None, None),
            ("options", Annotated[config, tyro.conf.arg(name="")], dataclasses.field(default_factory=lambda: default)),
        ],
    )
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            options = tyro.cli(line, prog=program, add_help=False, args=typed).options
    except SystemExit:
        mistake = _mistake(drawn.getvalue(), list(options_of(config, default)))
        raise SimEvalError(f"{mistake}; see {program} --help") from None
    return decode(config, options, named=lambda name: "--" + re.sub(r"\.\d+$", "", name).replace("_", "-"))


def run(main: Callable[[Config], int], config: type[Config], program: str) -> NoReturn:
    """Parses, runs ``main``, exits with its code.

    A :class:`SimEvalError` is printed as one line (exit code 2), and so is Ctrl-C (exit code 130), with the message
    of the KeyboardInterrupt when it has one.
    """
    try:
        options = parse(config, program)
        figures = getattr(options, "json", False) or getattr(options, "csv", False)
        with _figures_alone() if figures else contextlib.nullcontext():
            code = main(options)
        sys.stdout.flush()
    except SimEvalError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


@contextlib.contextmanager
def _figures_alone() -> Iterator[None]:
    """What C libraries print meanwhile, such as MuJoCo's warnings, goes to stderr; Python's output comes at the end."""
    printed = io.StringIO()
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C has a buffer of its own
        os.dup2(stdout, 1)
        os.close(stdout)
        sys.stdout.write(printed.getvalue())


def _mistake(drawn: str, options: Sequence[Option]) -> str:
    """What is wrong with a command line, in one line.

    Args:
        drawn: the box of several lines that tyro draws; the text above its first rule is the message.
        options: of the program.
    """
    lines = [line.strip("│ ") for line in drawn.splitlines() if not line.startswith(("╭", "╰"))]
    message, *rest = re.split(r" *──+ *", " ".join(line for line in lines if line))
    _, found, unknown = " ── ".join([message, *rest]).partition("Unrecognized options: ")
    if found:
        words = re.split(r"[,\s]+", unknown.partition(" ──")[0])
        names = [option.words.partition(" ")[0] for option in options]
        near = [name for word in words if word.startswith("--") for name in get_close_matches(word, names, 1)]
        return f"unrecognized options: {' '.join(words)}" + f" (similar: {', '.join(near)})" * bool(near)
    if message.startswith("Missing from"):
        missing = [each.words for each in options if each.needed and each.words.split()[0] in message.split()]
        return f"{' and '.join(missing)} must be given"
    message = message.partition(" Got errors:")[0].rstrip(".")
    if wrong := MISTYPED.match(message):
        name, value = wrong[1] or wrong[4], wrong[2] or wrong[3]
        typed = next((option.words for option in options if option.words.split()[0] == name), name)
        return f"give {typed}, not {value}"
    return message or "the command line cannot be read"


def named_tasks(names: str) -> list[str]:
    """The tasks that an option names: tasks and suites, separated by commas.

    Raises:
        SimEvalError: there is no such task or suite.
    """
    from sim_eval.envs.tasks import expand

    return expand(name.strip() for name in names.split(",") if name.strip())


def make_folder(out: Path) -> None:
    """Makes the folder that ``--out`` names, with its parents.

    Raises:
        SimEvalError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SimEvalError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from error


def _typed_fields(kinds: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Those of some fields that the command line sets; mistakes are left to the parsing of the whole."""
    import tyro

    kind: Any = dataclasses.make_dataclass("Fields", [(name, hint | None, None) for name, hint in kinds.items()])
    with contextlib.suppress(SystemExit):
        fields, _ = tyro.cli(kind, args=words, add_help=False, return_unknown_args=True, console_outputs=False)
        return {name: value for name, value in vars(fields).items() if value is not None}
    return {}


def _defaults(config: type[Config], table: Mapping[str, Any], words: Sequence[str], path: Path | None) -> Config:
    """An instance whose fields are the command line's defaults.

    Args:
        table: fields of the file ``path``; a nested table may set only some fields.

    Raises:
        SimEvalError: a field is unknown or has the wrong type.
    """
    import tyro

    fields = dataclasses.fields(cast(Any, config))
    hints = get_type_hints(config, include_extras=True)
    nested = {name: kind for name, kind in get_type_hints(config).items() if dataclasses.is_dataclass(kind)}
    partial: Any = dataclasses.make_dataclass(
        config.__name__, [(each.name, dict if each.name in nested else hints[each.name], None) for each in fields]
    )
    decoded = decode(partial, table, str(path))
    values = {name: getattr(decoded, name) for name in table if name not in nested}
    missing = dataclasses.MISSING
    required = {each.name: tyro.MISSING for each in fields if each.default is each.default_factory is missing}
    presets = _typed_fields({name: hints[name] for name in getattr(config, "PRESETS", ())}, words)
    base = config(**{**required, **values, **presets})
    parts = {
        name: decode(cast(Any, kind), _merged(encode(getattr(base, name)), table[name]), f"{path}: {name}")
        for name, kind in nested.items()
        if name in table
    }
    return cast(Config, dataclasses.replace(cast(Any, base), **parts))


def _merged(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the values of the table; tables in both are merged likewise."""
    merged = {**base, **table}
    for name in base.keys() & table.keys():
        if isinstance(base[name], dict) and isinstance(table[name], dict):
            merged[name] = _merged(base[name], table[name])
    return merged


def _read_config(path: Path, config: type) -> dict[str, Any]:
    """The fields in a file, or under ``config`` in a file that a program saved.

    Raises:
        SimEvalError: the file cannot be read, or holds something else.
    """
    import yaml

    try:
        with path.open() as file:  # the first line of a log is its head
            text = file.readline(CONFIG_CHARACTERS) if path.suffix == ".jsonl" else file.read(CONFIG_CHARACTERS)
        if len(text) == CONFIG_CHARACTERS:
            raise ValueError("too long")
        table = json.loads(text) if path.suffix.startswith(".json") else yaml.load(text, _yaml_loader())
    except OSError as error:
        raise SimEvalError(f"--config {path} cannot be read ({error.strerror}): check the path") from error
    except (AttributeError, LookupError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SimEvalError(f"--config {path} is neither YAML nor JSON ({reason}): correct the file") from error
    if isinstance(table, dict) and isinstance(table.get("config"), dict) and not hasattr(config, "config"):
        table = table["config"]
    if not isinstance(table, dict):
        raise SimEvalError(f"--config {path} must hold a table of fields, not a {type(table).__name__}")
    return table


def _yaml_loader() -> Any:
    """Reads plain values: 1e-3 is a number, as in YAML 1.2, and references, which can make a small file huge, fail."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("references are not supported")
            return super().compose_node(parent, index)

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _renamed(config: type, words: Sequence[str]) -> Iterator[str]:
    """The command line in today's names; each old name gets a warning on stderr."""
    fields = {each.name for each in dataclasses.fields(cast(Any, config))}
    convert: Callable[[str], list[str]] | None = None
    for word, following in zip_longest(words, words[1:], fillvalue="-"):
        option, equals, rest = word.partition("=")
        old = option.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            yield from [word] if convert is None else convert(word)
            continue
        convert = None
        if old == "set" and "network" in fields:
            convert, new = _network_option, "--network.FIELD VALUE"
        elif old in OLD_OPTIONS and (now := OLD_OPTIONS[old])[0] in fields and old not in fields:
            convert, new = (lambda text, change=now[1]: [change(text)]), f"--{now[0].replace('_', '-')}"
            yield new
        elif old == "json" and getattr(config, "JSON_WAS_A_FILE", False) and (equals or following[0] != "-"):
            convert, new = (lambda path: [path]), "--out FILE"
            yield "--out"
        else:
            yield word
            continue
        print(f"warning: {option} is now {new}; the old name will be removed", file=sys.stderr)
        yield from convert(rest) if equals else ()


def _network_option(assignment: str) -> list[str]:
    name, _, value = (part.strip() for part in assignment.replace("expert.horizon", "expert.chunk_size").partition("="))
    return [f"--network.{name.replace('_', '-')}", {"null": "None", "true": "True", "false": "False"}.get(value, value)]
