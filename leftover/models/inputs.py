"""How prompts and completions reach a model: as one text, or as two, of which the encoder reads the first.

The only place that knows which kind a model is; what calls it gets the arguments of a forward pass or of `generate`,
and where completion tokens are predicted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leftover.data.collate import pad
from leftover.models.load import is_encoder_decoder, start_token


class Inputs(NamedTuple):
    """A batch as a model's forward pass takes it.

    width: L, the positions of a row that reach the head. predicting: [N] int64, where in the flattened [B L] the N
    completion tokens are predicted, row by row.
    """

    arguments: dict[str, Tensor]
    width: int
    predicting: Tensor


def inputs_of(model: Any, batch: Mapping[str, Tensor]) -> Inputs:
    """Prompts and completions in the aligned layout (`leftover.data.collate.Collator`). Every prompt has a token."""
    if not is_encoder_decoder(model):
        input_ids, predicting = join(batch)
        return Inputs({"input_ids": input_ids}, input_ids.shape[1], predicting)
    ids, mask = batch["prompt_ids"], batch["prompt_mask"].bool()
    _check_prompts(int(mask.sum(1).min()))
    # Padding goes behind the text: some encoders count positions from the first.
    order = torch.argsort(~mask, dim=1, stable=True)
    completion_ids = batch["completion_ids"]
    # What the decoder reads is shifted: each token is predicted by those before it, the first by the start token. It
    # needs no mask, since padding stands behind all that is predicted.
    decoder_ids = torch.cat([_starts(model, completion_ids), completion_ids[:, :-1]], dim=1)
    arguments = {"input_ids": ids.gather(1, order), "attention_mask": mask.gather(1, order).long()}
    arguments["decoder_input_ids"] = decoder_ids
    predicting = batch["completion_mask"].bool().flatten().nonzero().squeeze(1)
    return Inputs(arguments, decoder_ids.shape[1], predicting)


def inputs_of_prompts(model: Any, ids: Tensor, mask: Tensor | None = None) -> Inputs:
    """Prompts [B, L] alone, padded on the right (`mask`; None: nowhere). One position reaches the head."""
    first = torch.zeros(1, dtype=torch.int64, device=ids.device)
    if not is_encoder_decoder(model):
        return Inputs({"input_ids": ids}, ids.shape[1], first)
    mask = torch.ones_like(ids) if mask is None else mask.long()
    return Inputs({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": _starts(model, ids)}, 1, first)


def inputs_to_continue(
    model: Any, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], pad_id: int
) -> tuple[dict[str, Tensor], int]:
    """Arguments of `generate` for prompts and what was written behind each, and at which position it goes on."""
    if not is_encoder_decoder(model):
        ids, mask = pad([[*p, *w] for p, w in zip(prompts, written, strict=True)], pad_id, left=True)
        return {"input_ids": ids, "attention_mask": mask.long()}, ids.shape[1]
    ids, mask = pad(prompts, pad_id)
    begun, begun_mask = pad([[start_token(model), *w] for w in written], pad_id, left=True)
    decoder = {"decoder_input_ids": begun, "decoder_attention_mask": begun_mask.long()}
    return {"input_ids": ids, "attention_mask": mask.long()} | decoder, begun.shape[1]


def join(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts and completions as one row each, from position 0. Every prompt has a token.

    Returns:
        `input_ids` [B, L], without the last token of the longest row, which is only ever a target; and [N] int64,
        where in the flattened [B L] the N completion tokens are predicted, row by row.
    """
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool()
    prompt_lengths, completion_mask = batch["prompt_mask"].sum(1), batch["completion_mask"].bool()
    longest, shortest_prompt = torch.stack([mask.sum(1).max(), prompt_lengths.min()]).tolist()
    _check_prompts(shortest_prompt)
    width = longest - 1
    # A stable sort of the padding behind the tokens keeps their order.
    input_ids = ids.gather(1, torch.argsort(~mask, dim=1, stable=True))[:, :width]
    first = torch.arange(len(ids), device=ids.device) * width + prompt_lengths - 1
    offsets = torch.arange(completion_mask.shape[1], device=ids.device)
    return input_ids.contiguous(), (first[:, None] + offsets)[completion_mask]


def _starts(model: Any, ids: Tensor) -> Tensor:
    """[B, 1], the token that the decoder begins with."""
    return ids.new_full((len(ids), 1), start_token(model))


def _check_prompts(shortest: int) -> None:
    if shortest == 0:
        raise ValueError("a prompt without a token: nothing predicts the first token of its completion")
