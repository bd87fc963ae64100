"""Loads a policy by name, by checkpoint folder or by the address of a server."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from sim_eval.core.errors import SimEvalError, extra
from sim_eval.core.plugins import Plugin, find_plugin, plugin_names
from sim_eval.policies.devices import resolved_name
from sim_eval.policies.policy import AS_SAVED, InferenceConfig, Policy, PolicySpec

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BASELINES = ("zero", "random")
SCRIPTED = "scripted"
SCHEMES = ("ws", "wss")
# Other packages register policies as entry points of this group. An entry point is called as
# ``make(argument, device)`` and returns a Policy: ``argument`` is the text after "NAME:" ("" when there is none),
# ``device`` the name of a torch device, such as cpu or cuda:0.
POLICY_GROUP = "sim_eval.policies"


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints in this package."""
    return sorted(folder.parent.name for folder in CHECKPOINTS.glob("*/config.json"))


def checkpoint_folder(reference: str) -> Path | None:
    """The folder of the shipped checkpoint of that name, else the folder at that path; None: neither exists."""
    folder = CHECKPOINTS / reference if reference in shipped_checkpoints() else Path(reference)
    return folder if folder.is_dir() else None


def is_remote(reference: str) -> bool:
    """Whether this is the address of a server."""
    return reference.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def load_policy(
    reference: str, device: str = "auto", inference: InferenceConfig = AS_SAVED, keys: Path | None = None
) -> Policy:
    """A policy by name, by checkpoint folder or by the address of a server.

    Args:
        reference: ``scripted``, ``zero``, ``random``, a shipped checkpoint, ``NAME`` or ``NAME:ARGUMENT`` of another
            package's policy (see :data:`POLICY_GROUP`), a checkpoint folder, or ``ws://host:port`` of a server that
            speaks openpi's protocol.
        device: the torch device for the network of a checkpoint or of another package's policy; see
            :func:`sim_eval.policies.devices.resolve_device`.
        inference: overrides of a checkpoint's saved inference settings.
        keys: observation keys for third-party servers; see :mod:`sim_eval.policies.remote.keys`.

    Raises:
        SimEvalError: there is no such name or folder, the folder is damaged, the server does not answer, another
            package's policy cannot be loaded, or an option does not apply to this kind of policy.
    """
    name, _, argument = reference.partition(":")
    remote = is_remote(reference)
    ours = (*shipped_checkpoints(), SCRIPTED, *BASELINES, *SCHEMES)
    plugin = None if remote else find_plugin(POLICY_GROUP, name, name in ours)
    overrides = [entry.name for entry in fields(InferenceConfig) if getattr(inference, entry.name) != entry.default]
    if overrides and (remote or plugin or reference in (SCRIPTED, *BASELINES)):
        reason = "is run by its server" if remote else "is run by its own package" if plugin else "has no network"
        raise SimEvalError(f"policy '{reference}' {reason}: leave --{overrides[0].replace('_', '-')} out")
    if keys is not None and not remote:
        raise SimEvalError(f"policy '{reference}' is not a server: leave --keys out")
    if remote:
        with extra("serve"):
            from sim_eval.policies.remote.client import RemotePolicy
        return RemotePolicy(reference, keys)
    if plugin:
        return _load_plugin(plugin, reference, argument, resolved_name(device))
    if reference in BASELINES:
        from sim_eval.policies.baselines import RandomPolicy, ZeroPolicy

        return ZeroPolicy() if reference == "zero" else RandomPolicy()
    if reference == SCRIPTED:
        from sim_eval.policies.scripted.scripted_policy import ScriptedPolicy

        return ScriptedPolicy()
    folder = checkpoint_folder(reference)
    if folder is None:
        names = ", ".join([*shipped_checkpoints(), SCRIPTED, *BASELINES, *plugin_names(POLICY_GROUP)])
        raise SimEvalError(
            f"unknown policy '{reference}': use one of {names}, the folder of a checkpoint, or ws://host:port"
        )
    from sim_eval.policies.spatialvla.checkpoint import load_checkpoint

    return load_checkpoint(folder, device, inference)


def _load_plugin(plugin: Plugin, reference: str, argument: str, device: str) -> Policy:
    if Path(reference).is_dir():
        raise SimEvalError(
            f"'{reference}' is a policy of package '{plugin.package}' and a folder here: write ./{reference} for the "
            "folder"
        )
    with plugin.blamed():
        policy: Policy = plugin.load()(argument, device)
        if not isinstance(policy.spec, PolicySpec):
            raise TypeError(f"its spec is a {type(policy.spec).__name__}, not a PolicySpec")
    return policy
