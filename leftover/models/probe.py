"""What a language model must be able to do, found by running it on a few tokens."""

import contextlib
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor

from leftover.errors import UserError, first_line, located
from leftover.models.inputs import inputs_to_continue
from leftover.models.load import is_encoder_decoder, start_token, unwrapped
from leftover.models.logprobs import head_sees_only, of_tokens, virtual_tokens
from leftover.models.reference import evaluating
from leftover.models.trunk import texts

# How much of what other tokens change may be rounding. Rows of one batch do not differ at all, unless experts are
# chosen, which see more or fewer tokens. Models with random weights that read ahead change .003 and more.
_ROUNDING, _ROUNDING_16_BIT = 1e-3, 0.02
# The same for a row in batches of different shapes, by root mean squares: rounding of SmolLM2 in bfloat16 makes .02 to
# .045 of what another text changes, models that read padding or mix rows .23 and more. By the largest difference of a
# probability the two overlapped (.2, .13), and a model was taken for one that writes a row at a time.
_ROUNDING_16_BIT_OF_SHAPES = 0.1
# By how much of what another text changes a continuation may differ from the pass that scores it. Rounding makes .006
# of it in bfloat16; models that count positions or add tokens there, 1.2 and more.
_OTHERWISE = 0.5

Batching: TypeAlias = Literal["any", "equally long", "single"]

_known: "WeakKeyDictionary[nn.Module, Batching]" = WeakKeyDictionary()


@torch.no_grad()
def check_causal(model: Any, what: str) -> None:
    """Refuse a model that does not predict each token from those before it alone; `what` names it in the error.

    Two texts share a beginning: what is predicted there must be equal. The head must make of single positions what the
    model makes of all, since completions are scored so; and what it generates must have these probabilities. Of an
    encoder-decoder that is tried on texts of the decoder, and padding behind its prompts must change nothing.
    """
    kind = type(unwrapped(model)).__name__
    if is_encoder_decoder(model):
        _check_two_texts(model, what)
    if any(parameter.is_meta or not parameter.numel() for parameter in model.parameters()):
        return  # its weights lie in parts with several processes
    with evaluating(model, None) as device, located(what):
        some = texts(model).to(device)
        ids = _begun(model, some)
        everywhere = torch.arange(ids.numel(), device=device)
        try:
            logprobs = of_tokens(model, _logprobs(model, ids))
            with head_sees_only(model, everywhere, ids.shape[1]):
                scored = _logprobs(model, ids).reshape(logprobs.shape)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"{kind} cannot read a text alone: {first_line(error)}") from error
        if logprobs.isnan().any():
            raise UserError(f"what {kind} predicts is not finite (NaN): its weights are damaged")
        shared = some.shape[1] // 2
        changes = _difference(logprobs[0], logprobs[1])
        ahead = float(changes[:shared].max())
        rounding = _rounding(model, _ROUNDING_16_BIT) * float(changes[shared:].max())
        if ahead > rounding:
            raise UserError(
                f"no causal language model: what {kind} predicts after {shared} tokens changes with the tokens that "
                f"follow them (log-probabilities by {ahead:.2g}); take a decoder, such as Llama or GPT-2"
            )
        if float(_difference(logprobs, scored).max()) > max(rounding, 1e-4):
            raise UserError(f"{kind} does not make its logits position by position: its completions cannot be scored")
        _check_continued(model, some[:, shared:], kind)
        if is_encoder_decoder(model):
            _check_padded(model, some, kind)


def _check_two_texts(model: Any, what: str) -> None:
    """Refuse an encoder-decoder that does not say how its decoder begins, or whose adapter has virtual tokens."""
    with located(what):
        start_token(model)
        if (adapter := _learnt_prompt(model)) is not None:
            raise UserError(
                f"an adapter with virtual tokens ({adapter.peft_type.value}) on an encoder-decoder is not supported: "
                "take a LoRA adapter"
            )


def _learnt_prompt(model: Any) -> Any:
    """The config of an adapter that is virtual tokens, before the text or in the cache; None: there is none."""
    adapter = getattr(model, "active_peft_config", None)
    return adapter if adapter is not None and adapter.is_prompt_learning else None


def _check_padded(model: Any, ids: Tensor, kind: str) -> None:
    """Refuse an encoder that reads the padding behind a prompt. `ids`: two texts [2, L]."""
    (long, other), pad_token_id = ids.tolist(), int(ids[0, 0])

    def read(*prompts: list[int]) -> Tensor:
        """[B, 1, V], of the first token of a completion."""
        found, _ = inputs_to_continue(model, prompts, [[]] * len(prompts), pad_token_id)
        return model(**{name: values.to(ids.device) for name, values in found.items()}).logits.float().log_softmax(-1)

    (alone,), (in_batch, of_other) = read(other[-3:]), read(other[-3:], long)
    by_padding, by_prompt = _mean_difference(alone, in_batch), _mean_difference(alone, of_other)
    if not by_padding <= max(_rounding(model, _ROUNDING_16_BIT_OF_SHAPES) * by_prompt, 1e-6):
        raise UserError(
            f"{kind} reads the padding behind a prompt (log-probabilities change by {by_padding:.2g}): its rows cannot "
            "be scored together; take another model, such as T5 or BART"
        )


def _begun(model: Any, ids: Tensor) -> Tensor:
    """Texts [B, L] as they are read: an encoder-decoder's decoder begins with a token of its own."""
    if not is_encoder_decoder(model):
        return ids
    return torch.cat([ids.new_full((len(ids), 1), start_token(model)), ids], dim=1)


def _asked(model: Any, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The arguments for texts [B, L] to be read; those of an encoder-decoder are its decoder's, behind one prompt."""
    masks = {} if mask is None else {"attention_mask": mask}
    if not is_encoder_decoder(model):
        return {"input_ids": ids} | masks
    prompt = texts(model)[:1].to(ids.device).expand(len(ids), -1)
    return {"input_ids": prompt, "decoder_input_ids": ids} | {f"decoder_{name}": of for name, of in masks.items()}


def _check_continued(model: Any, ids: Tensor, kind: str) -> None:
    """Refuse a model that goes on with a text otherwise than it reads one, or not at all. `ids`: two texts [2, L]."""
    token, ids = int(ids[0, 0]), _begun(model, ids)
    read = [
        of_tokens(model, _logprobs(model, torch.cat([row, row.new_full((2,), token)])[None]))[0, -3:].exp()
        for row in ids
    ]
    try:
        with own_distribution(model):
            generated = _continued(model, ids[:1], torch.ones_like(ids[:1]), token, token)[0].exp()
    except (TypeError, ValueError, NotImplementedError, AttributeError, LookupError) as error:
        raise UserError(f"{kind} cannot go on with a text: {first_line(error)}") from error
    adapter = _learnt_prompt(model)
    # Whoever generates without an adapter's tokens, or counts positions without them, is off by little.
    share = _OTHERWISE if adapter is None else _rounding(model, _ROUNDING_16_BIT)
    if float((generated - read[0]).abs().max()) > max(share * float((read[1] - read[0]).abs().max()), 1e-6):
        if adapter is not None:
            raise UserError(
                f"with an adapter of virtual tokens, {kind} generates with other probabilities than it reads a text "
                f"with under peft {version('peft')} and transformers {version('transformers')} (peft 0.21 does not go "
                "with transformers 5.24 there): install transformers<5.24 or a later peft, or take a LoRA adapter"
            )
        raise UserError(
            f"{kind} generates with other probabilities than it reads a text with (as one that counts positions "
            "otherwise there does): its completions would not be those that are scored; take another decoder, such as "
            "Llama or GPT-2"
        )


def check_trainable(model: Any, what: str) -> None:
    """Refuse a model whose weights are all frozen, as those of a prompt that was tuned and saved."""
    adapter = _learnt_prompt(model)
    saved_prompt = adapter is not None and adapter.inference_mode
    if saved_prompt or not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{what}: none of its weights trains (an adapter with virtual tokens trains only while it is new): name a "
            "whole model or a LoRA adapter"
        )


@torch.inference_mode()
def batching(model: Any, pad_token_id: int) -> Batching:
    """Which rows a model continues together as it does alone. Found once for every model.

    Recurrent models may read the padding on the left of a shorter row, or mix the states of a batch.
    """
    if model not in _known:
        some = texts(model).to(next(model.parameters()).device)
        token = int(some[0, 0])
        (long, other), (_, short) = _begun(model, some), _begun(model, some[:, -3:])
        padding = torch.full_like(long[: len(long) - len(short)], pad_token_id)
        rounding = _rounding(model, _ROUNDING_16_BIT_OF_SHAPES)

        def agree(row: Tensor, in_batch: Tensor) -> bool:
            mask = torch.ones(2, len(long), dtype=torch.int64, device=long.device)
            mask[1, : len(long) - len(row)] = 0
            alone = _continued(model, row[None], mask[:1, : len(row)], token, pad_token_id)[0]
            first, second = _continued(model, torch.stack([long, in_batch]), mask, token, pad_token_id)
            by_batch, by_text = _mean_difference(alone, second), _mean_difference(alone, first)
            return by_batch <= rounding * by_text and math.isfinite(by_batch)

        # Padding would stand between the virtual tokens of an adapter and the text.
        together = not virtual_tokens(model) and agree(short, torch.cat([padding, short]))
        _known[model] = "any" if together else "equally long" if agree(other, other) else "single"
    return _known[model]


def _continued(model: Any, ids: Tensor, mask: Tensor, token: int, pad_token_id: int) -> Tensor:
    """Log-probabilities [B, 3, V] of the next three tokens, the first two of which are `token`."""
    found = model.generate(
        **_asked(model, ids, mask),
        generation_config=GenerationConfig(
            max_new_tokens=3,
            pad_token_id=pad_token_id,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ),
        logits_processor=[_Given(token)],
    )
    return torch.stack(found.logits, dim=1).float().log_softmax(-1)


class _Given(LogitsProcessor):
    """Has every row go on with one token."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        return scores.index_fill(1, torch.tensor([self.token], device=scores.device), torch.inf)


@contextlib.contextmanager
def own_distribution(model: Any) -> Iterator[None]:
    """Inside, the generation config holds nothing but the special tokens.

    Other settings of a model's folder (repetition penalties, min-p, forced tokens, beams, several sequences a prompt)
    would be filled in, and completions would not come from the model's own distribution.
    """
    inner = unwrapped(model)
    usual = inner.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    special = {name: getattr(usual, name) for name in names}
    inner.generation_config = GenerationConfig(**special)
    try:
        yield
    finally:
        inner.generation_config = usual


def _logprobs(model: Any, ids: Tensor) -> Tensor:
    return model(**_asked(model, ids), use_cache=False).logits.float().log_softmax(-1)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """The largest over the vocabulary; two probabilities of 0 are equal."""
    return (one - other).nan_to_num(0.0).abs().amax(-1)


def _mean_difference(one: Tensor, other: Tensor) -> float:
    """The root mean square over the vocabulary; two probabilities of 0 are equal, no numbers are not."""
    return float(torch.where(one == other, 0.0, one - other).square().mean().sqrt())


def _rounding(model: Any, of_16_bit: float) -> float:
    exact = model.dtype in (torch.float32, torch.float64) and getattr(unwrapped(model), "hf_quantizer", None) is None
    return _ROUNDING if exact and not torch.is_autocast_enabled(model.device.type) else of_16_bit
