"""The model card of a saved policy: README.md in the Hub's format, with its plot beside it."""

from leftover.publish.card.trainer import write_trainer_card
from leftover.publish.card.write import NAME, PICTURE, write_card, write_cards

__all__ = ["NAME", "PICTURE", "write_card", "write_cards", "write_trainer_card"]
