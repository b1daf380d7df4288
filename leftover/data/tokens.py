"""Text -> token ids, under the one truncation rule: prompts are cut on the left, completions dropped or cut."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase as Tokenizer

from leftover.data.chat import SYSTEM_ROLES, Chat, Conversation, ConversationFault, Turn
from leftover.data.encode import Encoder
from leftover.data.records import Row
from leftover.data.rows import first_of
from leftover.errors import UserError

# Rows whose tokens are decoded and compared with the row's text, of each call.
_ROWS_CHECKED = 16


class Limits(NamedTuple):
    max_prompt_tokens: int
    max_completion_tokens: int
    long_completions: str = "drop"  # or "cut", without end of sequence


class Tokenised(NamedTuple):
    """Token ids of many rows; `kept[i]` is False where completion i was too long and `drop` was asked for."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    kept: list[bool]
    prompt_cut: list[bool]
    completion_long: list[bool]
    system_cut: list[bool]  # the cut prompt began with a system turn or with tools, which the cut takes first
    fault: list[str | None]  # why the chat template cannot write the row


def tokenise(
    chat: Chat, rows: Sequence[Row], limits: Limits, *, skip_faulty: bool = False, remedy: str = ""
) -> Tokenised:
    """Token ids of prompts (with what the tokenizer puts before a text) and completions (closed by their end).

    A conversational completion ends in the token that the chat template closes its turn with. A completion without
    any of `Chat.ends` at its end (plain, or of a template that closes no turn) gets the tokenizer's end of sequence;
    one whose row says `ended` is False gets none.
    Prompt and completion are tokenised together and parted where the prompt ends, since tokens at the seam depend on
    both sides; if a token spans the seam, the completion is tokenised apart, as what goes on behind the prompt. Of an
    encoder-decoder they are two texts, each with what its tokenizer puts around one.

    The tokens of the first rows are decoded and compared with their texts, before anything is cut. A row that the chat
    template or the tokenizer cannot write is not kept; unless `skip_faulty`, such rows are raised together as
    UserError, with the remedy.
    """
    turns, faults = _turns(chat, rows, remedy, skip_faulty=skip_faulty)
    encoder, ends = chat.encoder, set(chat.ends)
    first, second = [turn.asked for turn in turns], [turn.whole for turn in turns]
    if chat.two_texts:
        second = [turn.whole.removeprefix(turn.asked) for turn in turns]
    asked_ids, whole_ids = encoder.plain(first), encoder.plain(second)
    out = Tokenised([], [], [], [], [], [], faults)
    for i, (turn, asked, whole) in enumerate(zip(turns, asked_ids, whole_ids, strict=True)):
        text, rendered = turn.whole.removeprefix(turn.asked), bool(rows[i]["conversational"])
        completion: list[int] | None = completion_opening(chat) + whole
        if not chat.two_texts:
            completion = None if faults[i] else encoder.going_on(turn.asked, asked, text, whole, rendered)
        if completion is None:
            faults[i] = faults[i] or _seam_fault(encoder, asked, text)
        elif not (completion and completion[-1] in ends):
            completion = [*completion, chat.tokenizer.eos_token_id]
        prompt, completion = _prompt(chat, asked, rendered), completion or []
        if i < _ROWS_CHECKED and not faults[i]:
            if chat.two_texts:
                encoder.check_kept(turn.asked, asked)
                encoder.check_kept(text, whole)
            else:
                encoder.check(rows[i].get("where", f"row {i}"), turn.asked, text, prompt, completion, rendered)
        if rows[i].get("ended") is False and completion[-1:] and completion[-1] in ends:
            completion = completion[:-1]  # its sampler was stopped before an end
        cut, long = len(prompt) > limits.max_prompt_tokens, len(completion) > limits.max_completion_tokens
        out.prompt_ids.append(cut_prompt(chat, prompt, limits.max_prompt_tokens))
        out.completion_ids.append(completion[: limits.max_completion_tokens])
        out.kept.append(not faults[i] and (not long or limits.long_completions == "cut"))
        out.prompt_cut.append(cut)
        out.completion_long.append(long)
        out.system_cut.append(cut and rendered and _has_system(Conversation.of(rows[i])))
    if not skip_faulty:
        _refuse(rows, faults, "rows cannot be tokenised as they are written", remedy)
    return out


def encode_prompts(chat: Chat, rows: Sequence[Row], remedy: str = "") -> list[list[int]]:
    """Token ids of each prompt as the model would be asked to continue it, uncut; UserError with the rows' faults."""
    turns, _ = _turns(chat, rows, remedy, prompts_only=True)
    encoded = chat.encoder.plain([turn.asked for turn in turns])
    return [_prompt(chat, ids, bool(row["conversational"])) for row, ids in zip(rows, encoded, strict=True)]


def completion_opening(chat: Chat) -> list[int]:
    """What is put before the text of every completion: nothing, but for an encoder-decoder."""
    return chat.encoder.around_target[0] if chat.two_texts else []


def _prompt(chat: Chat, ids: list[int], rendered: bool) -> list[int]:
    """The ids of a prompt's text with what its model has seen around a text that it reads first."""
    opened = chat.encoder.opened(ids, rendered)
    return chat.encoder.closed(opened) if chat.two_texts and not rendered else opened


def reads_seams_anew(chat: Chat, rows: Iterable[Row]) -> bool:
    """Whether any completion is neither the rest of both texts together nor, if a token spans the seam, the text alone.

    Those were the tokens of earlier versions.
    """
    rows = list(rows)
    turns, faults = _turns(chat, rows, "", skip_faulty=True)
    asked_ids, whole_ids = (chat.encoder.plain(texts) for texts in zip(*turns, strict=True))
    for row, turn, fault, asked, whole in zip(rows, turns, faults, asked_ids, whole_ids, strict=True):
        text = turn.whole.removeprefix(turn.asked)
        rest = whole[len(asked) :] if whole[: len(asked)] == asked else []
        before = rest or chat.encoder.plain([text])[0]
        if not fault and before != chat.encoder.going_on(turn.asked, asked, text, whole, bool(row["conversational"])):
            return True
    return False


def cut_prompt(chat: Chat, ids: list[int], limit: int) -> list[int]:
    """The last `limit` tokens of a prompt; what the tokenizer puts before a text is kept in front, as is its beginning
    of sequence."""
    if len(ids) <= limit:
        return ids
    (opening, _), bos = chat.encoder.around, chat.tokenizer.bos_token_id
    head = opening if opening and ids[: len(opening)] == opening else [bos] if ids[0] == bos else []
    if limit <= len(head):
        head = []
    return head + ids[len(ids) - limit + len(head) :]


def decode_completions(
    tokenizer: Tokenizer, completion_ids: Sequence[Sequence[int]], ends: Collection[int] = ()
) -> list[str]:
    """Text of completions, without their end, special tokens and outer white space: what rewards and readers see."""
    # An end need not be a special token, which decoding would leave out.
    inside = [list(ids[:-1] if ids and ids[-1] in ends else ids) for ids in completion_ids]
    return [text.strip() for text in tokenizer.batch_decode(inside, skip_special_tokens=True)]


def _turns(
    chat: Chat, rows: Sequence[Row], remedy: str, *, skip_faulty: bool = False, prompts_only: bool = False
) -> tuple[list[Turn], list[str | None]]:
    """All rows as text, and the faults of those that the chat template cannot write, whose text is empty."""

    def write(row: Row) -> Turn:
        if not row["conversational"]:
            return Turn(row["prompt"], "" if prompts_only else row["prompt"] + row["completion"])
        conversation = Conversation.of(row)
        return Turn(chat.asked(conversation), "") if prompts_only else chat.turn(conversation, row["completion"])

    turns, faults = [Turn("", "")] * len(rows), list[str | None]([None]) * len(rows)
    for i, row in enumerate(rows):
        try:
            turns[i] = write(row)
        except ConversationFault as fault:
            faults[i] = str(fault)
    if not skip_faulty:
        _refuse(rows, faults, "conversations cannot be written by the chat template", remedy)
    return turns, faults


def _refuse(rows: Sequence[Row], faults: Sequence[str | None], what: str, remedy: str) -> None:
    found = [f"{rows[i].get('where', f'row {i}')}: {fault}" for i, fault in enumerate(faults) if fault]
    if found:
        raise UserError(f"{len(found)} {what}; {first_of(found)}\n{remedy}".strip())


def _seam_fault(encoder: Encoder, prompt: list[int], text: str) -> str:
    told = encoder.decode([*prompt, *encoder.plain([text])[0]])
    asked = encoder.decode(prompt)
    return (
        f"the prompt ends and the completion begins where this tokenizer cannot part them: {asked[-30:]!r} and "
        f"{text[:30]!r} would be trained on as {told[max(0, len(asked) - 30) :][:61]!r}; let them meet at white space"
    )


def _has_system(conversation: Conversation) -> bool:
    return bool(conversation.tools) or conversation.messages[0]["role"] in SYSTEM_ROLES
