"""How text prompts and completions meet: as a chat of a chat model, else with a space between them."""

from leftover.commands.guess.columns import ANSWERED, ASKED, TEXT, TEXTS, Column
from leftover.commands.guess.roles import TWO_PARTS, Columns, Roles
from leftover.data.chat import Chat, Conversation, ConversationFault

_PLACE = "PLACE OF THE PROMPT"
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_MOST_BLANK = 0.5  # of texts that bring the white space themselves


def are_conversations(roles: Roles, columns: Columns) -> bool:
    """Whether prompts are messages, which a chat template has to write."""
    if roles.layout == "messages":
        return True
    asked = roles.columns.get("prompt") or roles.columns.get("chosen", "")
    return asked in columns and columns[asked].kind in (ASKED, ANSWERED)


def join_texts(roles: Roles, columns: Columns, chat: Chat | None) -> dict[str, str]:
    """Keys of `data` that part prompt and completion; empty where they are parted already.

    Of a chat model (`chat`; None: prompts are to stay texts) that is its own template, so that it is asked as it has
    learnt to be.
    """
    prompt = roles.columns.get("prompt", "")
    named = columns.get(prompt)
    if prompt != TWO_PARTS and ("{" in prompt or named is None):  # a template of the user's, or no column
        return {}
    if chat is not None and (before := _before(chat)) is not None:
        begun = before.strip()[:8]
        rendered = named is not None and begun and named.sample.startswith(begun)
        return {} if rendered else {"prompts": "chat"}
    held = next((name for name in ("completion", "chosen", "completions") if name in roles.columns), "")
    completion = columns.get(roles.columns.get(held, ""))
    if named is None or named.kind != TEXT or _is_parted(named, completion):
        return {}
    spaced = not any(script in _WITHOUT_SPACES for script, _ in named.scripts.most_common(1))
    if completion is not None and held == "completion" and spaced:
        return {"columns.completion": f" {{{completion.name}}}"}
    return {"columns.prompt": f"{{{prompt}}}\n"}


def _before(chat: Chat) -> str | None:
    """What the chat template writes before the one message of a user; None if there is none that takes it."""
    if chat.tokenizer.chat_template is None:
        return None
    try:
        before, found, _ = chat.asked(Conversation([{"role": "user", "content": _PLACE}])).partition(_PLACE)
    except ConversationFault:
        return None
    return before if found else None


def _is_parted(prompt: Column, completion: Column | None) -> bool:
    if prompt.ending_blank > _MOST_BLANK * prompt.cells:
        return True
    return completion is not None and (
        completion.kind not in (TEXT, TEXTS) or completion.beginning_blank > _MOST_BLANK * completion.cells
    )
