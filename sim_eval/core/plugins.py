"""Plugins: tasks and policies that other packages register as entry points; each is loaded only when it is used.

Using a name that two packages claim is an error, so that installing a package never changes what runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class Plugin:
    """One entry point of another package."""

    point: EntryPoint

    @property
    def package(self) -> str:
        """The name of the package that registered it."""
        return self.point.dist.name if self.point.dist else "unknown"

    def load(self) -> Any:
        """Imports the object that the entry point names; call it within :meth:`blamed`."""
        return self.point.load()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A context for running the other package's code.

        Raises:
            SimEvalError: the code raised an exception; names the package.
        """
        try:
            yield
        except Exception as error:
            reason = str(error) if isinstance(error, SimEvalError) else f"{type(error).__name__}: {error}"
            raise SimEvalError(
                f"'{self.point.name}' of package '{self.package}' cannot be loaded: {' '.join(reason.split())}; "
                f"repair or uninstall {self.package}"
            ) from error


def plugin_names(group: str) -> list[str]:
    """The names that other packages registered in an entry-point group; nothing is loaded."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group).names)


def find_plugin(group: str, name: str, taken: bool) -> Plugin | None:
    """The plugin that another package registered under the name; None: there is none.

    Args:
        taken: sim_eval itself uses this name.

    Raises:
        SimEvalError: two packages claim the name; names them.
    """
    from importlib.metadata import entry_points

    plugins = [Plugin(point) for point in entry_points(group=group, name=name)]
    owners = ["sim_eval"] * taken + [plugin.package for plugin in plugins]
    if len(owners) > 1:
        raise SimEvalError(
            f"'{name}' ({group}) is claimed by the packages {' and '.join(owners)}: uninstall one or rename its entry"
        )
    return plugins[0] if plugins else None
