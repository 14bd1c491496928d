"""One line that says what a number is a number of, and which of its parts two numbers must share.

    set:k400-val|n:19796|list:06e3163c80|labels:k400|metric:top1,top5,mean_class-present|model:slowonly_r50_4x16|...

The idea is sacrebleu's (Post 2018, "A Call for Clarity in Reporting BLEU Scores").
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from datakit.errors import DataError

WHAT = ("set", "n", "list", "labels", "metric")
HOW = ("model", "clip", "views", "sampling", "resize", "input", "agg", "missing", "weights")
COPY = ("media",)
WITH = ("dec", "dtype", "kit")

_ESCAPES = {"%": "%25", "|": "%7C", "\n": "%0A", "\r": "%0D"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What was scored (WHAT), on which files (COPY), in which way (HOW), with which programs (WITH).

    ``n`` and ``list`` are filled in by ``ScoreSet`` from the rows it holds. A part that is not known is "".
    """

    set: str = ""
    n: int = 0
    list: str = ""
    labels: str = ""
    metric: str = "top1,top5,mean_class-present"
    model: str = ""
    clip: str = ""
    views: str = ""
    sampling: str = ""
    resize: str = ""
    input: str = ""
    agg: str = ""
    missing: str = "wrong"
    weights: str = ""
    media: str = ""
    dec: str = ""
    dtype: str = ""
    kit: str = ""

    def __str__(self) -> str:
        """``key:value|key:value`` in a fixed order; parts that are not known are left out."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return "|".join(f"{key}:{_escape(str(value))}" for key, value in parts if value != "")

    @classmethod
    def parse(cls, text: str) -> Signature:
        """The signature that ``str`` wrote. Raises ``DataError`` naming the part that is none."""
        known = {field.name for field in fields(cls)}
        parts: dict[str, str] = {}
        for part in text.lstrip().rstrip("\r\n").split("|"):
            key, colon, value = part.partition(":")
            if not colon or key not in known or key in parts:
                raise DataError(f"not a signature: {part!r} in {text!r}; a line like 'set:...|n:...|list:...' is one")
            parts[key] = _unescape(value)
        # What the line leaves out is not known, whatever the defaults of a new signature are.
        values = dict.fromkeys(known, "") | parts
        try:
            n = int(values.pop("n"))
        except ValueError:
            raise DataError(f"not a signature: no number of clips (n:...) in {text!r}") from None
        return cls(n=n, **values)


def fingerprinted(media: str) -> bool:
    """Whether a ``media`` part tells one copy of the files from another."""
    return bool(media) and not media.endswith("unverified")


def _escape(value: str) -> str:
    for char, code in _ESCAPES.items():
        value = value.replace(char, code)
    return value


def _unescape(value: str) -> str:
    for char, code in reversed(_ESCAPES.items()):
        value = value.replace(code, char)
    return value
