"""A tokenizer of the rows' own, for models that start from random weights."""

from collections.abc import Iterable, Iterator
from typing import Any

from leftover.data.rows import as_prompt


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the texts' own, with beginning, end and padding tokens.

    It begins every text with its beginning token; nothing is unknown to it, since every byte is a token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def texts_of(rows: Any) -> Iterator[str]:
    """The text of every row as a model would read it: prompt (its messages' contents) and completion."""
    for batch in rows.select_columns(["prompt", "conversational", "completion"]).iter(batch_size=2048):
        for prompt, conversational, completion in zip(*batch.values(), strict=True):
            if conversational:
                prompt = "\n".join(message["content"] for message in as_prompt(prompt, True)) + "\n"
            yield prompt + completion
