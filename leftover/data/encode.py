"""Text -> token ids as one tokenizer reads it: what it puts around a text, and a text that goes on behind another."""

import itertools
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase as Tokenizer

from leftover.errors import UserError

log = logging.getLogger(__name__)

# Texts to ask a tokenizer with; one that knows a few words may not know the first.
_PROBES = ("a", "1", ".", "the", "的")
# Texts to put before another, so that it is read as the middle of a text. Which of them stays apart from what follows
# depends on the tokenizer: some drop line breaks, some join letters.
_ANCHORS = ("\n", ".", "1", "a")
_SHOWN = 60


class Encoder:
    """Reads texts with one tokenizer.

    What the tokenizer adds to a text is found by asking it with and without special tokens. A token that the text holds
    itself belongs to the text, also where the tokenizer would add the same one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._logged = set[str]()

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before a text, and those that it puts behind it."""
        return self._around("text")

    @cached_property
    def around_target(self) -> tuple[list[int], list[int]]:
        """The same of a text that a decoder writes: of translators it begins with another language."""
        return self._around("text_target")

    def _around(self, kind: str) -> tuple[list[int], list[int]]:
        probe = next((text for text in _PROBES if self.plain([text])[0]), _PROBES[0])
        (bare,), whole = self.plain([probe]), list(self.tokenizer(**{kind: probe})["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        raise UserError(
            f"the tokenizer reads {probe!r} otherwise with special tokens than without, so that what it adds to a text "
            "cannot be told from the text: take another tokenizer"
        )

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the texts alone."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def opened(self, ids: list[int], rendered: bool = False) -> list[int]:
        """The ids of a prompt, with what the tokenizer puts before a text; never closed by what it puts behind one.

        Nothing is put before a prompt that begins so already, nor before one that the chat template has `rendered`. A
        prompt of no tokens becomes one token, the beginning or else the end of sequence: its completion needs a
        position that predicts the first token.
        """
        opening = [] if rendered else self.around[0]
        if opening and ids[: len(opening)] == opening:
            self.log_once(logging.INFO, "tokens: prompts that begin with %s get no second one", self.decode(opening))
            opening = []
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [*opening, *ids] or [eos if bos is None else bos]

    def closed(self, ids: list[int]) -> list[int]:
        """The ids of a prompt, which an encoder reads as a whole, with what the tokenizer puts behind a text."""
        closing = self.around[1]
        return ids if not closing or ids[-len(closing) :] == closing else [*ids, *closing]

    @cached_property
    def changes_beginnings(self) -> bool:
        """Whether the beginning of a text is read otherwise than its middle (most often with a blank before it)."""
        first, second = self.plain(["a", "b"])
        return self.decode(first + second) != "ab"

    def going_on(self, asked: str, prompt: list[int], text: str, whole: list[int], rendered: bool) -> list[int] | None:
        """The ids of a completion's text behind those of its prompt; None if no ids make the text of both.

        Those of both together (`whole`) are parted where the prompt ends. If a token spans that place, or a blank was
        put there, the completion is read apart, as the middle of a text. A conversation that the chat template has
        `rendered` keeps the blanks that the tokenizer puts behind special tokens: its model has learnt them.
        """
        joint = whole[len(prompt) :] if whole[: len(prompt)] == prompt and len(whole) > len(prompt) else None
        if joint is not None and (rendered or not self.changes_beginnings):
            return joint
        exact, *others = self._readings(asked, prompt, text, whole)
        found: dict[str, list[int]] = {}
        for ids in itertools.chain([] if joint is None else [joint], self.middles(text, asked[-1:])):
            said = self.decode([*prompt, *ids])
            if said == exact:
                return ids
            found.setdefault(said, ids)
        return next((found[said] for said in others if said in found), None)

    def _readings(self, asked: str, prompt: list[int], text: str, whole: list[int]) -> list[str]:
        """What the ids of a prompt and its completion may say, best first: the text of both; what the ids of the prompt
        say and the completion's text, if the prompt's end is among the former; what the ids of both together say."""
        said = self.decode(prompt)
        return [asked + text, *([said + text] if said[-1:] == asked[-1:] else []), self.decode(whole)]

    def middles(self, text: str, *anchors: str) -> Iterator[list[int]]:
        """Ids of a text alone, and as the tokenizer reads it behind other texts."""
        yield self.plain([text])[0]
        for anchor in filter(None, (*_ANCHORS, *anchors)):
            before, both = self.plain([anchor, anchor + text])
            if before and both[: len(before)] == before:
                yield both[len(before) :]

    def decode(self, ids: list[int]) -> str:
        """The exact text of ids, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def check(self, row: str, asked: str, text: str, prompt: list[int], completion: list[int], rendered: bool) -> None:
        """Raise UserError if the ids that are to be trained on do not say what a row says: `asked`, then `text`.

        If the tokenizer itself reads the text otherwise than it is written (small letters, unknown tokens), that is
        logged, once: nothing that its model has seen was read in another way.
        """
        (alone, whole), (opening, _) = self.plain([asked, asked + text]), self.around
        begun = rendered or alone[: len(opening)] == opening
        right, said = self.decode(alone if begun else [*opening, *alone]), self.decode(prompt)
        if said != right and (alone or opening):  # a prompt of no tokens has one that says nothing
            raise _unlike(row, "prompt", right, said)
        before = prompt[len(prompt) - len(alone) :]
        # The end of a completion is the row's own, or was put there.
        ended, said = (self.decode(before + ids) for ids in (completion, completion[:-1]))
        if not {ended, said}.intersection(self._readings(asked, alone, text, whole)):
            raise _unlike(row, "prompt and completion", asked + text, said)
        self.check_kept(asked + text, whole)

    def check_kept(self, text: str, ids: list[int]) -> None:
        """Log, once, that the ids of a text do not say what it says."""
        written, read = self._comparable(text), self._comparable(self.decode(ids))
        if written != read:
            self.log_once(
                logging.WARNING,
                "tokens: the tokenizer does not keep texts as they are written (%r is trained on as %r): rewards read "
                "the first, the model learns the second. If that is not meant, write the rows so, or take another "
                "tokenizer",
                *_differing(written, read),
            )

    def _comparable(self, text: str) -> str:
        """A text without what does not count: its Unicode form, outer white space, and that beside special tokens."""
        special = "|".join(map(re.escape, sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)))
        text = unicodedata.normalize("NFC", text)
        return (re.sub(rf"\s*({special})\s*", r"\1", text) if special else text).strip()

    def log_once(self, level: int, message: str, *values: object) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, message, *values)


def _unlike(row: str, what: str, written: str, said: str) -> UserError:
    written, said = _differing(written, said)
    return UserError(
        f"{row}: the tokens of its {what} do not say what it says: {written!r} would be trained on as {said!r}; take "
        "another tokenizer, or let prompts end and completions begin at white space"
    )


def _differing(written: str, read: str) -> tuple[str, str]:
    """Two texts from a little before the place where they part."""
    at = next((i for i, (a, b) in enumerate(zip(written, read, strict=False)) if a != b), min(len(written), len(read)))
    start = max(0, at - _SHOWN // 3)
    return written[start:][:_SHOWN], read[start:][:_SHOWN]
