from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import manifests
from datakit.errors import BadManifest, UsageError
from evalkit import protocols, views
from models import zoo
from models.checkpoints import published


def test_every_row_is_a_protocol() -> None:
    for name in protocols.names():
        for mode in protocols.MODES:
            found = protocols.get(name, mode)
            assert (found.name, found.mode) == (name, mode)
            assert found.version >= 1
            hash(found)


def test_slowonly_is_what_the_published_numbers_used() -> None:
    efficient, accurate = (protocols.get("slowonly", mode) for mode in protocols.MODES)
    assert efficient.views == "1x1@224"
    assert accurate.views == "10x3@256"
    assert efficient.scale == accurate.scale == 256
    assert efficient.sampling == accurate.sampling == "mmaction2-0.x"
    assert accurate.aggregation == "prob-mean"
    assert protocols.get("slowonly-flow", "accurate").views == "10x1@256"


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'slowonly'\?"):
        protocols.get("slowonli", "accurate")
    with pytest.raises(UsageError, match="--mode efficient or --mode accurate"):
        protocols.get("slowonly", "fast")


def test_views_free_hand() -> None:
    base = protocols.get("slowonly", "accurate")
    found = protocols.as_typed(base, "5x1@224")
    assert (found.num_clips, found.num_crops, found.crop_px, found.short_side_px) == (5, 1, 224, 256)
    assert found.mode == found.views == "5x1@224"
    assert found.sampling == base.sampling
    assert protocols.as_typed(base, "10x3@224").short_side_px == 224
    assert protocols.as_typed(base, "1x1@320").short_side_px == 320
    assert protocols.as_typed(base, "1x10@224").short_side_px == 256


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("torchvision-18", "5x3@112", "torchvision's video reference has 1 crop, not 3"),
        ("torchvision-18", "5x1@224", "a crop of 224 does not fit"),
        ("pyslowfast", "10x10@224", "pyslowfast has 1 or 3 crops"),
        ("gluoncv", "1x3@256", "it needs two clips or more"),
        ("gluoncv-csn", "10x1@224", "it needs two crops or more"),
    ],
)
def test_views_that_the_rule_does_not_know_are_refused(name: str, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--views {text}: not under protocol {name}: .*{why}"):
        protocols.as_typed(protocols.get(name, "accurate"), text)


def test_views_and_rule_free_hand_together() -> None:
    base = protocols.get("slowonly", "accurate")
    found = protocols.as_typed(base, "5x1@224", "torchvision")  # which has no three crops
    assert (found.sampling, found.views, found.options) == ("torchvision", "5x1@224", {})
    twice = protocols.get("tsm", "accurate")
    assert protocols.as_typed(twice, sampling="mmaction2-1.x").options == {"twice_sample": True}
    assert protocols.as_typed(twice) is twice
    with pytest.raises(UsageError, match=r"--sampling torchvision: not under protocol slowonly: .*1 crop, not 3"):
        protocols.as_typed(base, sampling="torchvision")


def test_views_free_hand_say_how_many_segments() -> None:
    base = protocols.for_network(Network("tsm", num_segments=8), "accurate")
    found = protocols.as_typed(base, " 16x3@224 ")
    assert (found.num_clips, found.segments, found.short_side_px, found.mode) == (16, False, 224, "16x3@224")
    assert found.options == {"twice_sample": True}


@pytest.mark.parametrize("text", ["", "5", "5x1", "0x1@224", "5x2@224", "5x1@", "5x1@224px", "-1x1@224", "5 x 1 @ 224"])
def test_views_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--views 5x1@224"):
        protocols.as_typed(protocols.get("slowonly", "accurate"), text)


def test_fixed_sides() -> None:
    base = protocols.get("slowonly", "efficient")
    fixed = replace(base, short_side_px=None, resize_px=(171, 128), crop_px=112)
    assert fixed.scale == (171, 128, "stretch")
    assert protocols.as_typed(fixed, "5x1@112").scale == (171, 128, "stretch")


@pytest.mark.parametrize(
    "change",
    [
        {"resize_px": (171, 128)},
        {"short_side_px": None},
        {"sampling": "mmaction2"},
        {"aggregation": "mean"},
        {"num_crops": 2},
        {"num_clips": 0},
    ],
)
def test_rows_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadManifest, match="protocol slowonly accurate"):
        replace(protocols.get("slowonly", "accurate"), **change)


@dataclass
class Network:
    protocol: str
    origin: str = "mmaction2-0.x"
    num_segments: int | None = None


def test_every_network_and_published_file_names_a_protocol() -> None:
    table = manifests.read("models")
    named = {row.get("protocol", row["family"]) for row in table["networks"].values()}
    named |= {row["protocol"] for row in published.rows() if "protocol" in row}
    assert named <= set(protocols.names())
    assert len(named) > 15


def test_every_network_can_be_tested_whoever_wrote_its_file() -> None:
    table = manifests.read("models")["networks"]
    origins = {origin for row in manifests.read("protocols").values() for origin in row.get("origin", ())}
    assert origins == {"mmaction2-1.x", "pyslowfast", "pyslowfast-caffe2", "pytorchvideo", "gluoncv"}
    keys = ("clip_len", "frame_interval", "num_segments")
    alike = {(row.get("protocol", row["family"]), *(row.get(key) for key in keys)) for row in table.values()}
    for name, clip_len, frame_interval, num_segments in alike:
        for origin in (*origins, "ours", "mmaction2-0.x", "torchvision"):
            network = Network(name, origin, num_segments)
            for mode in protocols.MODES:
                found = protocols.for_network(network, mode)
                frames = views.frame_indices(
                    found.sampling, 300, clip_len, frame_interval, found.num_clips, 30.0, **found.options
                )
                if found.aggregation == "segment-logit-mean":
                    assert len(frames) % num_segments == 0, network


@pytest.mark.parametrize(
    ("protocol", "origin", "row"),
    [
        ("slowonly", "ours", "slowonly"),
        ("slowonly", "mmaction2-0.x", "slowonly"),
        ("slowonly", "mmaction2-1.x", "mmaction2-1x"),
        ("slowonly-flow", "mmaction2-1.x", "mmaction2-1x-flow"),
        ("slowonly-sthv1", "mmaction2-1.x", "slowonly-sthv1"),
        ("tsn", "mmaction2-1.x", "tsn-tencrop"),
        ("tsm", "mmaction2-1.x", "tsm-tencrop"),
        ("tsm-mobilenetv2", "mmaction2-1.x", "tsm-mobilenetv2-1x"),
        ("slowfast", "pyslowfast", "pyslowfast"),
        ("c2d", "pyslowfast-caffe2", "pyslowfast"),
        ("c2d", "mmaction2-1.x", "mmaction2-1x-c2d"),
        ("pyslowfast-ssv2", "pyslowfast-caffe2", "pyslowfast-ssv2"),
        ("slowonly", "pytorchvideo", "pytorchvideo"),
        ("i3d", "gluoncv", "gluoncv"),
        ("r2plus1d", "gluoncv", "gluoncv-r2plus1d"),
        ("csn", "gluoncv", "gluoncv-csn"),
        ("tsn", "gluoncv", "gluoncv-tsn"),
        ("torchvision-18", "torchvision", "torchvision-18"),
        ("slowonly-tiny", "ours", "slowonly-tiny"),
    ],
)
def test_the_program_that_wrote_a_file_decides(protocol: str, origin: str, row: str) -> None:
    for mode in protocols.MODES:
        assert protocols.for_network(Network(protocol, origin), mode) == protocols.get(row, mode)


def test_no_two_rows_stand_for_the_same_files() -> None:
    table = manifests.read("protocols")
    claims = [
        (origin, name) for row in table.values() for origin in row.get("origin", ()) for name in row["in_place_of"]
    ]
    assert len(set(claims)) == len(claims)
    assert {name for _, name in claims} <= table.keys()


def test_as_many_segments_as_the_network_has() -> None:
    assert protocols.for_network(Network("tsn", num_segments=3), "efficient").num_clips == 3
    assert protocols.for_network(Network("tsn", num_segments=3), "accurate").num_clips == 25
    assert protocols.for_network(Network("tsm", num_segments=16), "accurate").views == "16x3@256"
    assert protocols.for_network(Network("tsm-sthv2-16", num_segments=16), "accurate").num_clips == 8
    assert protocols.for_network(Network("slowonly"), "accurate") == protocols.get("slowonly", "accurate")


def test_like_takes_over_what_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "a": {
            "about": "first",
            "efficient": {"version": 1, "sampling": "torchvision", "num_clips": 1, "num_crops": 1, "crop_px": 112,
                          "short_side_px": 128, "aggregation": "prob-mean", "options": {"frame_rate": 15}},
        },
        "b": {"like": "a", "resize_px": [171, 128], "accurate": {"num_clips": 5}},
        "c": {"like": "b", "options": {}, "efficient": {"short_side_px": 130, "version": 2}},
        "circle": {"like": "ring"},
        "ring": {"like": "circle"},
        "lost": {"like": "nothing"},
    }  # fmt: skip
    monkeypatch.setattr(manifests, "read", lambda name: table)
    first, second, third = (protocols.get(name, "efficient") for name in "abc")
    assert replace(first, name="b", short_side_px=None, resize_px=(171, 128)) == second
    assert replace(first, name="c", short_side_px=130, options={}, version=2) == third
    assert protocols.modes("b") == ["efficient", "accurate"]
    with pytest.raises(BadManifest, match="circle is like ring is like circle, which is a circle"):
        protocols.get("circle", "efficient")
    with pytest.raises(BadManifest, match="lost is like nothing, which is not there"):
        protocols.get("lost", "efficient")


def test_misspelt_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = manifests.read("protocols")
    table["slowonly"]["accurate"]["num_crop"] = 3
    monkeypatch.setattr(manifests, "read", lambda name: table)
    with pytest.raises(BadManifest, match="did you mean 'num_crops'"):
        protocols.get("slowonly", "accurate")


@pytest.mark.parametrize(
    ("name", "efficient", "accurate"),
    [
        ("slowonly", (256, "1x1@224"), (256, "10x3@256")),
        ("slowonly-flow", (256, "1x1@256"), (256, "10x1@256")),
        ("slowonly-flow-k400", (256, "1x1@256"), (256, "10x3@256")),
        ("slowonly-jester", (256, "1x1@256"), (256, "10x3@256")),
        ("slowonly-sthv1", (128, "1x1@112"), (128, "10x3@128")),
        ("slowfast", (256, "1x1@224"), (256, "10x3@256")),
        ("slowfast-sthv1", (256, "1x1@256"), (256, "1x1@256")),
        ("i3d", (256, "1x1@224"), (256, "10x3@256")),
        ("r2plus1d", (256, "1x1@224"), (256, "10x3@256")),
        ("csn", (256, "1x1@224"), (256, "10x3@256")),
        ("c2d", (256, "1x1@224"), (224, "10x3@224")),
        ("tpn", (256, "1x1@224"), (256, "10x3@256")),
        ("i3d-dense", (256, "1x1@224"), (256, "1x3@256")),
        ("tsn", (256, "8x1@224"), (256, "25x3@256")),
        ("tsn-320p", (256, "8x1@256"), (256, "25x3@256")),
        ("tsn-tencrop", (256, "8x1@224"), (256, "25x10@224")),
        ("tsn-sthv1", (256, "8x1@224"), (256, "8x10@224")),
        ("tsn-sthv2", (256, "8x1@224"), (256, "8x3@256")),
        ("tsn-centre", (256, "8x1@224"), (256, "8x1@224")),
        ("tsn-hmdb51", (256, "8x1@256"), (256, "8x1@256")),
        ("tsn-mmit", (256, "8x1@224"), (256, "8x1@256")),
        ("tsn-dense", (256, "8x1@224"), (256, "8x1@224")),
        ("tsn-dense-tencrop", (256, "8x1@224"), (256, "8x10@224")),
        ("tsm", (256, "8x1@224"), (256, "8x3@256")),
        ("tsm-sthv1", (256, "8x1@224"), (256, "8x3@256")),
        ("tsm-sthv2", (256, "8x1@224"), (256, "8x3@256")),
        ("tsm-jester", (256, "8x1@256"), (256, "8x3@256")),
        ("tsm-centre", (256, "8x1@224"), (256, "8x1@224")),
        ("tsm-tencrop", (256, "8x1@224"), (256, "8x10@224")),
        ("tsm-dense", (256, "8x1@224"), (256, "8x3@256")),
        ("tsm-dense-tencrop", (256, "8x1@224"), (256, "8x10@224")),
        ("tsm-mobilenetv2", (256, "8x1@224"), (256, "8x3@256")),
        ("tpn-tsm", (256, "8x1@224"), (256, "8x3@256")),
    ],
)
def test_rows_of_mmaction2(name: str, efficient: tuple[int, str], accurate: tuple[int, str]) -> None:
    # Read off the pipelines of the configuration files that each row names.
    for mode, want in (("efficient", efficient), ("accurate", accurate)):
        found = protocols.get(name, mode)
        assert (found.short_side_px, found.views, found.sampling) == (*want, "mmaction2-0.x")


def pipeline(spec: zoo.ModelSpec, protocol: protocols.Protocol) -> list[str]:
    """How the fact sheet writes what we do: 4x16x10, R(-1,256), Three256, N[...]/[...]."""
    dense = "Dense" if protocol.options.get("sampler") == "dense" else ""
    twice = " {'twice_sample': True}" if protocol.options.get("twice_sample") else ""
    crop = {1: "Center", 3: "Three", 10: "Ten"}[protocol.num_crops]
    mean, std = ([int(x) if x == int(x) else x for x in values] for values in (spec.mean, spec.std))
    return [
        f"{dense}{spec.clip_len}x{spec.frame_interval}x{protocol.num_clips}{twice}",
        f"R(-1,{protocol.short_side_px})",
        f"{crop}{protocol.crop_px}",
        f"N{mean}/{std}",
    ]


def test_every_published_file_of_mmaction2_is_tested_as_its_config_says(shared: Path) -> None:
    sheet = (shared / "notes" / "mmaction2_0x_configs.md").read_text(encoding="utf-8")
    configs = {block.split("\n", 1)[0].rpartition("/")[2]: block for block in sheet.split("\n## ")[1:]}
    checked = 0
    for row in published.rows():
        config = configs.get(row["source"].rpartition(" ")[2] + ".py")
        if row["origin"] != "mmaction2-0.x" or "network" not in row or config is None:
            continue
        spec = zoo.spec(row["network"], num_classes=2, origin=row["origin"])
        spec = replace(spec, protocol=row.get("protocol", spec.protocol))
        for mode, said in (("efficient", "val (efficient)"), ("accurate", "test (accurate)")):
            line = next(line for line in config.splitlines() if line.startswith(f"- {said}: "))
            theirs = [part.strip() for part in line.partition(": ")[2].split(" > ")]
            ours = pipeline(spec, protocols.for_network(spec, mode))
            # K600 and K700 are tested without a resize, on copies of short side 256; one normalises on the GPU.
            lacking = [
                part for part in ours if part not in theirs and (part[:2], "video_8x8x1" in row["file"]) != ("R(", True)
            ]
            assert not lacking or "gpu_normalize" in row["file"], (row["file"], mode, lacking, theirs)
            checked += 1
    assert checked >= 250


def test_frames_of_the_2d_rows() -> None:
    def rows(name: str, mode: str) -> int:
        found = protocols.get(name, mode)
        return len(views.frame_indices(found.sampling, 300, 1, 1, found.num_clips, 30.0, **found.options))

    assert [rows("tsm", mode) for mode in protocols.MODES] == [8, 16]
    assert [rows("tsm-centre", mode) for mode in protocols.MODES] == [8, 8]
    assert [rows("tsm-mobilenetv2", mode) for mode in protocols.MODES] == [80, 80]
    assert [rows("tsm-mobilenetv2-1x", mode) for mode in protocols.MODES] == [8, 8]
    assert [rows("tsn", mode) for mode in protocols.MODES] == [8, 25]


def test_rows_of_the_others() -> None:
    eighteen, s3d = (protocols.get(name, "accurate") for name in ("torchvision-18", "torchvision-s3d"))
    assert (eighteen.views, eighteen.resize_px, eighteen.options["frame_rate"]) == ("5x1@112", (171, 128), 15)
    assert (s3d.views, s3d.resize_px) == ("1x1@224", (256, 256))
    plain, offset = (protocols.get(name, "accurate") for name in ("pyslowfast", "pyslowfast-offset"))
    assert plain.views == offset.views == "10x3@256"
    assert (plain.options, offset.options) == (
        {"target_fps": 30, "use_offset": False},
        {"target_fps": 30, "use_offset": True},
    )
    gluon = protocols.get("gluoncv", "accurate")
    assert (gluon.views, gluon.resize_px, gluon.sampling, gluon.aggregation) == (
        "10x3@256", (340, 256), "gluoncv", "logit-mean")  # fmt: skip


def documented() -> list[str]:
    """The lines of the table in docs/protocols.md."""
    lines = ["| protocol | efficient | accurate | resize | frames | scores | for files of | what |", "|" + "---|" * 8]
    for name in protocols.names():
        efficient, accurate = (protocols.get(name, mode) for mode in protocols.MODES)
        row = manifests.read("protocols")[name]

        def both(*values: str) -> str:
            return values[0] if len(set(values)) == 1 else " / ".join(values)

        def frames(protocol: protocols.Protocol) -> str:
            options = [f"{key}={str(value).lower()}" for key, value in protocol.options.items()]
            return " ".join([protocol.sampling, *options])

        def size(protocol: protocols.Protocol) -> str:
            return "x".join(map(str, protocol.resize_px or (protocol.short_side_px,)))

        cells = [
            f"`{name}`",
            efficient.views + "*" * efficient.segments,
            accurate.views + "*" * accurate.segments,
            both(size(efficient), size(accurate)),
            both(frames(efficient), frames(accurate)),
            both(efficient.aggregation, accurate.aggregation),
            ", ".join(row.get("origin", ())),
            row["about"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def test_the_table_in_the_documentation() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "protocols.md"
    table = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert table == documented()
