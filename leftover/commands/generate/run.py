"""`leftover generate`: completions sampled from a model, scored, as rows that `leftover prepare` reads."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from leftover.commands.generate.inputs import Prompt, Source, open_source
from leftover.commands.generate.rows import Decoding, Sample, draw, make_rows
from leftover.commands.generate.rows_file import RowsFile
from leftover.data.tokens import cut_prompt, encode_prompts
from leftover.errors import UserError
from leftover.models.load import max_positions
from leftover.monitoring.terminal import progress_bar

log = logging.getLogger(__name__)

# Batches of completions between two saves: what a killed command samples again is less than this. Long enough that
# a batch's stragglers find others to go on with.
_CHUNK_BATCHES = 4


def sample_rows(source: Source, decoding: Decoding, output: str | Path, *, overwrite: bool = False) -> dict[str, float]:
    """Write `decoding.n` scored completions of every prompt to `output`; what is there of them is not made again.

    A row holds the prompt and the completion (columns named as `data.columns` says), and
        reward, reward/<name>    the sum and each function's score; absent without a function, null without a score
        sampler_logprobs         log-probability of every completion token at the temperature of the sampling (of
                                 greedy completions: at 1), as the model gives it in one pass over the whole row
        sampler_logprob          their sum
        num_tokens, ended        tokens, the end of sequence included; whether it is there
        tokens_match             whether `prepare` will make the same tokens of the text
        prompt_index             the same for all completions of one prompt
    beside what the prompt's own row had of family, split, tools and answer.

    Returns what was counted. Raises UserError for an output that holds rows of other settings.
    """
    prompts = some(source.prompts, decoding)
    file = RowsFile(Path(output), source.identity() | {"decoding": asdict(decoding)}, overwrite)
    if file.complete:
        log.info("generate: %s is finished (nothing it depends on has changed)", output)
    else:
        _write(source, decoding, prompts, file)
    _say(file, len(prompts), decoding)
    return file.counts


def sample_from(
    model: str,
    prompts: str | None,
    *,
    output: str,
    n: int | None,
    greedy: bool,
    max_new_tokens: int | None,
    batch_size: int | None,
    overwrite: bool,
    temperature: float,
    seed: int,
    max_prompts: int | None,
    unfinished: str,
    **inputs: Any,
) -> dict[str, float]:
    """`sample_rows` from the arguments of the command; `inputs` are those of `open_source`."""
    if greedy and (n or 1) > 1:
        raise UserError("--greedy gives one completion a prompt: leave --n out, or sample")
    source = open_source(model, prompts, rejects=Path(output + ".rejected.jsonl"), **inputs)
    decoding = Decoding(
        n=n or (1 if greedy else 8),
        max_new_tokens=max_new_tokens or source.recipe.data.max_completion_tokens,
        max_prompt_tokens=source.recipe.data.max_prompt_tokens,
        sample=not greedy,
        temperature=temperature,
        batch_size=batch_size or source.recipe.evaluate.batch_size,
        seed=seed,
        max_prompts=max_prompts,
        unfinished=unfinished,
    )
    return sample_rows(source, decoding, output, overwrite=overwrite)


def some(prompts: Sequence[Prompt], decoding: Decoding) -> list[tuple[int, Prompt]]:
    """At most `max_prompts` prompts with their numbers, drawn by the seed, in their own order."""
    chosen = np.random.default_rng(decoding.seed).permutation(len(prompts))[: decoding.max_prompts]
    return [(int(i), prompts[i]) for i in np.sort(chosen)]


def _write(source: Source, decoding: Decoding, prompts: list[tuple[int, Prompt]], file: RowsFile) -> None:
    model = source.load()
    prompt_ids, cut = _encode(source, [prompt for _, prompt in prompts], decoding.max_prompt_tokens)
    _check_positions(model, prompt_ids, decoding)
    size = max(1, _CHUNK_BATCHES * decoding.batch_size // decoding.n)
    shown = progress_bar(len(prompts) * decoding.n, "generate", "completion")
    with shown:
        shown.update(min(file.chunks * size, len(prompts)) * decoding.n)
        for start in range(file.chunks * size, len(prompts), size):
            part = slice(start, start + size)
            # A stream of its own for every chunk: the rows are the same wherever the command was stopped.
            seed = int(np.random.SeedSequence([decoding.seed, file.chunks]).generate_state(1)[0])
            samples = draw(source, model, decoding, prompts[part], prompt_ids[part], seed)
            counts = _count(samples, decoding.unfinished) | {"prompts_cut": sum(cut[part])}
            samples = [s for s in samples if s.text.strip() and (s.ended or decoding.unfinished == "keep")]
            rows = list(make_rows(source, model, decoding, samples))
            counts |= {"rows": len(rows), "prompts_left": len({s.number for s in samples})}
            counts["retokenised"] = sum(not row["tokens_match"] for row in rows)
            counts["retokenised_long"] = sum(row.pop("too_long") for row in rows)
            column = source.recipe.data.columns.reward
            rewards = [row[column] for row in rows if row.get(column) is not None]
            file.append(rows, counts | {"scored": len(rewards), "reward_sum": sum(rewards)})
            shown.update(len(prompts[part]) * decoding.n)
    file.finish()


def _encode(source: Source, prompts: Sequence[Prompt], limit: int) -> tuple[list[list[int]], list[bool]]:
    encoded = encode_prompts(source.chat, [p.row for p in prompts])
    return [cut_prompt(source.tokenizer, ids, limit) for ids in encoded], [len(ids) > limit for ids in encoded]


def _check_positions(model: Any, prompt_ids: Sequence[list[int]], decoding: Decoding) -> None:
    positions = max_positions(model.config)
    longest = max(len(ids) for ids in prompt_ids)
    if positions is not None and longest + decoding.max_new_tokens > positions:
        raise UserError(
            f"the longest prompt ({longest} tokens) and --max-new-tokens {decoding.max_new_tokens} exceed the model's "
            f"{positions} positions: lower --max-new-tokens, or cut prompts with --set data.max_prompt_tokens"
        )


def _count(samples: Sequence[Sample], unfinished: str) -> dict[str, float]:
    kinds = Counter(
        "empty" if not s.text.strip() else "ended" if s.ended else f"unfinished_{unfinished}" for s in samples
    )
    return {"completions": len(samples), **kinds}


def _say(file: RowsFile, num_prompts: int, decoding: Decoding) -> None:
    counts = Counter(file.counts)
    log.info("generate: %d rows of %d prompts in %s", counts["rows"], num_prompts, file.path)
    for name, text in (
        ("unfinished_drop", f"completions dropped, without an end within {decoding.max_new_tokens} tokens"),
        (
            "unfinished_keep",
            f"completions without an end within {decoding.max_new_tokens} tokens kept: `prepare` ends them, unless "
            f"data.max_completion_tokens is {decoding.max_new_tokens} and data.long_completions is cut",
        ),
        ("empty", "completions dropped, which hold no text"),
        ("prompts_cut", "prompts cut on the left"),
        ("retokenised", "rows (tokens_match: false) whose text makes other tokens than were sampled"),
        (
            "retokenised_long",
            f"of these make more than {decoding.max_new_tokens} tokens: data.max_completion_tokens may drop them",
        ),
    ):
        if counts[name]:
            log.info("generate: %d %s", counts[name], text)
    if num_prompts > counts["prompts_left"]:
        log.warning("generate: %d prompts have no row", num_prompts - counts["prompts_left"])
    if counts["scored"]:
        unscored = int(counts["rows"] - counts["scored"])
        without = f", {unscored} rows without a score" if unscored else ""
        log.info("generate: mean reward %.4f%s", counts["reward_sum"] / counts["scored"], without)
    else:
        log.info("generate: no row has a reward: score them before training, or give functions with --reward")
