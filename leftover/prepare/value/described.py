"""What a report says of the value: which estimate it is, fold by fold if it was cross-fitted."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from leftover.errors import counted


def kinds_of_rows(about: Mapping[str, Any]) -> dict[str, int]:
    """Estimate -> how many of the folds that give training rows their value chose it, the most frequent first.

    `about` is the report of `estimate_values`. Without folds there is one estimate, for all rows.
    """
    if about.get("own_samples_weight"):
        return {f"{about['kind']} with own samples": 1}
    folds = about.get("kinds_by_fold")
    # The last is the fit on all training prompts, which only held-out rows get their value from.
    kinds = folds[:-1] if folds else [about.get("kind", "recorded")]
    return dict(Counter(kinds).most_common())


def described(about: Mapping[str, Any]) -> str:
    """`the ridge estimate`; of folds that differ `ridge in 3 of 5 folds (900 rows), the constant in 2 (600 rows)`."""
    found = kinds_of_rows(about)
    if weight := about.get("own_samples_weight"):
        return f"the {about['kind']} estimate, moved by {weight:.2f} of the way to the mean of a prompt's own samples"
    if len(found) == 1:
        return f"the {next(iter(found))} estimate"
    rows, folds = about.get("rows_by_kind") or {}, sum(found.values())
    parts: list[str] = []
    for kind, count in found.items():
        of = "" if parts else f" of {folds} folds"
        size = f" ({counted(rows[kind], 'row')})" if kind in rows else ""
        parts.append(f"{'the constant' if kind == 'constant' else kind} in {count}{of}{size}")
    return ", ".join(parts)


def constant_folds(about: Mapping[str, Any]) -> str | None:
    """What to know if nothing beat the constant: everywhere, or in some folds; None if it was beaten in all."""
    found = kinds_of_rows(about)
    if "constant" not in found:
        return None
    where = f"in {found['constant']} of {sum(found.values())} folds " if len(found) > 1 else ""
    return f"{where}no value estimate beat the constant on held-out prompts"
