"""Completions of a policy, greedy or sampled, in length-sorted batches."""

from collections.abc import Sequence
from typing import Any

import torch

from leftover.data.collate import pad
from leftover.data.tokens import decode_completions


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sample: bool = False,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    description: str | None = None,
) -> tuple[list[list[int]], list[str]]:
    """One completion for each prompt: token ids (end of sequence included where it was reached) and texts.

    The global random state is left as it was, so that generating in the middle of training does not change
    the run. Sampling is from the model's own distribution at `temperature`: no top-k, no top-p.
    """
    from tqdm import tqdm

    device = next(model.parameters()).device
    completions: list[list[int]] = [[] for _ in prompt_ids]
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]), reverse=True)
    decoding = {"do_sample": sample} | ({"temperature": temperature, "top_k": 0, "top_p": 1.0} if sample else {})
    was_training = model.training
    model.eval()
    ends = _ends(model)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            starts = range(0, len(order), batch_size)
            for start in tqdm(starts, desc=description, leave=False, disable=None if description else True):
                chosen = order[start : start + batch_size]
                ids, mask = pad([prompt_ids[i] for i in chosen], tokenizer.pad_token_id, left=True)
                output = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.long().to(device),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    use_cache=True,
                    **decoding,
                )[:, ids.shape[1] :]
                for i, sequence in zip(chosen, output.tolist(), strict=True):
                    completions[i] = up_to_end(sequence, ends)
    finally:
        model.train(was_training)
    return completions, decode_completions(tokenizer, completions)


def up_to_end(sequence: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end of sequence, which is kept: it is part of the action."""
    for position, token in enumerate(sequence):
        if token in ends:
            return sequence[: position + 1]
    return sequence


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}
