"""Tokenizers: one is loaded with its chat template, or trained on the rows for a model of random weights."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from leftover.data.encode import Encoder
from leftover.data.rows import as_prompt
from leftover.errors import RECIPE, SettingNames, UserError, not_readable

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase as Tokenizer

# A plain transcript for base models without a chat template. The generation prompt ends in the colon:
# a space after it would be a token of its own there, and part of the next word's in a whole transcript.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': '\n\nHuman: ', 'assistant': '\n\nAssistant: '}.get(message['role'], '') }}"
    "{{ message['content'].strip() }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def load_tokenizer(
    path: str, *, chat_template: str | None = None, trust_remote_code: bool = False, names: SettingNames = RECIPE
) -> "Tokenizer":
    """The tokenizer at `path` (folder or Hub id), with a padding token; `chat_template: plain` names ours."""
    from transformers import AutoTokenizer

    with not_readable(f"no tokenizer at '{path}' ({names.tokenizer})"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer at '{path}' has no end-of-sequence token; set one and save it again")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is always masked, never trained on
    tokenizer.chat_template = read_chat_template(chat_template) or tokenizer.chat_template
    return tokenizer


def read_chat_template(setting: str | None) -> str | None:
    """The text of a chat template given as itself, as a file, or as `plain`, which names ours."""
    if setting == "plain":
        return PLAIN_CHAT_TEMPLATE
    if setting is None or "{" in setting:
        return setting
    if not Path(setting).is_file():
        raise UserError(f"model.chat_template '{setting}' is neither 'plain', nor a file, nor a Jinja template")
    return Path(setting).read_text(encoding="utf-8")


def single_token(tokenizer: "Tokenizer", text: str, key: str) -> int:
    """The id of a text of `end_tokens`. Raises UserError, which begins with `key`, if it is not one token."""
    known, encoder = tokenizer.convert_tokens_to_ids(text), Encoder(tokenizer)
    unknown = None if text == tokenizer.unk_token else tokenizer.unk_token_id  # GPT-2's end of sequence is both
    if isinstance(known, int) and known != unknown:
        return known
    for ids in encoder.middles(text):  # alone, some tokenizers put a blank before it
        if len(ids) == 1 and ids[0] != unknown:
            return ids[0]
    (ids,) = encoder.plain([text])
    raise UserError(
        f"{key}: {text!r} is not one token of this tokenizer but {len(ids)}, "
        f"{tokenizer.convert_ids_to_tokens(ids)}: name one, or add it to the tokenizer"
    )


def num_tokens(tokenizer: "Tokenizer") -> int:
    """How many embeddings a model needs for a tokenizer: its ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer trained on the texts, with beginning, end and padding tokens.

    It begins every text with its beginning token; every byte is a token, so that none is unknown.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizers.Tokenizer(models.BPE())
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


def texts_of(rows: "Dataset") -> Iterator[str]:
    """The text of every row as a model would read it: prompt (its messages' contents) and completion."""
    for batch in rows.select_columns(["prompt", "conversational", "completion"]).iter(batch_size=2048):
        for prompt, conversational, completion in zip(*batch.values(), strict=True):
            if conversational:
                prompt = "\n".join(message["content"] for message in as_prompt(prompt, True)) + "\n"
            yield prompt + completion
