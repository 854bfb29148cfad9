"""Assigns a training row to train or validation. Only its prompt decides, so added rows move no others."""

from __future__ import annotations

import hashlib

from aligner.data.examples import SftExample, TrainingRecord


def in_validation(prompt: str, share: float) -> bool:
    """Whether a prompt belongs to the validation side: its hash, as a fraction of all hashes, is below `share`.

    Letter case and spacing do not count, so two spellings of a question are always on the same side.
    """
    plain = " ".join(prompt.casefold().split())
    return int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") < share * 2**64


def user_text(value: TrainingRecord) -> str:
    """The user's turns of a conversation, joined: the text that decides the side."""
    messages = value.messages if isinstance(value, SftExample) else value.prompt
    return "\n".join(content for role, content in messages if role == "user")
