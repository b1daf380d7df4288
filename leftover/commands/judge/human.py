"""Ratings by people: a blind page to answer, and what its answers say."""

import itertools
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leftover.commands.judge.agreement import cohen_kappa, krippendorff_alpha
from leftover.commands.judge.criteria import Criterion
from leftover.commands.judge.endpoint import JudgeSettings
from leftover.commands.judge.page import render_page
from leftover.commands.judge.pairs import Comparison, Pair
from leftover.commands.judge.questions import judged_pairs, make_questions
from leftover.commands.judge.run import describe
from leftover.commands.judge.store import VerdictStore
from leftover.commands.judge.summary import Outcome, by_source, summarise
from leftover.errors import UserError
from leftover.runs.names import judge_folder
from leftover.store.manifest import digest, read_json, write_json

log = logging.getLogger(__name__)

_FIRST, _EQUAL, _SECOND = 1, 2, 3


def write_page(folder: Path, comparison: Comparison, criteria: Sequence[Criterion], output: Path) -> int:
    """Write the rating page to `output`, and which side is ours to the run's own folder; returns the questions on it.

    Pairs come in random order with random sides, the criteria of a pair one after the other. The same pairs and
    criteria make the same page, so that ratings of an earlier copy still count.
    """
    shown = [(index, pair) for index, pair in enumerate(comparison.pairs) if not pair.identical]
    if not shown:
        raise UserError("every pair is of identical completions: there is nothing to rate")
    page = digest([[pair.__dict__ for pair in comparison.pairs], [list(criterion) for criterion in criteria]])
    order = random.Random(page)
    order.shuffle(shown)
    items, key = list[dict[str, str]](), dict[str, dict[str, Any]]()
    for index, pair in shown:
        ours_first = order.random() < 0.5
        first, second = (pair.ours, pair.theirs) if ours_first else (pair.theirs, pair.ours)
        for criterion in criteria:
            number = str(len(items) + 1)
            items.append(
                {"id": number, "question": criterion.text, "prompt": pair.prompt, "first": first, "second": second}
            )
            key[number] = {"pair": index, "criterion": criterion.name, "ours_first": ours_first}
    what = {"criteria": dict(criteria), "pairs": [pair.__dict__ for pair in comparison.pairs], "items": key}
    write_json(_key_path(folder, page), describe(comparison) | what)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_page(page, items), encoding="utf-8")
    return len(items)


def import_ratings(
    folder: Path, files: Sequence[Path], settings: JudgeSettings | None = None
) -> tuple[dict[str, Any], Path]:
    """Win, tie and loss by the people whose exported ratings `files` are, and their agreement; also the results' file.

    With `settings`, the verdicts that this judge gave on the same pairs are compared with each person's. Raises
    UserError for a file that is no export, of a page that this run did not write, or of a rater who is there already.
    """
    exports = [_read_export(path) for path in files]
    pages = sorted({export["page"] for export in exports})
    if len(pages) > 1:
        raise UserError(f"the files are of {len(pages)} rating pages ({', '.join(pages)}): import one page at a time")
    path = _key_path(folder, pages[0])
    if not pages[0].isalnum() or not path.is_file():
        raise UserError(f"{files[0]}: '{folder}' wrote no rating page {pages[0]}; name the run that wrote it")
    key = read_json(path)
    raters: dict[str, dict[str, int]] = {}
    for file, export in zip(files, exports, strict=True):
        unknown = set(export["ratings"]) - key["items"].keys()
        if unknown:
            raise UserError(f"{file}: the question '{min(unknown)}' is not on the page {pages[0]}")
        if export["rater"] in raters:
            raise UserError(f"{file}: there is another file by the rater '{export['rater']}'; give each rater once")
        raters[export["rater"]] = export["ratings"]
    pairs = [Pair(**pair) for pair in key["pairs"]]
    found = {name: key[name] for name in ("comparison", "ours", "theirs", "decoding", "words", "unended")}
    found["evaluations"] = key.get("evaluations", {})
    found |= {"page": pages[0], "raters": sorted(raters), "criteria": {}}
    for criterion, text in key["criteria"].items():
        values = {rater: _values(ratings, key["items"], criterion) for rater, ratings in raters.items()}
        judge = _judge_values(folder, pairs, key, criterion, settings) if settings else {}
        found["criteria"][criterion] = {"text": text} | _of_criterion(pairs, values, judge)
    results = judge_folder(folder) / "results" / f"human-{pages[0]}.json"
    write_json(results, found)
    return found, results


def _of_criterion(pairs: list[Pair], values: dict[str, dict[int, float]], judge: dict[str, Any]) -> dict[str, Any]:
    """`values`, `judge`: rater -> pair -> 1 win, 0.5 tie, 0 loss."""
    outcomes = [
        Outcome(pairs[i].prompt_id, pairs[i].family, pairs[i].source, value)
        for of in values.values()
        for i, value in of.items()
    ]
    outcomes += [Outcome(p.prompt_id, p.family, p.source, 0.5) for p in pairs if p.identical and outcomes]
    found = summarise(outcomes) | {"by_source": by_source(outcomes)}
    found["ratings"] = sum(map(len, values.values()))
    found["win_rate_by_rater"] = {r: sum(of.values()) / len(of) for r, of in values.items() if of}
    found["krippendorff_alpha"] = krippendorff_alpha(list(values.values()))
    everyone = list(values.items())
    couples = [*itertools.combinations(everyone, 2), *itertools.product(everyone, judge.items())]
    found["cohen_kappa"] = [
        {"raters": [a, b]} | cohen_kappa(of_a, of_b) for (a, of_a), (b, of_b) in couples if of_a.keys() & of_b.keys()
    ]
    return found


def _values(ratings: dict[str, int], items: dict[str, Any], criterion: str) -> dict[int, float]:
    """Pair -> 1 where ours was preferred, 0.5 equal, 0 where theirs was."""
    found = {}
    for number, rating in ratings.items():
        item = items[number]
        if item["criterion"] == criterion:
            preferred = rating == (_FIRST if item["ours_first"] else _SECOND)
            found[item["pair"]] = 0.5 if rating == _EQUAL else float(preferred)
    return found


def _judge_values(
    folder: Path, pairs: list[Pair], key: dict[str, Any], criterion: str, settings: JudgeSettings
) -> dict[str, dict[int, float]]:
    """The stored outcomes of a judge on the pairs of a page, as those of one more rater; nothing is asked."""
    questions = make_questions(pairs, [Criterion(criterion, key["criteria"][criterion])], settings)
    judged = judged_pairs(pairs, questions, VerdictStore(judge_folder(folder)).records, criterion)
    values = {i: j.outcome for i, j in enumerate(judged) if j.asked and j.outcome is not None}
    if not values:
        log.warning("judge: %s has no stored verdict on these pairs by '%s'", settings.model, criterion)
    return {settings.model: values}


def _read_export(path: Path) -> dict[str, Any]:
    try:
        export = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no file at '{path}'") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON as the rating page exports it: {error}") from error
    if not isinstance(export, dict) or not isinstance(export.get("ratings"), dict):
        raise UserError(f"{path}: not a file that the rating page exports (no 'ratings' in it)")
    for name in ("page", "rater"):
        if not isinstance(export.get(name), str) or not export[name]:
            raise UserError(f"{path}: '{name}' is missing; export the ratings again")
    for number, rating in export["ratings"].items():
        if isinstance(rating, bool) or rating not in (_FIRST, _EQUAL, _SECOND):
            raise UserError(f"{path}: the rating of question '{number}' is {rating!r:.40}, not 1, 2 or 3")
    if not export["ratings"]:
        raise UserError(f"{path}: holds no rating yet")
    return export


def _key_path(folder: Path, page: str) -> Path:
    return judge_folder(folder) / "human" / f"{page}.json"
