"""What a reader of a number is told besides: which published copy it was made on, or that its classes are mixed up."""

from __future__ import annotations

from . import copies, orders
from .scores import ScoreSet


def of(score_set: ScoreSet) -> dict[str, str]:
    """``copy``: the published copy that the clips are, or what they lack of it; ``order``: the label order that would
    make sense of a result at chance level. Only what there is to say."""
    said = {"copy": copies.sentence(score_set), "order": orders.sentence(score_set)}
    return {key: text for key, text in said.items() if text}


def lines(score_set: ScoreSet) -> list[str]:
    """The same for the terminal."""
    return [f"{key:11} {text}" for key, text in of(score_set).items()]
