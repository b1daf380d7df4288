"""Ratings by people: a blind page, and the results of its answers."""

import itertools
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leftover.commands.judge.ask import VerdictStore
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.pairs import Comparison, Pair
from leftover.commands.judge.questions import Criterion, judged_pairs, make_questions
from leftover.commands.judge.summary import Values, cohen_kappa, krippendorff_alpha, summarise
from leftover.errors import UserError, one_line
from leftover.report.page import TEMPLATES, content_policy
from leftover.runs.names import judge_folder
from leftover.store.files import write_text
from leftover.store.folders import check_page
from leftover.store.sealed import digest, read_sealed, write_sealed

log = logging.getLogger(__name__)

_FIRST, _EQUAL, _SECOND = 1, 2, 3


def write_page(folder: Path, comparison: Comparison, criteria: Sequence[Criterion], output: Path) -> int:
    """Write the rating page to `output` and its key to the run's folder; returns the number of questions.

    Pairs come in random order with random sides, the criteria of a pair one after the other. The same pairs and
    criteria make the same page, so that ratings of an earlier copy still count.
    """
    check_page(output, "--human")
    shown = [(index, pair) for index, pair in enumerate(comparison.pairs) if not pair.identical]
    if not shown:
        raise UserError("the completions of every pair are identical: there is nothing to rate")
    pairs = [pair.__dict__ for pair in comparison.pairs]
    page = digest([pairs, criteria])
    order = random.Random(page)
    order.shuffle(shown)
    items, key = list[dict[str, str]](), dict[str, dict[str, Any]]()
    for index, pair in shown:
        ours_first = order.random() < 0.5
        first, second = pair.in_order(ours_first)
        for criterion in criteria:
            number = str(len(items) + 1)
            texts = {"prompt": pair.prompt, "first": first, "second": second}
            items.append({"id": number, "question": criterion.text} | texts)
            key[number] = {"pair": index, "criterion": criterion.name, "ours_first": ours_first}
    whole_key = comparison.describe() | {"criteria": dict(criteria), "pairs": pairs, "items": key}
    write_sealed(_key_path(folder, page), whole_key)
    write_text(output, render_page(page, items))
    return len(items)


def render_page(page: str, items: list[dict[str, str]]) -> str:
    """One HTML file that opens from disk, needs no network, and runs no text it shows.

    The texts of `items` stand in a block of JSON without characters of markup, and the page's Content-Security-Policy
    lets only its own script run.
    """
    data = json.dumps({"page": page, "items": items})
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    style, script = ("\n" + (TEMPLATES / name).read_text("utf-8") for name in ("rating.css", "rating.js"))
    html = (TEMPLATES / "rating.html").read_text("utf-8")
    return html.format(policy=content_policy(script, style), style=style, script=script, data=data)


def import_ratings(
    folder: Path, files: Sequence[Path], settings: JudgeSettings | None = None
) -> tuple[dict[str, Any], Path]:
    """Win, tie and loss by the people who exported `files`, and their agreement; and the file of these results.

    With `settings`, this judge's stored verdicts on the same pairs are compared with each person's. Raises UserError
    for a file that is no export, a page of another run, or a rater given twice.
    """
    exports = [_read_export(path) for path in files]
    pages = sorted({export.page for export in exports})
    if len(pages) > 1:
        raise UserError(f"the files are of {len(pages)} rating pages ({', '.join(pages)}): import one page at a time")
    page = pages[0]
    path = _key_path(folder, page)
    key = _read_key(path) if page.isalnum() else None
    if key is None:
        raise UserError(f"{files[0]}: '{folder}' wrote no rating page {page}; name the run that wrote it")
    raters: dict[str, dict[str, int]] = {}
    for file, export in zip(files, exports, strict=True):
        unknown = export.ratings.keys() - key.items.keys()
        if unknown:
            raise UserError(f"{file}: the question '{min(unknown)}' is not on the page {page}")
        if export.rater in raters:
            raise UserError(f"{file}: the rater '{export.rater}' has another file; give each rater once")
        raters[export.rater] = export.ratings
    found: dict[str, Any] = (key.model_extra or {}) | {"page": page, "raters": sorted(raters), "criteria": {}}
    for criterion, text in key.criteria.items():
        values = {rater: _values(ratings, key.items, criterion) for rater, ratings in raters.items()}
        judge = _judge_values(folder, key.pairs, Criterion(criterion, text), settings) if settings else {}
        found["criteria"][criterion] = {"text": text} | _of_criterion(key.pairs, values, judge)
    results = judge_folder(folder) / "results" / f"human-{page}.json"
    write_sealed(results, found, copied=False)
    return found, results


def _of_criterion(pairs: list[Pair], values: dict[str, Values], judge: dict[str, Values]) -> dict[str, Any]:
    """The results of one criterion. `values`, `judge`: rater -> pair -> 1 win, 0.5 tie, 0 loss."""
    rated = [(pairs[i], value) for of in values.values() for i, value in of.items()]
    rated += [(pair, 0.5) for pair in pairs if pair.identical and rated]
    found = summarise(rated)
    found["ratings"] = sum(map(len, values.values()))
    found["win_rate_by_rater"] = {r: sum(of.values()) / len(of) for r, of in values.items() if of}
    found["krippendorff_alpha"] = krippendorff_alpha(list(values.values()))
    couples = [*itertools.combinations(values.items(), 2), *itertools.product(values.items(), judge.items())]
    found["cohen_kappa"] = [
        {"raters": [a, b]} | cohen_kappa(of_a, of_b) for (a, of_a), (b, of_b) in couples if of_a.keys() & of_b.keys()
    ]
    return found


def _values(ratings: dict[str, int], items: dict[str, "_Item"], criterion: str) -> Values:
    """Pair -> 1 if ours was preferred, 0.5 if both are equal, 0 if theirs was preferred."""
    found = {}
    for number, rating in ratings.items():
        item = items[number]
        if item.criterion == criterion:
            preferred = rating == (_FIRST if item.ours_first else _SECOND)
            found[item.pair] = 0.5 if rating == _EQUAL else float(preferred)
    return found


def _judge_values(folder: Path, pairs: list[Pair], criterion: Criterion, settings: JudgeSettings) -> dict[str, Values]:
    """The stored outcomes of a judge on the pairs of a page, as those of one more rater."""
    questions = make_questions(pairs, [criterion], settings)
    judged = judged_pairs(pairs, questions, VerdictStore(judge_folder(folder)).records, criterion.name)
    values = {i: j.outcome for i, j in enumerate(judged) if j.outcome is not None and not j.pair.identical}
    if not values:
        log.warning("judge: %s has no stored verdict on these pairs by '%s'", settings.model, criterion.name)
    return {settings.model: values}


class _Item(BaseModel):
    """A question of the page: whose completion stands first."""

    model_config = ConfigDict(strict=True)

    pair: int = Field(ge=0)
    criterion: str
    ours_first: bool


class _Key(BaseModel):
    """The key of a page: what `write_page` keeps to itself. All else in it describes the comparison."""

    model_config = ConfigDict(strict=True, extra="allow")

    pairs: list[Pair] = Field(min_length=1)
    criteria: dict[str, str]
    items: dict[str, _Item]

    @model_validator(mode="after")
    def _of_the_page(self) -> "_Key":
        for number, item in self.items.items():
            if item.pair >= len(self.pairs) or item.criterion not in self.criteria:
                raise ValueError(f"question {number} is of no pair or of no criterion")
        return self


def _read_key(path: Path) -> _Key | None:
    """The key of a page, from its copy if it is damaged; None if there is none. UserError if no whole one is left."""
    try:
        content = read_sealed(path)
        return None if content is None else _Key.model_validate_json(json.dumps(content))
    except (UserError, ValidationError) as error:
        fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else one_line(error, 120)
        raise UserError(
            f"{path}, the key of the rating page, is damaged ({fault}): put back a whole one, or write the page again "
            "with --human: of the same completions and criteria it is the same, and its ratings count"
        ) from None


class _Export(BaseModel):
    """What the rating page exports: question -> 1 for the first, 2 for equal, 3 for the second."""

    page: str = Field(min_length=1)
    rater: str = Field(min_length=1)
    ratings: dict[str, Annotated[int, Field(strict=True, ge=_FIRST, le=_SECOND)]] = Field(min_length=1)


def _read_export(path: Path) -> _Export:
    try:
        return _Export.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"no file at '{path}'") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "file"
        raise UserError(
            f"{path}: not as the rating page exports it: {where}: {fault['msg']} (got {fault['input']!r:.40}); export "
            "the ratings again"
        ) from None


def _key_path(folder: Path, page: str) -> Path:
    return judge_folder(folder) / "human" / f"{page}.json"
