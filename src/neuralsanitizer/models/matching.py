"""Fitting a file's tensors to a network's parameters: by name, by name after a common prefix, or by order and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from neuralsanitizer.errors import ModelError

__all__ = ["match"]

_LISTED = 10  # keys of each kind that an error lists
_COUNTER = "num_batches_tracked"  # of batch normalisation: old files lack it, and evaluation ignores it

Named = Mapping[str, Tensor]


def match(given: Named, module: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name a file's tensors as a network names them.

    Args:
        given: Tensors by name, as in the file.
        module: The network; its weights are not touched (it may be on the meta device).

    Returns:
        Tensors by the network's names, all of them, and notes on what was done.

    Raises:
        ModelError: They do not fit; the message lists what is missing, left over, and of the wrong shape.
    """
    expected = module.state_dict()
    wanted = {name: tensor for name, tensor in expected.items() if not name.endswith(_COUNTER)}
    offered = {name: tensor for name, tensor in given.items() if not name.endswith(_COUNTER)}
    if _fits(offered, wanted):
        return _complete(given, expected), ()
    if len(offered) != len(wanted):  # no renaming helps
        raise ModelError(_mismatch(offered, wanted))
    for renamed, note in _without_prefix(given, wanted):
        if _fits({k: v for k, v in renamed.items() if not k.endswith(_COUNTER)}, wanted):
            return _complete(renamed, expected), (note,)
    for order in (list(offered), sorted(offered, key=_natural)):
        pairs = _by_order(offered, order, wanted)
        if pairs is not None:
            renamed = {new: offered[old] for old, new in pairs.items()}
            example = next(iter(pairs.items()))
            note = f"names differ: matched by order and shape ({example[0]} is {example[1]}, and so on)"
            return _complete(renamed, expected), (note,)
    raise ModelError(_mismatch(offered, wanted))


def _fits(offered: Named, wanted: Named) -> bool:
    return offered.keys() == wanted.keys() and all(offered[name].shape == wanted[name].shape for name in wanted)


def _complete(renamed: Named, expected: Named) -> dict[str, Tensor]:
    """All of the network's entries; batch normalisation's counters are set to 0 where the file has none."""
    return {name: renamed.get(name, tensor.new_zeros((), device="cpu")) for name, tensor in expected.items()}


def _without_prefix(given: Named, wanted: Named) -> Iterable[tuple[dict[str, Tensor], str]]:
    """The file's tensors with leading path elements taken off, or put on, as long as all names share them."""
    taken = ""
    names = list(given)
    while True:
        first = {name.partition(".")[0] for name in names}
        if len(first) != 1 or any("." not in name for name in names):
            break
        prefix = first.pop() + "."
        taken += prefix
        names = [name.removeprefix(prefix) for name in names]
        yield dict(zip(names, given.values(), strict=True)), f"the prefix {taken!r} was taken off all names"
    first = {name.partition(".")[0] for name in wanted}
    if len(first) == 1:
        prefix = first.pop() + "."
        yield {prefix + name: t for name, t in given.items()}, f"the prefix {prefix!r} was put before all names"


def _by_order(offered: Named, order: Iterable[str], wanted: Named) -> dict[str, str] | None:
    """Old name to new name, if the modules that own parameters have the same shapes in the same order."""
    groups, places = _by_owner(order), _by_owner(wanted)
    if len(groups) != len(places):
        return None
    pairs: dict[str, str] = {}
    for group, place in zip(groups, places, strict=True):
        if group.keys() != place.keys() or any(offered[group[k]].shape != wanted[place[k]].shape for k in place):
            return None
        pairs |= {group[leaf]: place[leaf] for leaf in place}
    return pairs


def _by_owner(names: Iterable[str]) -> list[dict[str, str]]:
    """For each module, in order of appearance: its parameters' full names by their last path element."""
    owners: dict[str, dict[str, str]] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        owners.setdefault(owner, {})[leaf] = name
    return list(owners.values())


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which ``features.2`` comes before ``features.10``: safetensors files lose the order."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _mismatch(offered: Named, wanted: Named) -> str:
    missing = [f"{name} {tuple(wanted[name].shape)}" for name in wanted if name not in offered]
    left_over = [f"{name} {tuple(offered[name].shape)}" for name in offered if name not in wanted]
    wrong = [
        f"{name}: {tuple(wanted[name].shape)} expected, {tuple(offered[name].shape)} found"
        for name in wanted
        if name in offered and wanted[name].shape != offered[name].shape
    ]
    parts = [("missing", missing), ("left over", left_over), ("of the wrong shape", wrong)]
    listed = [f"{what}: {_some(names)}" for what, names in parts if names]
    return (
        f"the weights do not fit the architecture ({'; '.join(listed)}). "
        "Choose another --arch, check --labels and --input-shape, or give your own network with --model-def"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
