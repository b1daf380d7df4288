"""Rows whose tokens earlier versions made otherwise: tables of these are made anew, and no others."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from leftover.data.chat import Chat
from leftover.data.tokens import reads_seams_anew
from leftover.store.manifest import Key

# Rows whose seams are tried; the rows of a file are of one form.
_SEAMS_TRIED = 256


def reread(chat: Chat, rows: Dataset) -> Key:
    """A part of the tokens' key: which rows are read otherwise than before. Empty for most tokenizers and rows."""
    if chat.two_texts:
        return {"two_texts": True}
    columns = rows.select_columns(["prompt", "conversational"]).with_format("arrow")
    found = {kind for part in columns.iter(batch_size=4096) for kind in _kinds(chat, _plain_prompts(part))}
    if chat.encoder.changes_beginnings and reads_seams_anew(chat, rows.select(range(min(len(rows), _SEAMS_TRIED)))):
        found.add("seam")
    return {"reread": sorted(found)} if found else {}


def reread_prompts(chat: Chat, prompts: Sequence[str]) -> Key:
    """`reread` of plain prompts without completions."""
    if chat.two_texts:
        return {"two_texts": True}
    found = _kinds(chat, pa.array(prompts, type=pa.string()))
    return {"reread": sorted(found)} if found else {}


def _plain_prompts(part: pa.Table) -> pa.ChunkedArray:
    return part["prompt"].filter(pc.invert(part["conversational"]))


def _kinds(chat: Chat, prompts: pa.Array | pa.ChunkedArray) -> set[str]:
    """begun: with what the tokenizer puts before a text, which came twice; ended: by an end of sequence, which was
    taken off; closed: by what else the tokenizer puts behind a text; empty: without a token."""
    opening, closing = chat.encoder.around
    eos = chat.tokenizer.eos_token
    found = set()
    if opening and pc.any(pc.starts_with(prompts, chat.encoder.decode(opening))).as_py():
        found.add("begun")
    if pc.any(pc.ends_with(prompts, eos)).as_py():
        found.add("ended")
    if not opening and pc.any(pc.equal(prompts, "")).as_py():
        found.add("empty")
    if closing not in ([], [chat.tokenizer.eos_token_id]) and len(prompts):
        found.add("closed")
    return found
