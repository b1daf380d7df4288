"""From prompts to completions, from completions to rows with their scores and log-probabilities."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leftover.commands.generate.inputs import Prompt, Source
from leftover.data.rows import as_prompt
from leftover.data.tokens import Limits, tokenise
from leftover.models.generate import end_ids, generate
from leftover.models.reference import autocast, reference_pass
from leftover.recipe.data_section import ColumnsSection


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn; `max_prompt_tokens` as in `data`: longer prompts are cut on the left.

    unfinished: what becomes of a completion that reached `max_new_tokens` without an end: drop it or keep it.
    """

    n: int
    max_new_tokens: int
    max_prompt_tokens: int
    sample: bool = True
    temperature: float = 1.0
    batch_size: int = 64
    seed: int = 0
    max_prompts: int | None = None
    unfinished: str = "drop"


@dataclass
class Sample:
    """One completion of the prompt with this number; `text` without its end of sequence."""

    number: int
    prompt: Prompt
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    ended: bool


def draw(
    source: Source,
    model: Any,
    decoding: Decoding,
    prompts: Sequence[tuple[int, Prompt]],
    prompt_ids: Sequence[list[int]],
    seed: int,
) -> list[Sample]:
    """`n` completions of each prompt, one after the other."""
    repeated = [i for i in range(len(prompts)) for _ in range(decoding.n)]
    with autocast(next(model.parameters()).device, source.compute_dtype):
        completions, _ = generate(
            model,
            source.tokenizer,
            [prompt_ids[i] for i in repeated],
            max_new_tokens=decoding.max_new_tokens,
            sample=decoding.sample,
            temperature=decoding.temperature,
            batch_size=decoding.batch_size,
            seed=seed,
            description="batches",
        )
    ends = end_ids(model)
    return [
        Sample(
            *prompts[i],
            prompt_ids[i],
            ids,
            completion_text(source.tokenizer, prompt_ids[i], ids[:-1] if ids[-1] in ends else ids),
            ids[-1] in ends,
        )
        for i, ids in zip(repeated, completions, strict=True)
    ]


def completion_text(tokenizer: Any, prompt_ids: list[int], completion_ids: list[int]) -> str:
    """The exact text of completion tokens after their prompt, white space and special tokens included.

    Decoded together with the prompt: alone, some tokenizers drop a leading space.
    """
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    prompt = tokenizer.decode(prompt_ids, **options)
    whole = tokenizer.decode([*prompt_ids, *completion_ids], **options)
    return whole.removeprefix(prompt) if whole.startswith(prompt) else tokenizer.decode(completion_ids, **options)


def make_rows(source: Source, model: Any, decoding: Decoding, samples: list[Sample]) -> Iterator[dict[str, Any]]:
    """Rows as `sample_rows` describes them, and `too_long`: an ended one whose text makes more tokens than allowed."""
    if not samples:
        return
    columns, tokenizer = plain_names(source.recipe.data.columns), source.tokenizer
    texts = [s.prompt.row | {"completion": s.text} for s in samples]
    again = tokenise(source.chat, texts, Limits(decoding.max_prompt_tokens, decoding.max_new_tokens, "cut"))
    view = [{"prompt_ids": s.prompt_ids, "completion_ids": s.completion_ids} for s in samples]
    temperature = decoding.temperature if decoding.sample else 1.0
    logprobs, _ = reference_pass(
        model, tokenizer, view, features=False, compute_dtype=source.compute_dtype, temperature=temperature
    )
    scores = _scores(source, samples)
    for i, sample in enumerate(samples):
        prompt = sample.prompt
        own = {
            columns.family: prompt.family,
            columns.split: prompt.split,
            columns.tools: prompt.tools and json.loads(prompt.tools),
            columns.answer: prompt.answer,
        }
        yield {
            columns.prompt: as_prompt(prompt.text, prompt.conversational),
            columns.completion: sample.text,
            **{(columns.reward if name == "reward" else name): column[i] for name, column in scores.items()},
            "sampler_logprob": float(logprobs[i].sum(dtype=np.float64)),
            "sampler_logprobs": [round(float(value), 6) for value in logprobs[i]],
            "num_tokens": len(sample.completion_ids),
            "ended": sample.ended,
            "tokens_match": again.prompt_ids[i] == sample.prompt_ids
            and again.completion_ids[i] == sample.completion_ids,
            "prompt_index": sample.number,
            "too_long": sample.ended and again.completion_long[i],
            **{name: value for name, value in own.items() if name is not None and value is not None},
        }


def plain_names(columns: ColumnsSection) -> ColumnsSection:
    """The recipe's columns; a template, which names none, gives way to the default."""
    defaults = ColumnsSection()
    templates = {name: getattr(defaults, name) for name, column in columns if column and "{" in column}
    return columns.model_copy(update=templates)


def _scores(source: Source, samples: list[Sample]) -> dict[str, list[float | None]]:
    """`reward` and every `reward/<name>`; None where there is no score."""
    if source.reward is None:
        return {}
    components = source.reward.score_components([s.prompt.asked for s in samples], [s.text for s in samples])
    total = source.reward.total(components)
    found: dict[str, list[float | None]] = {"reward": [None if np.isnan(v) else float(v) for v in total]}
    return found | {
        f"reward/{name}": [None if s is None else float(s) for s in scores] for name, scores in components.items()
    }
