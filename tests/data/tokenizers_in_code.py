"""Small tokenizers of the kinds in use, made in code: byte-level and sentencepiece-like ones, with what they add."""

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["hello world today, how are you?", "Question: I am fine. Answer: it is four!", "wor ld ine thanks"] * 9
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def finished(backend: Tokenizer, adds: str = "$A", **tokens: str | None) -> Any:
    """The tokenizer of transformers; `adds` is what it puts around a text."""
    backend.post_processor = processors.TemplateProcessing(single=adds, special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} | tokens
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_level(adds: str = "$A", prefix: bool = False, normalizer: Any = None, **tokens: str | None) -> Any:
    """GPT-2's, Llama 3's; with `prefix` a blank before every text, as RoBERTa's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(backend, trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, **_size(400)))
    return finished(backend, adds, **tokens)


def legacy(adds: str = "<s> $A") -> Any:
    """Llama 2's and Mistral 7B's: a blank before every text, also behind special tokens."""
    backend = _bytes_for_unknown()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _train(backend, trainers.BpeTrainer(special_tokens=SPECIAL + BYTES, **_size(400)), split=True)
    backend.decoder = _blanks(strip=True)
    return finished(backend, adds)


def metaspace(scheme: str = "first", adds: str = "<s> $A") -> Any:
    backend = _bytes_for_unknown()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    _train(backend, trainers.BpeTrainer(special_tokens=SPECIAL + BYTES, **_size(400)))
    backend.decoder = _blanks(strip=scheme != "never")
    return finished(backend, adds)


def unigram(adds: str = "$A </s>") -> Any:
    """T5's: any white space is one blank."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    _train(backend, trainers.UnigramTrainer(special_tokens=SPECIAL, unk_token="<unk>", **_size(80)))
    backend.decoder = decoders.Metaspace()
    return finished(backend, adds)


def word_ends() -> Any:
    """The first GPT's: small letters, and a token that ends a word cannot be gone on with."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    _train(backend, trainers.BpeTrainer(special_tokens=SPECIAL, end_of_word_suffix="</w>", **_size(200)))
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return finished(backend)


KINDS: dict[str, Callable[[], Any]] = {
    "byte level": byte_level,
    "byte level, begins": lambda: byte_level("<s> $A"),
    "byte level, blank before": lambda: byte_level("<s> $A </s>", prefix=True),
    "legacy": legacy,
    "metaspace first": metaspace,
    "metaspace always, both": lambda: metaspace("always", "<s> $A </s>"),
    "metaspace never": lambda: metaspace("never"),
    "unigram, ends": unigram,
}


def _bytes_for_unknown() -> Tokenizer:
    return Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))


def _blanks(strip: bool) -> Any:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])


def _size(vocabulary: int) -> dict[str, Any]:
    return {"vocab_size": vocabulary, "show_progress": False}


def _train(backend: Tokenizer, trainer: Any, split: bool = False) -> None:
    backend.train_from_iterator([word for text in TEXTS for word in text.split()] if split else TEXTS, trainer)
