"""`leftover generate`: completions sampled from a model, scored, as rows that `leftover prepare` reads."""

import logging
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from leftover.commands.generate.inputs import Prompt, Source, open_source
from leftover.commands.generate.rows import Decoding, draw, make_rows
from leftover.commands.generate.rows_file import RowsFile
from leftover.data.tokens import cut_prompt, encode_prompts
from leftover.errors import UserError
from leftover.models.generate import copy_numbers
from leftover.models.load import align_generation_config, load_with, max_positions
from leftover.models.probe import check_causal
from leftover.monitoring.ranks import join
from leftover.monitoring.terminal import progress_bar
from leftover.store.folders import check_output, held, make_folder

log = logging.getLogger(__name__)

# Batches of completions between two saves: a killed command samples less than this again. Long enough that a batch's
# stragglers find others to go on with.
_CHUNK_BATCHES = 4
_MANY_UNFINISHED = 0.05
_LIMIT = "data.max_completion_tokens"
_GENERATE = 0x67656E  # any number that is this command's alone


def generate_rows(
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
) -> dict[str, int]:
    """Write `n` scored completions of every prompt to `output`; rows already there are not sampled again.

    A row holds the prompt and the completion (columns named as `data.columns` says), and
        reward, reward/<name>    the sum and each function's score; absent without a function, null without a score
        sampler_logprobs         log-probability of every completion token at the temperature of the sampling (for
                                 greedy completions: at 1), as the model gives it in one pass over the whole row
        sampler_logprob          their sum
        num_tokens, ended        tokens, the end of sequence included; whether it was reached (else none is added)
        tokens_match             whether `prepare` will make the same tokens of the text
        prompt_index             the same for all completions of one prompt
        filled_templates         the templates of `data.columns` that made its texts: read under these, it is as it is
    and family, split, tools and answer as in the prompt's own row.

    `inputs` are those of `open_source`. Returns counts: `prompts`, and those of the file, such as `rows`. Raises
    UserError for an output that holds rows of other settings.
    """
    join()
    if greedy and (n or 1) > 1:
        raise UserError("--greedy gives one completion per prompt: leave --n out, or sample")
    check_output(Path(output))
    if prompts is not None and Path(prompts).exists() and Path(output).resolve() == Path(prompts).resolve():
        raise UserError(f"--output {output} is the file of the prompts: name another")
    source = open_source(model, prompts, Path(output + ".rejected.jsonl"), **inputs)
    if texts := [prompt.prompt for prompt in source.prompts if not prompt.conversational]:
        source.chat.tell_plain(texts)
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
    drawn = np.random.default_rng(seed).permutation(len(source.prompts))[:max_prompts]
    chosen = [(int(i), source.prompts[i]) for i in np.sort(drawn)]
    make_folder(Path(output).parent, "the folder of --output:")
    with held(Path(output)):
        file = RowsFile(Path(output), source.identity() | {"decoding": asdict(decoding)}, overwrite)
        if file.complete and file.counts["rows"]:
            log.info("generate: %s is finished (nothing it depends on has changed)", output)
        else:
            write_samples(source, replace(decoding, seed=_own_seed(seed)), chosen, file)
    log_counts(file, len(chosen), decoding)
    return {"prompts": len(chosen), **file.counts}


def _own_seed(seed: int) -> int:
    """Another than a run takes: its value is fitted to completions of these prompts, which must not be its rows."""
    return int(np.random.SeedSequence([seed, _GENERATE]).generate_state(1)[0])


def write_samples(source: Source, decoding: Decoding, prompts: list[tuple[int, Prompt]], file: RowsFile) -> None:
    """Sample what the file lacks, chunk by chunk. UserError, and no file, if none of the completions makes a row."""
    model = load_with(source.recipe.model, source.path, source.compute_dtype)
    check_causal(model, f"'{source.path}'")
    align_generation_config(model, source.tokenizer, source.chat.ends)
    prompt_ids = encode_prompts(source.chat, [prompt._asdict() for _, prompt in prompts])
    cut = [len(ids) > decoding.max_prompt_tokens for ids in prompt_ids]
    prompt_ids = [cut_prompt(source.chat, ids, decoding.max_prompt_tokens) for ids in prompt_ids]
    positions, longest = max_positions(model.config), max(len(ids) for ids in prompt_ids)
    lengths = longest, decoding.max_new_tokens
    needed = max(lengths) if source.chat.two_texts else sum(lengths)  # an encoder-decoder has as many for each
    if positions is not None and needed > positions:
        raise UserError(
            f"the longest prompt ({longest} tokens) and --max-new-tokens {decoding.max_new_tokens} exceed the model's "
            f"{positions} positions: lower --max-new-tokens, or cut prompts with --set data.max_prompt_tokens"
        )
    # Counted over all chunks: two prompts may be equal once they are cut.
    copies = copy_numbers([ids for ids in prompt_ids for _ in range(decoding.n)])
    data = source.recipe.data
    limit = data.max_completion_tokens if data.long_completions == "drop" else sys.maxsize
    size = max(1, _CHUNK_BATCHES * decoding.batch_size // decoding.n)
    with progress_bar(len(prompts) * decoding.n, "generate", "completion") as bar:
        bar.update(min(file.chunks * size, len(prompts)) * decoding.n)
        for start in range(file.chunks * size, len(prompts), size):
            part = slice(start, start + size)
            own = slice(part.start * decoding.n, part.stop * decoding.n)
            drawn = draw(source, model, decoding, prompts[part], prompt_ids[part], copies[own])
            kinds = Counter(
                "empty" if not s.text.strip() else "ended" if s.ended else f"unfinished_{decoding.unfinished}"
                for s in drawn
            )
            samples = [s for s in drawn if s.text.strip() and (s.ended or decoding.unfinished == "keep")]
            made = list(make_rows(source, model, decoding, samples, limit))
            beyond = [row.pop("text_tokens") > limit for row in made]
            # Left out if the recipe would drop them, though the tokens that were sampled are within its limit.
            rows = [row for row, long in zip(made, beyond, strict=True) if not long or row["num_tokens"] > limit]
            column = source.recipe.data.columns.reward
            rewards = [row[column] for row in rows if row.get(column) is not None]
            counts = {
                "completions": len(drawn),
                "tokens": sum(len(s.completion_ids) for s in drawn),
                **kinds,
                "prompts_cut": sum(cut[part]),
                "rows": len(rows),
                "prompts_left": len({row["prompt_index"] for row in rows}),
                "retokenised": sum(not row["tokens_match"] for row in rows),
                "retokenised_long": len(made) - len(rows),
                "beyond_recipe": sum(row["num_tokens"] > limit for row in rows),
                "scored": len(rewards),
                "reward_sum": sum(rewards),
            }
            file.append(rows, counts)
            bar.update(len(prompts[part]) * decoding.n)
    if not file.counts["rows"]:
        file.discard()
        raise _no_rows(file.counts, decoding)
    file.finish()


def _no_rows(counts: Counter[str], decoding: Decoding) -> UserError:
    """The refusal of samples of which none makes a row."""
    unfinished = (
        f"{counts['unfinished_drop']} have no end within {decoding.max_new_tokens} tokens: raise --max-new-tokens, or "
        "keep them with --unfinished keep"
    )
    reasons = [unfinished] if counts["unfinished_drop"] else []
    reasons += [f"{counts['empty']} are empty"] if counts["empty"] else []
    reasons += [f"{counts['retokenised_long']} are longer as text than {_LIMIT}"] if counts["retokenised_long"] else []
    return UserError(f"none of the {counts['completions']} completions makes a row: {'; '.join(reasons)}")


def log_counts(file: RowsFile, num_prompts: int, decoding: Decoding, *, scored_later: bool = False) -> None:
    """What was drawn, dropped and kept, and what to know of it."""
    counts, limit = file.counts, decoding.max_new_tokens
    dropped = counts["unfinished_drop"] / max(counts["completions"], 1)
    log.info("generate: %d rows of %d prompts in %s", counts["rows"], num_prompts, file.path)
    for name, text in {
        "unfinished_drop": f"completions dropped: no end within {limit} tokens",
        "unfinished_keep": f"completions kept without an end within {limit} tokens (ended: false): none is added when "
        "the rows are read",
        "empty": "empty completions dropped",
        "prompts_cut": "prompts cut on the left",
        "retokenised": "rows (tokens_match: false) whose text gives other tokens than were sampled",
        "retokenised_long": f"completions dropped: their text makes more tokens than {_LIMIT} allows",
        "beyond_recipe": f"rows have more tokens than the recipe's {_LIMIT}: raise it to {limit} to train on them",
    }.items():
        if counts[name]:
            log.info("generate: %d %s", counts[name], text)
    if dropped > _MANY_UNFINISHED:
        log.warning(
            "generate: the rows are shorter than what the model writes: %.0f %% of its completions had no end within "
            "%d tokens and were dropped. Where V of the next run is sampled it has such completions: raise "
            "--max-new-tokens, or set --unfinished keep",
            100 * dropped,
            limit,
        )
    if num_prompts > counts["prompts_left"]:
        log.warning("generate: %d prompts have no row", num_prompts - counts["prompts_left"])
    if counts["scored"]:
        unscored = counts["rows"] - counts["scored"]
        without = f", {unscored} rows without a score" if unscored else ""
        log.info("generate: mean reward %.4f%s", counts["reward_sum"] / counts["scored"], without)
    elif not scored_later:
        log.info("generate: no row has a reward: score them before training, or give functions with --reward")
