"""The part of a language model that its head reads, found by running the model and not by its name."""

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from leftover.models.load import is_encoder_decoder, max_positions, unwrapped
from leftover.models.logprobs import of_tokens, virtual_tokens

_LENGTH, _CONTINUED = 12, 3  # tokens of a text that a model is tried on, and of what it adds to one

_known: "WeakKeyDictionary[nn.Module, nn.Module]" = WeakKeyDictionary()


@contextlib.contextmanager
def capture_hidden(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inside, `captured['hidden']` holds the last hidden states [B, L, H] of the last forward.

    Those of an encoder-decoder are the encoder's, of the prompts alone.
    """
    captured: dict[str, Tensor] = {}

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        captured["hidden"] = of_tokens(model, _states(output))

    with trunk_of(model).register_forward_hook(keep):
        yield captured


def trunk_of(model: Any) -> nn.Module:
    """The largest of the modules that the model's own forward calls: `model` of Llama, `model.decoder` of OPT.

    Found once for every model, by a pass over a few tokens. Of an encoder-decoder: its encoder.
    """
    inner = unwrapped(model)
    if is_encoder_decoder(inner):
        return inner.get_encoder()
    if inner not in _known:
        called: list[nn.Module] = []
        inside: list[nn.Module] = []

        def enter(module: nn.Module, _: Any) -> None:
            inside.append(module)

        def leave(module: nn.Module, _: Any, output: Any) -> None:
            inside.pop()
            states = _states(output)
            if not inside and isinstance(states, Tensor) and states.shape[:2] == ids.shape:
                called.append(module)

        ids = texts(inner)[:1].to(next(inner.parameters()).device)
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for module in inner.modules():
                if module is not inner:
                    hooks.enter_context(module.register_forward_pre_hook(enter))
                    hooks.enter_context(module.register_forward_hook(leave))
            inner(input_ids=ids, use_cache=False)
        # Of equally large ones, as in a model that is a list of layers, the last.
        _known[inner] = max(reversed(called), key=lambda module: sum(1 for _ in module.modules()))
    return _known[inner]


def texts(model: Any) -> Tensor:
    """[2, L] tokens that are not special; two texts that share the first half, and no token after it."""
    config, limit = model.config.get_text_config(), max_positions(model.config) or 0
    length = min(_LENGTH, max(4, limit - virtual_tokens(model) - _CONTINUED)) if limit > 0 else _LENGTH
    special: set[Any] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        found = getattr(config, name, None)
        special |= set(found) if isinstance(found, list) else {found}
    usable = [token for token in range(model.get_input_embeddings().weight.shape[0]) if token not in special]
    ids = [usable[(7 * i + 3) % len(usable)] for i in range(2 * length)]
    half = length // 2
    return torch.tensor([ids[:length], ids[:half] + ids[length : 2 * length - half]])


def _states(output: Any) -> Any:
    """The first value of what a module returns: a tensor, a tuple or one of transformers' outputs."""
    return output if isinstance(output, Tensor) else output[0]
