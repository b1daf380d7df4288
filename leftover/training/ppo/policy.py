"""What PPO needs of a policy: log-probability, value and entropy of every completion token."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leftover.models.inputs import inputs_of
from leftover.models.logprobs import head_sees_only, selected_logprobs
from leftover.models.reference import collated, evaluating, in_batches
from leftover.objectives.ppo import entropy


class ValueHead(nn.Linear):
    """V(x, y_<t), the return from a token on, from the last hidden state before it. A linear layer of zeros at first.

    `ValueHead(hidden_size)(hidden[N, H]) -> [N]` in float32, under autocast too.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float()).squeeze(-1)


VALUE_HEAD = "value_head"


def attach_value_head(policy: Any) -> ValueHead:
    """Give a language model a value head: a module that trains along and is not saved with the model."""
    output = policy.get_output_embeddings()
    head = ValueHead(getattr(output, "in_features", output.weight.shape[-1])).to(output.weight.device)
    setattr(policy, VALUE_HEAD, head)
    if not hasattr(policy, "peft_config"):  # an adapter saves nothing but itself
        keys = {f"{VALUE_HEAD}.{name}" for name in head.state_dict()}
        policy._keys_to_ignore_on_save = {*(policy._keys_to_ignore_on_save or ()), *keys}
    return head


class TokenOutputs(NamedTuple):
    """[B, T] float32 of every completion token, 0 at padding."""

    logprobs: Tensor
    values: Tensor
    entropies: Tensor  # 0 if they are not asked for


def token_outputs(
    model: nn.Module, batch: Mapping[str, Tensor], *, temperature: float = 1.0, entropies: bool = False
) -> TokenOutputs:
    """log pi(y_t), V before y_t and, where asked for, the entropy of pi there, in one pass.

    Args:
        model: with a value head; else as for `leftover.models.logprobs.completion_logprobs`.
        batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask` in the aligned layout.
        temperature: logits are divided by it, as in sampling.
        entropies: also the exact entropies, without a gradient.
    """
    mask = batch["completion_mask"].bool()
    inputs = inputs_of(model, batch)
    with head_sees_only(model, inputs.predicting, inputs.width) as captured:
        logits = model(**inputs.arguments, use_cache=False).logits
    logits = logits.flatten(0, 1) if temperature == 1 else logits.flatten(0, 1) / temperature
    values = getattr(getattr(model, "module", model), VALUE_HEAD)(captured["hidden"].flatten(0, 1))
    found = entropy(logits.detach()) if entropies else torch.zeros_like(values)
    logprobs = selected_logprobs(logits, batch["completion_ids"][mask], overwrite_logits=not entropies)

    def placed(numbers: Tensor) -> Tensor:
        return torch.zeros(mask.shape, device=numbers.device).masked_scatter(mask, numbers)

    return TokenOutputs(placed(logprobs), placed(values), placed(found))


@torch.no_grad()
def score_tokens(
    policy: nn.Module,
    pad_token_id: int,
    rows: Sequence[dict[str, Any]],
    *,
    compute_dtype: str | None = None,
    temperature: float = 1.0,
    entropies: bool = False,
) -> TokenOutputs:
    """`token_outputs` of rows with `prompt_ids` and `completion_ids`, on the CPU, in batches of bounded size.

    Two policies of equal weights differ by exactly 0.
    """
    longest = max(len(row["completion_ids"]) for row in rows)
    out = TokenOutputs(*(torch.zeros(len(rows), longest) for _ in range(3)))
    with evaluating(policy, compute_dtype) as device:
        lengths, batch_of = collated(rows, pad_token_id, device)

        def read(chosen: list[int]) -> None:
            found = token_outputs(policy, batch_of(chosen), temperature=temperature, entropies=entropies)
            for whole, part in zip(out, found, strict=True):
                whole[chosen, : part.shape[1]] = part.float().cpu()

        in_batches(lengths, device, read)
    return out
