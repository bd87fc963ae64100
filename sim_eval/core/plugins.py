"""What other packages add by entry points: looked up by name, and loaded only when that name is asked for.

A clash of names is refused when the name is asked for, so that installing a package never changes what runs.
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
        """The name of the package that it came with."""
        return self.point.dist.name if self.point.dist else "unknown"

    def load(self) -> Any:
        """Imports what the entry point names; call it within :meth:`blamed`."""
        return self.point.load()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Around the other package's code.

        Raises:
            SimEvalError: it raised something; names the package.
        """
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, SimEvalError) else f"{type(error).__name__}: {error}"
            raise SimEvalError(
                f"'{self.point.name}' of package '{self.package}' cannot be loaded: {' '.join(told.split())}; "
                f"mend or uninstall {self.package}"
            ) from error


def plugin_names(group: str) -> list[str]:
    """The names that other packages registered in an entry-point group; loads nothing."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group).names)


def find_plugin(group: str, name: str, taken: bool) -> Plugin | None:
    """What other packages registered under the name; None: nothing.

    Args:
        taken: sim_eval has something of this name itself.

    Raises:
        SimEvalError: the name stands for two things; names the packages.
    """
    from importlib.metadata import entry_points

    found = [Plugin(point) for point in entry_points(group=group, name=name)]
    owners = ["sim_eval"] * taken + [plugin.package for plugin in found]
    if len(owners) > 1:
        raise SimEvalError(
            f"'{name}' ({group}) is claimed by the packages {' and '.join(owners)}: uninstall one or have it renamed"
        )
    return found[0] if found else None
