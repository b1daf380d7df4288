"""The training step as the paper's authors released it, written anew: what it computes, and nothing that it does not.

Every step runs the policy AND a second, live copy of the reference on randomly composed batches, takes logits at
every position of both (prompt and padding included), and evaluates the value head again, although the reference's
log-probabilities and the value of a prompt never change. A test holds its losses and gradients against ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def step_loss(
    policy: nn.Module,
    reference: nn.Module,
    value_head: nn.Module,
    rows: Sequence[dict[str, Any]],
    pad_token_id: int,
    clip: float = 0.9,
) -> tuple[Tensor, Tensor]:
    """A-LoL seq: the mean loss of a batch, and the loss of every row [B].

    loss = -max(R - V, 0) sum_t clip(pi(y_t) / pi_ref(y_t)) log pi(y_t), the ratio taken as a constant.
    """
    device = next(policy.parameters()).device
    input_ids, attention_mask, num_prompt, completion_mask = padded(rows, pad_token_id, device)
    logprobs = all_logprobs(policy(input_ids=input_ids, attention_mask=attention_mask).logits, input_ids)
    with torch.no_grad():
        output = reference(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        reference_logprobs = all_logprobs(output.logits, input_ids)
        values = value_head(output.hidden_states[-1][:, :num_prompt].float(), attention_mask[:, :num_prompt])
        rewards = torch.tensor([row["reward"] for row in rows], device=device)
        advantages = (rewards - values.float()).clamp(min=0)
    # Column t of all_logprobs is of token t + 1, so completion tokens begin at the prompt's last column.
    logprobs = logprobs[:, num_prompt - 1 :]
    ratios = (logprobs.detach() - reference_logprobs[:, num_prompt - 1 :]).exp().clamp(1 - clip, 1 + clip)
    losses = -advantages * (ratios * logprobs * completion_mask).sum(1)
    return losses.mean(), losses


def all_logprobs(logits: Tensor, input_ids: Tensor) -> Tensor:
    """log pi of every token but the first, [B, L - 1], from the whole vocabulary's log-softmax at every position."""
    everything = logits[:, :-1].float().log_softmax(-1)
    return everything.gather(2, input_ids[:, 1:, None]).squeeze(2)


def padded(
    rows: Sequence[dict[str, Any]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Prompts padded on the left, completions on the right; ids, mask, the prompts' width, the completions' mask."""
    num_prompt = max(len(row["prompt_ids"]) for row in rows)
    num_completion = max(len(row["completion_ids"]) for row in rows)
    ids = torch.full((len(rows), num_prompt + num_completion), pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        ids[i, num_prompt - len(prompt) : num_prompt + len(completion)] = torch.tensor(prompt + completion)
        mask[i, num_prompt - len(prompt) : num_prompt + len(completion)] = 1
    ids, mask = ids.to(device), mask.to(device)
    return ids, mask, num_prompt, mask[:, num_prompt:]
