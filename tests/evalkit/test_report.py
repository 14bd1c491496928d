from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datakit.errors import BadManifest, UsageError
from evalkit import compare, copies, curve, fuse, metrics, orders, report, scores
from evalkit.report import page
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

CLASSES = ("swipe_up", "swipe_down", "grow", "shrink")
MISSING = [
    {"id": "grow_900", "label": "grow", "reason": "/raw videos/grow_900.mp4: Invalid data found"},
    {"id": "grow_901", "label": "grow", "reason": "12 of 40 frames can be decoded; the file ends early"},
    {"id": "shrink_902", "label": "shrink", "reason": "31 of 48 frames can be decoded; the file ends early"},
    {"id": "shrink_903", "label": "shrink", "reason": "shrink_903.mp4 is not there"},
]
EVIL = "<script>alert('1')</script> & \"quoted\" {{ 1 + 1 }}"


def make(
    num_clips: int = 60, classes: tuple[str, ...] = CLASSES, *, skill: float = 2.0, seed: int = 1, **changes: Any
) -> ScoreSet:
    """Probabilities that are right the more often the higher ``skill``; ids and labels are the same for every seed."""
    labels = np.random.default_rng(0).integers(0, len(classes), num_clips)
    logits = np.random.default_rng(seed).normal(size=(num_clips, len(classes)))
    logits[np.arange(num_clips), labels] += skill
    values: dict[str, Any] = {
        "ids": [f"clip_{number:05d}" for number in range(num_clips)],
        "labels": labels,
        "scores": fuse.softmax(logits),
        "classes": classes,
        "kind": "prob",
        "signature": signature(),
    }
    return ScoreSet(**(values | changes))


def signature(**parts: str) -> Signature:
    known = {"set": "shapes-val", "model": "tiny", "views": "1x1@224", "input": "rgb", "media": "320p-9f3c"}
    return Signature(**(known | parts))  # type: ignore[arg-type]


def viewed(num_rows: int = 10, num_crops: int = 3, **changes: Any) -> ScoreSet:
    """A run that kept its views."""
    labels = make().labels
    logits = np.random.default_rng(9).normal(size=(60, num_rows * num_crops, 4))
    logits[np.arange(60), :, labels] += 0.7
    kept = fuse.softmax(logits)
    protocol = {"num_clips": num_rows, "num_crops": num_crops, "crop_px": 224, "sampling": "mmaction2-0.x",
                "aggregation": "prob-mean", "options": {}}  # fmt: skip
    return make(scores=kept.mean(axis=1), views=kept, meta={"protocol": protocol, "macs_per_view": 2e9}, **changes)


def saved(root: Path, **sets: ScoreSet) -> list[Path]:
    for name, score_set in sets.items():
        score_set.save(root / name / "scores.npz")
    return [root / name for name in sets]


class Reader(HTMLParser):
    """A page's tags with their attributes, and its text outside of <style>; complains about tags that do not match."""

    VOID = frozenset({"meta", "line", "rect", "circle", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace(page.NBSP, " ").split())

    def having(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of each tag of this class."""
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def read(dirs: list[Path], out: Path, **options: Any) -> Reader:
    return Reader(report.write(dirs, out, **options).read_text(encoding="utf-8"))


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Two modes, a second stream, and its fusion with the first."""
    rgb = make(skill=2.0, seed=2, missing=MISSING, signature=signature(views="10x3@256"))
    diff = make(skill=1.2, seed=3, missing=MISSING, signature=signature(views="10x3@256", input="rgb-diff"))
    return saved(
        tmp_path,
        efficient=make(skill=0.8, seed=2, missing=MISSING),
        accurate=rgb,
        diff=diff,
        fused=fuse.fuse([rgb, diff], weights=(2, 1)),
    )


# --- the file --------------------------------------------------------------------------------------------------------


def test_same_inputs_give_same_bytes(four: list[Path], tmp_path: Path) -> None:
    one, two = report.write(four, tmp_path / "one.html"), report.write(four, tmp_path / "two.html")
    assert one.read_bytes() == two.read_bytes()
    assert report.write(four, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_needs_no_network_and_no_script(four: list[Path], tmp_path: Path) -> None:
    html = report.write(four, tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    found = Reader(html)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in found.tags}
    names = {name for _, attrs in found.tags for name in attrs}
    assert not {"src", "href"} & names
    assert not [name for name in names if name.startswith("on")]
    policy = next(attrs["content"] for _, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    evil = make(
        classes=(EVIL, "a", "b" * 300),
        signature=signature(set=EVIL, model=EVIL),
        missing=[{"id": EVIL + "id", "label": EVIL, "reason": EVIL + "reason"}],
    )
    evil.ids[:3] = [f"{EVIL}{number}" for number in range(3)]
    evil = replace(evil, scores=np.eye(3)[(evil.labels + 1) % 3])  # all wrong, so that the ids are shown
    plain = make(classes=("x", "y"))
    found = read(saved(tmp_path, **{'<i>"name': evil, "plain": plain}), tmp_path / "page.html")
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in read(saved(tmp_path, plain=evil), tmp_path / "p").tags}
    assert "script" not in {tag for tag, _ in found.tags}
    for text in (EVIL + "id", EVIL + "reason", EVIL + "0", '<i>"name', "b" * 300, str(evil.signature)):
        assert " ".join(text.split()) in found.text


def test_file_names_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    odd = make(missing=[{"id": "clip_\udcff", "label": None, "reason": "no file of that name"}])
    assert b"clip_\\udcff" in report.write(saved(tmp_path, odd=odd), tmp_path / "page.html").read_bytes()


# --- what it says ----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_metrics(four: list[Path], tmp_path: Path) -> None:
    found = read(four, tmp_path / "page.html")
    for path in four:
        score_set = scores.load(path)
        numbers = metrics.summary(score_set)
        for key in ("top1", "top5", "mean_class"):
            assert f"{100 * numbers[key]:.2f} ± {100 * numbers[f'{key}_se']:.2f}" in found.text
        assert str(score_set.signature) in found.texts  # in one piece, to be copied
    assert found.text.count("60 of 64") == 4 + 1  # a row each, and on top the best
    assert "“present”: mean over the classes that have test clips (4 of 4)" in found.text
    assert len(found.having("badge")) == 1


def test_best_is_marked_only_where_it_may_be_compared(tmp_path: Path) -> None:
    worse, better = make(skill=1), make(skill=3)
    dirs = saved(tmp_path, worse=worse, better=better, fewer=make(skill=9).select(list(range(50))))
    group = page.gather(dirs, across_copies=False).groups[0]
    assert [row.best for row in group.table.rows] == [False, True, False]
    assert group.finding.startswith("better is highest")
    assert group.table.rows[2].notes == ("not comparable: other clips, labels or files",)
    twins = page.gather(saved(tmp_path, one=worse, two=worse), across_copies=False).groups[0]
    assert twins.finding.startswith("one and two are level: ")
    assert [row.best for row in twins.table.rows] == [False, False]


def test_different_test_sets_stand_apart(tmp_path: Path) -> None:
    dirs = saved(tmp_path, a=make(), b=make(signature=signature(set="other-val")), c=make(classes=("x", "y")))
    content = page.gather(dirs, across_copies=False)
    assert [group.table.rows[0].name for group in content.groups] == ["a", "b", "c"]
    assert content.apart.endswith("not compared with each other: a; b; c.")


def test_missing_clips_are_named_and_counted(four: list[Path], tmp_path: Path) -> None:
    (missing,) = page.gather(four, across_copies=False).groups[0].missing  # a fusion's are those of its parts
    assert missing.finding == "4 of 64 clips were not scored"
    assert dict(missing.kinds) == {
        "N of N frames can be decoded": 2,
        "Invalid data found": 1,
        "the file is not there": 1,
    }
    text = read(four, tmp_path / "page.html").text
    for entry in MISSING:
        assert f"{entry['id']} {entry['label']} {entry['reason']}" in text
    alone = page.gather(four[3:], across_copies=False).groups[0].missing[0]
    assert dict(alone.kinds) == dict(missing.kinds)


def test_missing_clips_of_one_set_only(tmp_path: Path) -> None:
    whole = make()
    lacking = replace(
        whole.select(list(range(59))),
        missing=[{"id": whole.ids[59], "label": whole.label_names()[59], "reason": "gone"}],
    )
    (missing,) = page.gather(saved(tmp_path, whole=whole, lacking=lacking), across_copies=False).groups[0].missing
    assert missing.finding == "lacking: 1 of 60 clips was not scored"


def test_comparisons_say_what_compare_says(four: list[Path], tmp_path: Path) -> None:
    sets = {path.name: scores.load(path) for path in four}
    pairs = page.gather(four, across_copies=False).groups[0].pairs
    assert pairs is not None
    assert len(pairs.main) == 3
    assert len(pairs.others) == 3
    ordered = sorted(sets, key=lambda name: metrics.summary(sets[name])["top1"])
    expected = compare.compare_all([sets[name] for name in ordered], ordered)
    verdicts = {pair.verdict for pair in (*pairs.main, *pairs.others)}
    assert verdicts == {pair.verdict for pair in expected}
    assert pairs.finding == f"{sum(pair.differs for pair in expected)} of 6 differences are beyond chance"
    text = read(four, tmp_path / "page.html").text
    for verdict in verdicts:
        assert verdict in text
    for pair in (*pairs.main, *pairs.others):
        assert 0 <= pair.whisker.low <= pair.whisker.value <= pair.whisker.high <= 100


def test_one_comparison_is_the_headline(tmp_path: Path) -> None:
    worse, better = make(200, skill=0.5), make(200, skill=2.5)
    group = page.gather(saved(tmp_path, worse=worse, better=better), across_copies=False).groups[0]
    found = compare.compare(worse, better)
    interval = f"(95{page.NBSP}%: {100 * found.low:.1f} to {100 * found.high:.1f})"
    assert group.finding.endswith(f"{100 * found.difference:.1f} points above worse {interval}")
    close = make(200, skill=0.5, seed=2)
    group = page.gather(saved(tmp_path, worse=worse, close=close), across_copies=False).groups[0]
    assert "but not beyond chance above" in group.finding


def test_copies_are_compared_only_when_asked(tmp_path: Path) -> None:
    dirs = saved(tmp_path, small=make(skill=1), large=make(skill=3, signature=signature(media="256p-1111")))
    refused = read(dirs, tmp_path / "page.html")
    assert "None of these may be compared" in refused.text
    assert "scored different copies of the files: media is 320p-9f3c in small and 256p-1111 in large" in refused.text
    assert "2 results, none of which may be compared with another" in refused.text
    compared = read(dirs, tmp_path / "page.html", across_copies=True)
    assert "large is better than small" in compared.text
    assert "media 320p-9f3c → 256p-1111" in compared.text


def test_streams_beside_their_fusion(four: list[Path]) -> None:
    group = page.gather(four, across_copies=False).groups[0]
    (streams,) = group.streams
    right = [
        dict(zip(ids, ranks == 0, strict=True))
        for ids, _, ranks in (metrics.outcomes(scores.load(path)) for path in four[1:])
    ]
    expected = Counter((right[0][clip_id], right[1][clip_id]) for clip_id in right[0])
    assert {pattern.text: pattern.num for pattern in streams.patterns} == {
        "both are right": expected[True, True],
        "only accurate": expected[True, False],
        "only diff": expected[False, True],
        "none is right": expected[False, False],
    }
    assert sum(pattern.num_fused_right for pattern in streams.patterns) == sum(right[2].values())
    assert [(bar.name, bar.num_right, bar.num) for bar in streams.bars] == [
        ("2 × accurate", sum(right[0].values()), 64),
        ("1 × diff", sum(right[1].values()), 64),
        ("fused", sum(right[2].values()), 64),
    ]
    assert group.table.rows[3].notes == ("2 × accurate and 1 × diff",)


# --- views, copies, source videos ------------------------------------------------------------------------------------


def test_views_curve_is_drawn_and_told(tmp_path: Path) -> None:
    found = read(saved(tmp_path, kept=viewed()), tmp_path / "page.html")
    assert "centre crop" in found.text
    assert "5 of 10 clips are not the protocol that is named after 5 clips, whose clips start elsewhere" in found.text
    points = curve.of(viewed()).points
    assert len(found.having("of0")) + len(found.having("of1")) == 3 * len(points) - 2  # circle, range, path
    for point in points:
        assert f"{100 * point.top1_low:.1f} to {100 * point.top1_high:.1f}" in found.text
    assert "60.0" in found.text  # 30 views of 2 G multiply-adds
    for mark in [attrs for tag, attrs in found.tags if tag == "circle" and "of" in str(attrs.get("class"))]:
        assert 0 <= float(str(mark["cy"]).rstrip("%")) <= 100
    assert "centre crop" not in read(saved(tmp_path, plain=make()), tmp_path / "two.html").text


def test_one_clip_and_one_crop_make_a_curve_of_one_point(tmp_path: Path) -> None:
    assert "All 1 views" not in read(saved(tmp_path, one=viewed(1, 1)), tmp_path / "page.html").text


def test_published_copy_and_label_order_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "sentence", lambda _: "19 759 of PySlowFast's 19 761, 35 others")
    sets = saved(tmp_path, a=make(seed=2), b=make(seed=3))
    assert "The clips are 19 759 of PySlowFast's 19 761, 35 others." in read(sets, tmp_path / "page.html").text
    monkeypatch.setattr(orders, "sentence", lambda one: "matches UniFormer's order: 71.3" if one.scores[0, 0] else "")
    assert "a, b: matches UniFormer's order: 71.3." in read(sets, tmp_path / "page.html").text


def test_source_videos_are_drawn_together(tmp_path: Path) -> None:
    sets = saved(tmp_path, a=make(seed=2), b=make(seed=3, skill=1))
    found = read(sets, tmp_path / "page.html", groups="clip_000(.)")
    assert "both draw the 6 source videos" in found.text
    groups = {clip_id: clip_id[8] for clip_id in make().ids}
    errors = metrics.summary(make(seed=2), groups=groups)
    assert f"± {100 * errors['top1_se']:.2f}" in found.text
    assert "Wilson); both take clips" not in found.text


def test_worst_clips_have_pictures_where_the_videos_are_found(tmp_path: Path) -> None:
    sets = saved(tmp_path, a=make(skill=0.5))
    without = read(sets, tmp_path / "page.html", data_root=tmp_path / "nothing")
    assert "No pictures of them: their videos were not found" in without.text
    worst = next(one for one in page.gather(sets, across_copies=False).groups if one.worst).worst
    assert worst is not None
    for clip in worst.clips[1:]:
        (tmp_path / "videos" / clip.id).mkdir(parents=True)
        for number in (1, 2, 3):
            colour = (0, 0, 255) if number == 2 else (255, 0, 0)
            Image.new("RGB", (64, 48), colour).save(tmp_path / "videos" / clip.id / f"img_{number:05d}.jpg")
    found = read(sets, tmp_path / "page.html", videos=tmp_path / "videos")
    pictures = [attrs["src"] or "" for tag, attrs in found.tags if tag == "img"]
    assert len(pictures) == len(worst.clips) - 1
    assert "No picture of 1 of them" in found.text
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (240, 180)
    red, _, blue = picture.getpixel((70, 50))  # type: ignore[misc]
    assert blue > 200 > 50 > red  # the middle frame
    again = report.write(sets, tmp_path / "again.html", videos=tmp_path / "videos")
    assert again.read_bytes() == (tmp_path / "page.html").read_bytes()


def test_few_classes_are_all_shown(four: list[Path], tmp_path: Path) -> None:
    shown = page.gather(four[1:2], across_copies=False).groups[0]
    assert shown.classes is not None
    ((_, bars),) = shown.classes.lists
    expected = {entry["class"]: entry for entry in metrics.document(scores.load(four[1]))["per_class"]}
    assert {bar.name: (bar.share, bar.num) for bar in bars} == {
        name: (entry["top1"], entry["n"]) for name, entry in expected.items()
    }
    assert [bar.share for bar in bars] == sorted((bar.share for bar in bars), reverse=True)
    assert all(bar.low <= bar.share <= bar.high for bar in bars)
    table = scores.load(four[1])
    assert shown.confusion is not None
    assert shown.confusion.cells is not None
    counts = np.array([[count for count, _ in row] for row in shown.confusion.cells])
    np.testing.assert_array_equal(counts, metrics.confusion(table.scores, table.labels))
    label, predicted, count, total = shown.confusion.pairs[0]
    wrong = counts * (1 - np.eye(4, dtype=int))
    assert (count, total) == (wrong.max(), counts[CLASSES.index(label)].sum())
    assert counts[CLASSES.index(label), CLASSES.index(predicted)] == count


def test_of_many_classes_the_best_and_the_worst(tmp_path: Path) -> None:
    many = make(2000, tuple(f"class {number}" for number in range(100)), skill=3.0)
    group = page.gather(saved(tmp_path, many=many), across_copies=False).groups[0]
    assert group.classes is not None
    (worst_title, worst), (best_title, best) = group.classes.lists
    assert (worst_title, best_title) == ("Worst 15 of 100", "Best 15 of 100")
    shares = np.sort(metrics.per_class(many.scores, many.labels)[0])
    np.testing.assert_allclose([bar.share for bar in worst], shares[:15])
    np.testing.assert_allclose([bar.share for bar in best], shares[::-1][:15])
    assert group.confusion is not None
    assert group.confusion.cells is None
    assert len(group.confusion.pairs) == page.CONFUSED_PAIRS


@pytest.mark.parametrize("kind", ["prob", "logit", "fused"])
def test_worst_clips_are_the_surest_wrong_ones(tmp_path: Path, kind: str) -> None:
    probabilities = make(skill=1.0)
    shown = {
        "prob": probabilities,
        "logit": replace(probabilities, scores=np.log(probabilities.scores) + 7, kind="logit"),
        "fused": replace(probabilities, scores=probabilities.scores.astype(np.float64) * 2.5),
    }[kind]
    worst = page.gather(saved(tmp_path, shown=shown), across_copies=False).groups[0].worst
    assert worst is not None
    best = probabilities.scores.max(axis=1)
    wrong = np.flatnonzero(metrics.predictions(probabilities.scores) != probabilities.labels)
    surest = wrong[np.argsort(-best[wrong])][: page.WORST_CLIPS]
    assert [clip.id for clip in worst.clips] == [probabilities.ids[row] for row in surest]
    np.testing.assert_allclose([clip.score for clip in worst.clips], best[surest], rtol=1e-5)


# --- odd inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        pytest.param(make(1), "1 clip of 4 classes", id="one clip"),
        pytest.param(make(20, ("no", "yes")), "Top-5 says nothing here: there are only 2 classes", id="two classes"),
        pytest.param(make(20, ("only",)), "All clips are of one class", id="one class"),
        pytest.param(make(20, labels=np.full(20, -1)), "No clip has a label", id="no labels"),
        pytest.param(make(0, missing=MISSING), "4 of 4 clips were not scored", id="nothing scored"),
        pytest.param(make(20, scores=np.full((20, 4), np.nan)), "0.00 ± 0.00 % of the clips are right", id="NaN"),
        pytest.param(make(60, skill=50), "No clip was taken for another class", id="all right"),
        pytest.param(make(20, scores=np.zeros((20, 4))), "are wrong, the surest with 0 % for swipe_up", id="no sum"),
        pytest.param(make(60, meta={"partial": True}), "scores stop where the decision was certain", id="partial"),
    ],
)
def test_odd_score_sets(tmp_path: Path, odd: ScoreSet, says: str) -> None:
    assert says in read(saved(tmp_path, odd=odd, again=odd), tmp_path / "page.html").text
    assert says in read(saved(tmp_path, odd=odd), tmp_path / "page.html").text


def test_same_folder_names_are_told_apart(tmp_path: Path) -> None:
    dirs = saved(tmp_path, **{"rgb/accurate": make(), "flow/accurate": make(), "fused": make()})
    assert page.names(dirs) == ["rgb/accurate", "flow/accurate", "fused"]
    assert page.names([path / "scores.npz" for path in dirs]) == ["rgb/accurate", "flow/accurate", "fused"]
    with pytest.raises(UsageError, match="given twice"):
        page.names([dirs[0], dirs[0] / "scores.npz"])


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="python -m evalkit report"):
        report.write([], tmp_path / "page.html")
    with pytest.raises(BadManifest, match="no such file"):
        report.write([tmp_path], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# --- how it looks ----------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_contrast_is_enough_in_both_schemes(four: list[Path], tmp_path: Path) -> None:
    html = report.write(four, tmp_path / "page.html").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    assert len(schemes) == 2
    texts = [("ink", "paper"), ("ink", "raised"), ("muted", "paper"), ("accent", "paper"), ("mark", "mark-paper")]
    texts += [("muted", "raised"), ("miss", "paper")]
    texts += [("ink", "right"), ("ink", "wrong")]  # the strongest colours of the heat map
    for scheme in schemes:
        for text, ground in texts:
            dark, light = sorted((luminance(scheme[text]), luminance(scheme[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
        dark, light = sorted((luminance(scheme["bar"]), luminance(scheme["raised"])))
        assert (light + 0.05) / (dark + 0.05) >= 3, "bars"


@pytest.mark.needs_chromium
def test_browser_shows_it_at_both_widths(four: list[Path], tmp_path: Path) -> None:
    """In frames of phone and desktop width the page is no wider than its frame, and the console stays empty."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail("REQUIRE_ALL is set and there is no chromium")
        pytest.skip("needs chromium")
    long = make(classes=("x" * 200, EVIL, "c"), missing=[{"id": "y" * 300, "label": None, "reason": "z" * 500}])
    (tmp_path / "videos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "videos" / "clip_00001.jpg")
    kept = viewed(missing=MISSING, signature=signature(views="10x3@256", model="kept"))
    dirs = [*four, *saved(tmp_path, kept=kept, **{"n" * 120: long})]
    report.write(dirs, tmp_path / "page.html", videos=tmp_path / "videos")
    script = """
      onload = () => { console.log("CONTROL"); for (const frame of document.querySelectorAll("iframe")) {
        const root = frame.contentDocument.documentElement;
        frame.title = [root.clientWidth, root.scrollWidth, root.querySelectorAll("article").length].join(" "); } }"""
    frames = "".join(f'<iframe src="page.html" width="{width}" height="800"></iframe>' for width in (390, 1280))
    (tmp_path / "frames.html").write_text(f"<!doctype html><script>{script}</script>{frames}")
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --allow-file-access-from-files --hide-scrollbars
        --enable-logging=stderr --v=0 --dump-dom""".split()  # noqa: SIM905
    command = [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert len(console) == 1, console
    assert "CONTROL" in console[0]
    sizes = [tuple(map(int, title.split())) for title in re.findall(r'title="(\d+ \d+ \d+)"', shown.stdout)]
    assert [size[2] for size in sizes] == [2, 2]
    for width, (visible, needed, _) in zip((390, 1280), sizes, strict=True):
        assert visible == width
        assert needed <= visible
