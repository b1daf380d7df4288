"""Completions of a policy, greedy or sampled, in length-sorted batches that do not wait for their longest row."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from leftover.data.collate import pad
from leftover.data.tokens import decode_completions
from leftover.errors import UserError
from leftover.models.engines.choice import by_vllm
from leftover.models.engines.request import Sampling, draw_key
from leftover.models.inputs import inputs_to_continue
from leftover.models.load import is_encoder_decoder, root_in_place
from leftover.models.logprobs import output_head
from leftover.models.probe import Batching, batching, own_distribution
from leftover.models.reference import DIVERGED, evaluating
from leftover.monitoring.ranks import shared
from leftover.monitoring.room import OutOfMemory, halve, room_for
from leftover.monitoring.terminal import progress_bar
from leftover.recipe.engine import MAX_BATCH_TOKENS, EngineSettings

# A batch ends once at most this share of its rows is unfinished: the stragglers of all batches continue together in
# the next round. Reading them again there costs a step or two, and no batch runs on for a few rows.
_WRITING = "writing completions"
_STRAGGLERS = 1 / 8


class Completions(NamedTuple):
    """One completion for each prompt.

    logprobs: of every token, [T_i] float32, at the temperature of the sampling, greedy at 1. They are those of a pass
    over the whole row (`leftover.models.reference.reference_pass`) up to the rounding of the compute dtype.
    """

    ids: list[list[int]]  # end of sequence included if it was reached
    texts: list[str]
    logprobs: list[np.ndarray]

    @property
    def sums(self) -> list[float]:
        """The log-probability of every completion."""
        return [float(values.sum(dtype=np.float64)) for values in self.logprobs]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sample: bool = False,
    temperature: float = 1.0,
    batch_size: int = 64,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    seed: int = 0,
    copies: Sequence[int] | None = None,
    compute_dtype: str | None = None,
    description: str | None = None,
    engine: EngineSettings | None = None,
) -> Completions:
    """One completion for each prompt, with the log-probabilities that its tokens were chosen by.

    Completions come from the model's own distribution, whatever its folder asks for: sampled at `temperature` without
    top-k and top-p, or greedily, the most likely token at every step.

    A batch has at most `batch_size` rows and `max_batch_tokens` positions, what may be written included. vLLM makes its
    own batches. `engine`: by default transformers; each draws with random numbers of its own.

    A sampled completion depends on the seed, its prompt and its number among those of an equal prompt (`copies`; by
    default as they come), and not on the other rows, their order or the size of a batch (rounding of the logits aside).
    The global random state is not used, so that generating in the middle of training does not change the run.

    The processes of a launch share the prompts (`leftover.monitoring.ranks.shared`).
    """
    copies = copy_numbers(prompt_ids) if copies is None else copies
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sample": sample, "temperature": temperature}
    options |= {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens, "seed": seed}
    options |= {"compute_dtype": compute_dtype, "description": description}

    if not len(prompt_ids):
        return Completions([], [], [])
    ends = end_ids(model)
    sampling = Sampling(max_new_tokens, temperature if sample else None, tuple(sorted(ends)))
    found = by_vllm(engine, model, tokenizer, prompt_ids, copies, sampling, seed=seed, compute_dtype=compute_dtype)
    if found is not None:
        ids = [written.ids for written in found]
        logprobs = [np.array(written.logprobs, np.float32) for written in found]
        return Completions(ids, decode_completions(tokenizer, ids, ends), logprobs)

    def complete(prompt_ids: Sequence[Sequence[int]], copies: Sequence[int]) -> list[Any]:
        return list(zip(*_generate(model, tokenizer, prompt_ids, copies, **options), strict=True))

    with root_in_place(model):
        rows = shared(complete, prompt_ids, copies, model=model)
    return Completions(*map(list, zip(*rows, strict=True)))


def _generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    copies: Sequence[int],
    *,
    max_new_tokens: int,
    sample: bool,
    temperature: float,
    batch_size: int,
    max_batch_tokens: int,
    seed: int,
    compute_dtype: str | None,
    description: str | None,
) -> Completions:
    """`generate`, of this process's own prompts."""
    completions: list[list[int]] = [[] for _ in prompt_ids]
    logprobs: list[list[float]] = [[] for _ in prompt_ids]
    ends = end_ids(model)
    unfinished = list(range(len(prompt_ids)))
    bar = progress_bar(len(unfinished), description or "", "completion", shown=description is not None)
    whole = output_head(model).register_forward_pre_hook(_contiguous)
    with whole, evaluating(model, compute_dtype) as device, bar, own_distribution(model):
        together = batching(model, tokenizer.pad_token_id) if min(len(prompt_ids), batch_size) > 1 else "single"
        share = _STRAGGLERS
        if is_encoder_decoder(model) and together == "equally long":
            # Its decoder's texts begin equally long, and stay so in a batch that is written to its end.
            share, together = 0, "any"
        while unfinished:
            lengths = {i: len(prompt_ids[i]) + len(completions[i]) for i in unfinished}
            left = {i: max_new_tokens - len(completions[i]) for i in unfinished}
            most = room_for(_WRITING, max_batch_tokens)
            batches = list(_batches(lengths, left, 1 if together == "single" else batch_size, most, together))
            unfinished = []
            for number, batch in enumerate(batches):
                budgets = [left[i] for i in batch]
                begun = [prompt_ids[i] for i in batch], [completions[i] for i in batch]
                stragglers = round(share * len(batch))
                choosing = _Choose(device)
                if sample:  # each row with the rest of its own random numbers
                    drawn = [uniforms(seed, prompt_ids[i], copies[i], max_new_tokens) for i in batch]
                    rest = [numbers[len(completions[i]) :] for i, numbers in zip(batch, drawn, strict=True)]
                    choosing = _Draw(pad(rest, 0.0, dtype=torch.float64)[0].to(device), temperature)
                try:
                    written = _continue(model, tokenizer.pad_token_id, begun, budgets, stragglers, choosing)
                except OutOfMemory:  # its traceback holds what did not fit
                    written = None
                if written is None:
                    halve(_WRITING, len(batch), lengths[batch[0]] + max(budgets))
                    unfinished += itertools.chain(*batches[number:])
                    break
                for i, (tokens, of_tokens) in zip(batch, written, strict=True):
                    completions[i] += tokens
                    logprobs[i] += of_tokens
                    if completions[i][-1] not in ends and len(completions[i]) < max_new_tokens:
                        unfinished.append(i)
                    else:
                        bar.update()
    texts = decode_completions(tokenizer, completions, ends)
    return Completions(completions, texts, [np.array(values, np.float32) for values in logprobs])


def _continue(
    model: Any,
    pad_id: int,
    begun: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    budgets: list[int],
    stragglers: int,
    choosing: "_Choose",
) -> list[tuple[list[int], list[float]]]:
    """What follows each text of a batch, within its budget, and the log-probabilities of these tokens.

    begun: the prompts, and what was written behind each of them before.
    """
    device, ends = choosing.finite.device, end_ids(model)
    arguments, start = inputs_to_continue(model, *begun, pad_id)
    output = model.generate(
        **{name: values.to(device) for name, values in arguments.items()},
        max_new_tokens=max(budgets),
        pad_token_id=pad_id,
        use_cache=True,
        do_sample=False,
        logits_processor=[choosing],
        stopping_criteria=[_Stop(ends, budgets, stragglers, device)],
    )[:, start:]
    choosing.check()
    chosen_by = torch.stack(choosing.logprobs, dim=1).tolist()
    tokens = [up_to_end(row[:budget], ends) for row, budget in zip(output.tolist(), budgets, strict=True)]
    return [(row, of_row[: len(row)]) for row, of_row in zip(tokens, chosen_by, strict=True)]


def copy_numbers(prompt_ids: Sequence[Sequence[int]]) -> list[int]:
    """How many equal prompts stand before each one."""
    seen: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for ids in map(tuple, prompt_ids):
        numbers.append(seen[ids])
        seen[ids] += 1
    return numbers


def uniforms(seed: int, prompt_ids: Sequence[int], copy: int, count: int) -> list[float]:
    """[count] float64 in [0, 1): the random numbers of one completion, by which each of its tokens is drawn."""
    key = draw_key(seed, prompt_ids, copy)
    return np.random.Generator(np.random.Philox(key=key)).random(count).tolist()


def _batches(
    lengths: dict[int, int], left: dict[int, int], size: int, max_tokens: int, together: Batching
) -> Iterator[list[int]]:
    """The rows in batches of similar length, longest first, as the model can take them together.

    A batch has at most `size` rows, and unless it is one row at most `max_tokens` positions: rows times the longest
    text so far (`lengths`) with the most tokens that may follow (`left`).
    """
    batch: list[int] = []
    most = 0
    for row in sorted(lengths, key=lambda i: lengths[i], reverse=True):
        positions = lengths[batch[0] if batch else row] + max(most, left[row])
        full = len(batch) == size or (len(batch) + 1) * positions > max_tokens
        if batch and (full or (together != "any" and lengths[row] != lengths[batch[0]])):
            yield batch
            batch, most = [], 0
        batch.append(row)
        most = max(most, left[row])
    if batch:
        yield batch


def _contiguous(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The head's input. Of a prompt it is a slice, the last position. A slice by a frozen weight torch multiplies as a
    batch of matrices: it would copy the head once for every row (3.6 GB for 64 rows of SmolLM2)."""
    return inputs[0].contiguous()


class _Choose(LogitsProcessor):
    """Leaves the most likely token as it is; notes its log-probability, and whether there were logits to choose by."""

    def __init__(self, device: torch.device):
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.logprobs: list[Tensor] = []  # [B] a step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        self.finite &= ~scores.isnan().any()
        self.logprobs.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores

    def check(self) -> None:
        """Raise UserError if a token was chosen by logits that were none."""
        if not self.finite:
            raise UserError(f"the model gives no probabilities (NaN or infinite) for the next token: {DIVERGED}")


class _Draw(_Choose):
    """Makes one token the most likely: that at which the cumulative distribution exceeds the row's next number.

    drawn: [B, T] float64, uniform in [0, 1).
    """

    def __init__(self, drawn: Tensor, temperature: float):
        super().__init__(drawn.device)
        self.drawn, self.temperature, self.step = drawn, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        probabilities = (scores / self.temperature).softmax(-1)
        # In float64: a sum of many small probabilities in float32 would favour some tokens.
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        self.finite &= total.isfinite().all()
        token = torch.searchsorted(cumulative, self.drawn[:, self.step, None] * total, right=True)
        token.clamp_(max=scores.shape[1] - 1)
        self.step += 1
        self.logprobs.append(probabilities.gather(1, token).log().squeeze(1))
        return scores.scatter_(1, token, torch.inf)


class _Stop(StoppingCriteria):
    """Ends a row at its end of sequence or budget, and the batch once at most `stragglers` rows are unfinished."""

    def __init__(self, ends: set[int], budgets: list[int], stragglers: int, device: torch.device):
        self.ends = torch.tensor(sorted(ends), device=device)
        self.budgets = torch.tensor(budgets, device=device)
        self.stragglers, self.generated = stragglers, 0
        self.done = torch.zeros(len(budgets), dtype=torch.bool, device=device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.generated += 1
        self.done |= torch.isin(input_ids[:, -1], self.ends) | (self.budgets <= self.generated)
        return self.done | ((~self.done).sum() <= self.stragglers)


def up_to_end(sequence: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end of sequence, which is kept: it is part of the action."""
    first = next((position for position, token in enumerate(sequence) if token in ends), len(sequence))
    return sequence[: first + 1]


def have_ended(model: Any, completion_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """[N] bool: which completions came to an end; the others ran into the limit of new tokens."""
    ends = end_ids(model)
    return np.array([ids[-1] in ends for ids in completion_ids], bool)


def end_ids(model: Any) -> set[int]:
    """The tokens that end a completion, by the model's generation config."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}
