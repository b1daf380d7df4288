"""From prompts to completions, and from these to rows with scores and log-probabilities."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leftover.commands.generate.inputs import Prompt, Source
from leftover.data.records import FILLED
from leftover.data.rows import as_prompt
from leftover.data.tokens import Limits, completion_opening, tokenise
from leftover.models.generate import end_ids, generate
from leftover.models.reference import reference_pass
from leftover.recipe.data_section import Constant
from leftover.rewards import text_lengths
from leftover.rewards.sum import as_array

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn; part of the key of the rows."""

    n: int
    max_new_tokens: int
    max_prompt_tokens: int  # longer prompts are cut on the left
    sample: bool
    temperature: float
    batch_size: int
    seed: int
    max_prompts: int | None
    unfinished: str  # drop or keep completions that reach `max_new_tokens` without an end


@dataclass
class Sample:
    """One completion of a prompt; `text` without the end of sequence."""

    number: int
    prompt: Prompt
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    ended: bool


def draw(
    source: Source,
    model: "PreTrainedModel",
    decoding: Decoding,
    prompts: Sequence[tuple[int, Prompt]],
    prompt_ids: Sequence[list[int]],
    copies: Sequence[int],
) -> list[Sample]:
    """`n` completions of each prompt, one after the other; `copies`: see `leftover.models.generate.generate`."""
    repeated = [i for i in range(len(prompts)) for _ in range(decoding.n)]
    completions = generate(
        model,
        source.tokenizer,
        [prompt_ids[i] for i in repeated],
        max_new_tokens=decoding.max_new_tokens,
        sample=decoding.sample,
        temperature=decoding.temperature,
        seed=decoding.seed,
        copies=copies,
        compute_dtype=source.compute_dtype,
        description="batches",
        **(source.recipe.generation | {"batch_size": decoding.batch_size}),
    ).ids
    ends = end_ids(model)
    return [
        Sample(
            *prompts[i],
            prompt_ids[i],
            ids,
            _text(source, prompt_ids[i], ids[:-1] if ids[-1] in ends else ids),
            ids[-1] in ends,
        )
        for i, ids in zip(repeated, completions, strict=True)
    ]


def _text(source: Source, prompt_ids: list[int], completion_ids: list[int]) -> str:
    """`completion_text`; what an encoder-decoder writes is a text of its own, without what is put before one."""
    if not source.chat.two_texts:
        return completion_text(source.tokenizer, prompt_ids, completion_ids)
    opening = completion_opening(source.chat)
    begun = bool(opening) and completion_ids[: len(opening)] == opening
    return completion_text(source.tokenizer, [], completion_ids[len(opening) :] if begun else completion_ids)


def completion_text(tokenizer: "PreTrainedTokenizerBase", prompt_ids: list[int], completion_ids: list[int]) -> str:
    """The exact text of completion tokens after their prompt, white space and special tokens included.

    Decoded together with the prompt: alone, some tokenizers drop a leading space.
    """

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    prompt, whole = decode(prompt_ids), decode([*prompt_ids, *completion_ids])
    return whole.removeprefix(prompt) if whole.startswith(prompt) else decode(completion_ids)


def _fitted(source: Source, decoding: Decoding, sample: Sample, limit: int) -> tuple[list[int], list[int]]:
    """Token ids of a sample's prompt and text as `prepare` reads them.

    An unfinished text of more tokens than were sampled (one that breaks off within a character has more) is cut to the
    limit, and with it `sample.text`.
    """

    def read() -> tuple[list[int], list[int]]:
        row = sample.prompt._asdict() | {"completion": sample.text, "ended": sample.ended}
        limits = Limits(decoding.max_prompt_tokens, sys.maxsize)
        found = tokenise(source.chat, [row], limits, skip_faulty=True)  # `tokens_match` says it
        return found.prompt_ids[0], found.completion_ids[0]

    ids, kept = read(), limit
    while len(ids[1]) > limit >= len(sample.completion_ids) and not sample.ended and kept:
        text = _text(source, ids[0], ids[1][:kept])
        if not text.strip():
            break
        sample.text, kept = text, kept - 1
        ids = read()
    return ids


def make_rows(
    source: Source, model: "PreTrainedModel", decoding: Decoding, samples: list[Sample], limit: int
) -> Iterator[dict[str, Any]]:
    """Rows as `generate_rows` describes them, and `text_tokens`: how many its text makes, with its end if it has one.

    `limit`: tokens of a completion that the recipe takes; an unfinished text is cut to them.
    """
    if not samples:
        return
    again = [_fitted(source, decoding, sample, limit) for sample in samples]
    columns = source.recipe.data.columns
    # A template over several columns is no name for one.
    templates = {key: name for key, name in columns if name and "{" in name}
    columns = columns.model_copy(update={key: key for key in templates})
    filled = {FILLED: given} if (given := {k: v for k, v in templates.items() if not isinstance(v, Constant)}) else {}
    logprobs, _ = reference_pass(
        model,
        source.tokenizer,
        [{"prompt_ids": s.prompt_ids, "completion_ids": s.completion_ids} for s in samples],
        features=False,
        compute_dtype=source.compute_dtype,
        temperature=decoding.temperature if decoding.sample else 1.0,
    )
    prompts = [as_prompt(s.prompt.prompt, s.prompt.conversational) for s in samples]
    scores: dict[str, np.ndarray] = {}
    if source.reward is not None:
        texts = [s.text for s in samples]
        components = source.reward.score_components(prompts, texts)
        scores[columns.reward] = source.reward.total(source.reward.without_length(components, text_lengths(texts)))
        scores |= {f"reward/{name}": as_array(values) for name, values in components.items()}
    for i, sample in enumerate(samples):
        carried = {
            columns.family: sample.prompt.family,
            columns.split: sample.prompt.split,
            columns.tools: sample.prompt.tools and json.loads(sample.prompt.tools),
            columns.answer: sample.prompt.answer,
        }
        ids = (sample.prompt_ids, sample.completion_ids)
        yield {
            columns.prompt: prompts[i],
            columns.completion: sample.text,
            **{name: None if np.isnan(of[i]) else float(of[i]) for name, of in scores.items()},
            "sampler_logprob": float(logprobs[i].sum(dtype=np.float64)),
            "sampler_logprobs": [round(float(value), 6) for value in logprobs[i]],
            "num_tokens": len(sample.completion_ids),
            "ended": sample.ended,
            "tokens_match": again[i] == ids,
            "prompt_index": sample.number,
            "text_tokens": len(again[i][1]),
            **filled,
            **{name: value for name, value in carried.items() if name is not None and value is not None},
        }
