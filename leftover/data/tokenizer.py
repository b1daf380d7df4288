"""Loading a tokenizer and its chat template."""

from pathlib import Path
from typing import Any

from leftover.errors import UserError, first_line

# A plain transcript for base models without a chat template of their own. The generation prompt ends in the colon:
# a space after it would be a token of its own there, and part of the next word's in a whole transcript.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'user': '\n\nHuman: ', 'assistant': '\n\nAssistant: '}.get(message['role'], '') }}"
    "{{ message['content'].strip() }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def load_tokenizer(path: str, *, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer at `path` (folder or Hub id), with a padding token; `chat_template: plain` names ours."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at '{path}' (key model.tokenizer or model.path): {first_line(error)}") from error
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
