"""The model card of a saved policy: README.md in the Hub's format, with its plot beside it."""

from leftover.publish.card.write import NAME, PICTURE, write_card, write_cards, write_trainer_card

__all__ = ["NAME", "PICTURE", "write_card", "write_cards", "write_trainer_card"]
