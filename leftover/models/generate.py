"""Completions of a policy, greedy or sampled, in length-sorted batches that do not wait for their longest row."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria

from leftover.data.collate import pad
from leftover.data.tokens import decode_completions
from leftover.errors import UserError
from leftover.models.reference import evaluating
from leftover.monitoring.terminal import progress_bar

# A batch ends once at most this share of its rows is unfinished: the stragglers of all batches continue together in
# the next round. Reading them again there costs a step or two, and no batch runs on for a few rows.
_STRAGGLERS = 1 / 8


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
    seed: int = 0,
    description: str | None = None,
) -> tuple[list[list[int]], list[str]]:
    """One completion for each prompt: token ids (end of sequence included if it was reached) and texts.

    The global random state is left as it was, so that generating in the middle of training does not change
    the run. Completions come from the model's own distribution, whatever its folder asks for: sampled at `temperature`
    without top-k and top-p, or greedily, the most likely token at every step.
    """
    completions: list[list[int]] = [[] for _ in prompt_ids]
    decoding = {"do_sample": sample} | ({"temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {})
    ends = end_ids(model)
    unfinished = list(range(len(prompt_ids)))
    bar = progress_bar(len(unfinished), description or "", "completion", shown=description is not None)
    with (
        evaluating(model, None) as device,
        bar,
        _own_distribution(model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)
        if prompt_ids:
            _check_finite(model, torch.tensor([list(prompt_ids[0])], device=device))
        while unfinished:
            waiting = sorted(unfinished, key=lambda i: len(prompt_ids[i]) + len(completions[i]), reverse=True)
            unfinished = []
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                budgets = [max_new_tokens - len(completions[i]) for i in batch]
                texts = [[*prompt_ids[i], *completions[i]] for i in batch]
                ids, mask = pad(texts, tokenizer.pad_token_id, left=True)
                # The last batch has no others to leave its stragglers to.
                stragglers = round(_STRAGGLERS * len(batch)) if len(waiting) > batch_size else 0
                output = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.long().to(device),
                    max_new_tokens=max(budgets),
                    pad_token_id=tokenizer.pad_token_id,
                    use_cache=True,
                    stopping_criteria=[_Stop(ends, budgets, stragglers, device)],
                    **decoding,
                )[:, ids.shape[1] :]
                for i, budget, sequence in zip(batch, budgets, output.tolist(), strict=True):
                    completions[i] += up_to_end(sequence[:budget], ends)
                    if completions[i][-1] not in ends and len(completions[i]) < max_new_tokens:
                        unfinished.append(i)
                    else:
                        bar.update()
    return completions, decode_completions(tokenizer, completions, ends)


def _check_finite(model: Any, input_ids: Tensor) -> None:
    """Raises UserError for a model that gives no token a probability: sampling would crash, greedy texts be noise."""
    if input_ids.shape[1] and model(input_ids=input_ids, use_cache=False).logits[0, -1].isnan().any():
        raise UserError(
            "the model gives no probabilities (nan) for the next token: its weights have diverged (lower "
            "learning_rate, or set max_grad_norm) or are damaged, or its dtype is too narrow (model.dtype: float32)"
        )


@contextlib.contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Inside, the generation config holds nothing but the special tokens.

    Other settings of a model's folder (repetition penalties, min-p, forced tokens, beams, several sequences a prompt)
    would be filled in, and completions would not come from the model's own distribution.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    usual = inner.generation_config
    special = {name: getattr(usual, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    inner.generation_config = GenerationConfig(**special)
    try:
        yield
    finally:
        inner.generation_config = usual


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


def end_ids(model: Any) -> set[int]:
    """The tokens that end a completion, by the model's generation config."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}
