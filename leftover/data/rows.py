"""Located rows of any format -> checked rows of the table; faulty ones are refused or written to a file, never lost."""

import hashlib
import itertools
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leftover.data.checks import check_row
from leftover.data.labels import AS_REWARD, LABEL
from leftover.data.missing import documents_remedy, no_column
from leftover.data.records import FAULT, LEFT_OUT, Located, Row
from leftover.errors import UserError
from leftover.monitoring.finite import json_line
from leftover.monitoring.ranks import is_main_process
from leftover.recipe.data_section import DataSection

log = logging.getLogger(__name__)

# Messages and tools are kept as JSON text: a column has one type, and users mix strings and conversations.
ROWS_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("conversational", pa.bool_()),
        ("recorded_reward", pa.float64()),
        ("answer", pa.string()),
        ("tools", pa.string()),
        ("family", pa.string()),
        ("user_split", pa.string()),
        ("is_chosen", pa.bool_()),
        ("label", pa.bool_()),  # of a row whose reward is its column `label`
        ("ended", pa.bool_()),  # false: the completion has no end of sequence
        ("source", pa.string()),
        ("where", pa.string()),
    ]
)

_FAULTS_SHOWN = 5
_SOURCES_SHOWN = 100  # a user's column may hold one for every row


def text_hash(text: str) -> int:
    """64 bits: among ten million texts two share one with a probability of three in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _stage_of(line: str) -> str | None:
    """Which stage rejected a row; None of half a line, which a full disk or a killed run leaves."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, TypeError, KeyError):
        return None


class Rejects:
    """Dropped rows, with the reason, in `rejected_rows.jsonl` of the run."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def see(self) -> str:
        """Where to look, for messages."""
        return f": see {self.path}"

    def start(self, stage: str) -> None:
        """Forget what an earlier pass of this stage rejected."""
        if is_main_process() and self.path.is_file():
            with self.path.open(encoding="utf-8", errors="replace", newline="\n") as lines:  # line feeds alone end one
                kept = [line for line in lines if _stage_of(line) not in (stage, None)]
            self.path.write_text("".join(kept), encoding="utf-8")

    def add(self, stage: str, where: str, reason: str, row: Row) -> None:
        if not is_main_process():
            return
        record = {"stage": stage, "where": where, "reason": reason, "row": row}
        # Half of a surrogate pair has no UTF-8 form; its escape is what JSON writes for it anyway.
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json_line(record, ensure_ascii=False, default=str) + "\n")


class Skipped(Rejects):
    """Dropped rows of a data set in Python, each with its place and the reason, for the log."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def start(self, stage: str) -> None:
        self.rows.clear()

    def add(self, stage: str, where: str, reason: str, row: Row) -> None:
        self.rows.append(f"{where}: {reason}")

    @property
    def see(self) -> str:
        return ""


def first_of(faults: Iterable[str]) -> str:
    """The first of many faults, for the message that refuses them."""
    return "the first:\n" + "\n".join(f"  {fault}" for fault in itertools.islice(faults, _FAULTS_SHOWN))


def check_rows(
    located: Iterable[Located],
    data: DataSection,
    rejects: Rejects | None,
    stats: dict[str, Any],
    remedy: str = "",
    score_remedy: str | None = None,
) -> Iterator[Row]:
    """Yield rows of `ROWS_SCHEMA`.

    With `data.on_bad_row: error` the first faults and their count are raised as one UserError once the whole
    input was read; with `skip` faulty rows go to `rejects`. `stats` counts rows read, rejected and duplicated, the rows
    of the largest sources, and by reason the rows that declared rules drop. `remedy`: of faulty
    rows, if it is not the usual one; `score_remedy`: if given, rows of which none has a score are refused with it.
    """
    left_out, sources = Counter[str](), Counter[str]()
    stats |= {"read": 0, "rejected": 0, "duplicates": 0, "without_reward": 0, "other_parts": 0, "left_out": left_out}
    faults, kinds, first, labels = list[str](), set[str](), Row(), 0
    refuses = data.on_bad_row == "error"
    low, high = data.part
    fingerprints = array("Q")  # 8 bytes a row; a set of digests takes 80
    if rejects:
        rejects.start("rows")
    for where, raw in itertools.islice(_without_left_out(located, left_out), data.max_rows):
        stats["read"] += 1
        first = first or raw
        try:
            row = check_row(raw, data)
        except ValueError as error:
            stats["rejected"] += 1
            if len(faults) < _FAULTS_SHOWN:
                faults.append(f"{where}: {error}")
                kinds.add(str(error).partition(" (found: ")[0])
            if rejects and not refuses:
                rejects.add("rows", where, str(error), {k: v for k, v in raw.items() if k not in (FAULT, AS_REWARD)})
            continue
        # Splits use another hash.
        if data.part != (0.0, 1.0) and not low <= text_hash(f"part\0{row['family']}") / 2**64 < high:
            stats["other_parts"] += 1
            continue
        fingerprints.append(text_hash(f"{row['prompt']}\0{row['completion']}\0{row['tools'] or ''}"))
        stats["without_reward"] += row["recorded_reward"] is None
        labels += row["label"] is not None
        if row["source"] is not None:
            sources[row["source"]] += 1
        if not (faults and refuses):
            yield row | {"where": where}
    stats["sources"] = dict(sources.most_common(_SOURCES_SHOWN))
    ordered = np.frombuffer(fingerprints, np.uint64)
    ordered.sort()  # in place: the fingerprints are all that grows with the rows
    stats["duplicates"] = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    if len(kinds) == 1 and stats["rejected"] == stats["read"]:
        del faults[1:]  # such as a column that every row lacks: a fault of the file
    if faults and refuses:
        told = f"{stats['rejected']} of {stats['read']} rows are faulty; {first_of(faults)}"
        raise UserError(f"{told}\n{remedy or data.names.faulty_rows}")
    _check_any_left(data, stats, rejects, faults[:1])
    if score_remedy is not None and stats["without_reward"] == len(fingerprints):
        raise UserError(_without_scores(data, first, len(fingerprints), score_remedy))
    if labels:
        log.info("rows: the column '%s' is read as the reward of %d rows: true is 1, false is 0", LABEL, labels)


def _without_scores(data: DataSection, first: Row, num_rows: int, remedy: str) -> str:
    """The refusal of rows of which none has a score; `first` is one of them as it was read."""
    name = data.columns.reward
    if name in first:
        said = f"the column '{name}' has no score in any of the {num_rows} rows; {remedy}"
    else:
        said = no_column([name], first, f" with a score in any of the {num_rows} rows", f"; {remedy}")
    return f"{data.path}: {said}"


def log_rows(stats: dict[str, Any], rejects: Rejects) -> None:
    """Log what was read, what was put aside and where it is, and what declared rules dropped."""
    log.info(
        "rows: %(read)d read, %(rejected)d rejected, %(duplicates)d repeat an earlier row, %(without_reward)d "
        "without a recorded score",
        stats,
    )
    if stats["rejected"]:
        log.warning("rows: %d faulty rows are left out, with the reasons in %s", stats["rejected"], rejects.path)
    for reason, count in stats["left_out"].items():
        log.info("rows: %d dropped %s", count, reason)
    if stats["other_parts"]:
        log.info("rows: %d dropped because their families are outside data.part", stats["other_parts"])


def _without_left_out(located: Iterable[Located], left_out: Counter[str]) -> Iterator[Located]:
    for where, raw in located:
        if LEFT_OUT in raw:
            left_out[raw[LEFT_OUT]] += 1
        else:
            yield where, raw


def _check_any_left(data: DataSection, stats: dict[str, Any], rejects: Rejects | None, faults: list[str]) -> None:
    read = stats["read"]
    if read == stats["rejected"] > 0:
        see = rejects.see if rejects else ""
        raise UserError(f"no usable row in {data.path} ({read} read, all rejected{see}); {first_of(faults)}")
    if read == 0:
        reasons = "; ".join(f"{count} {reason}" for reason, count in stats["left_out"].items())
        few = f": no document is long enough{documents_remedy(data)}" if data.format == "documents" else ""
        but = f" except dropped ones: {reasons}" if reasons else ""
        raise UserError(f"{data.path}{data.names.path} holds no row{but}{few}")
    if read == stats["other_parts"] + stats["rejected"]:
        raise UserError(f"none of the {read} rows of {data.path} is in data.part {list(data.part)}: widen it")


def as_prompt(text: str, conversational: bool) -> Any:
    """The user's own form of a prompt column: a string, or the list of messages. Completions are always text."""
    return json.loads(text) if conversational else text
