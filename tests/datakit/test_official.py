"""Official lists against what their makers published: counts, ids, labels, times."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path

import pytest

import manifests
from datakit import catalog, fingerprint, official
from datakit.__main__ import main
from datakit.annotations import Spelling, kinetics_csv, kinetics_json
from datakit.catalog import Dataset
from datakit.errors import BadManifest

SETS = manifests.names("datasets")


def the(name: str) -> Dataset:
    dataset = catalog.dataset(name)
    assert dataset is not None
    return dataset


@pytest.fixture
def unpacked(shared: Path, tmp_path: Path) -> Unpack:
    return Unpack(shared / "annotations", tmp_path)


class Unpack:
    def __init__(self, folder: Path, to: Path) -> None:
        self._folder, self._to = folder, to

    def __call__(self, name: str) -> Path:
        packed = self._folder / f"{name}.xz"
        if not packed.exists():
            return self._folder / name
        path = self._to / Path(name).name
        path.write_bytes(lzma.decompress(packed.read_bytes()))
        return path


# data set, split, file, clips, different videos, different labels (None counts)
PUBLISHED = [
    ("k400", "val", "kinetics400/val.csv", 19906, 19906, 400),
    ("k400", "test", "kinetics400/test_ids.csv", 38685, 38685, 1),
    ("k600", "val", "kinetics600/val.csv", 30000, 29994, 600),
    ("k700", "val", "kinetics700/val.csv", 35000, 34946, 700),
    ("k700-2020", "val", "kinetics700_2020/val.csv", 34198, 34145, 700),
    ("gym99", "train", "finegym/gym99_train_element_v1.0.txt", 20484, 154, 99),
    ("gym99", "val", "finegym/gym99_val_element.txt", 8521, 65, 99),
    ("gym99-v1.1", "train", "finegym/gym99_train_element_v1.1.txt", 26320, 155, 99),
    ("gym288", "train", "finegym/gym288_train_element_v1.1.txt", 29334, 177, 288),
    ("gym288", "val", "finegym/gym288_val_element.txt", 9646, 117, 288),
    ("jester", "val", "jester/jester-v1-validation.csv", 14787, 14787, 27),
    ("jester", "test", "jester/jester-v1-test.csv", 14743, 14743, 1),
    ("sthv1", "val", "sthv1/val_id_nframes_label.txt", 11522, 11522, 174),
]


@pytest.mark.parametrize(("name", "split", "file", "clips", "videos", "labels"), PUBLISHED)
def test_published_lists_are_read_whole(
    unpacked: Unpack, capsys: pytest.CaptureFixture[str],
    name: str, split: str, file: str, clips: int, videos: int, labels: int,
) -> None:  # fmt: skip
    path, dataset = unpacked(file), the(name)
    specs = official.read(path, dataset, dataset.split(split))
    assert len(specs) == len({spec.id for spec in specs}) == clips == dataset.split(split).rows
    assert len({spec.video for spec in specs}) == videos
    assert len({spec.label for spec in specs}) == labels
    official.say_differences(specs, path, dataset.split(split))
    assert capsys.readouterr().err == ""  # the pinned list id is that of this file
    official.say_differences(specs[1:], path, dataset.split(split))
    assert f"has {clips - 1} clips, the official list {clips}" in capsys.readouterr().err


def test_the_same_number_of_other_clips_is_not_the_official_list(
    unpacked: Unpack, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dataset = unpacked("jester/jester-v1-validation.csv"), the("jester")
    lines = path.read_text().splitlines()
    lines[0] = lines[0].replace("Thumb Up", "Thumb Down")
    path.write_text("\n".join(lines))
    official.say_differences(official.read(path, dataset, dataset.split("val")), path, dataset.split("val"))
    assert "14787 clips like the official list, but not the same" in capsys.readouterr().err


def test_six_videos_of_k600_have_two_labels(unpacked: Unpack) -> None:
    dataset = the("k600")
    specs = kinetics_csv(unpacked("kinetics600/val.csv"), "val", dataset.classes)
    twice: dict[str, list[tuple[float | None, str | None]]] = {}
    for spec in specs:
        twice.setdefault(spec.video, []).append((spec.start_s, spec.label))
    twice = {video: sorted(moments) for video, moments in twice.items() if len(moments) > 1}
    assert len(twice) == 6
    assert twice["xnC3nngvLCo"] == [(7.0, "cracking knuckles"), (83.0, "cracking neck")]


def test_validate_and_odd_lengths_of_k700_2020(unpacked: Unpack) -> None:
    dataset = the("k700-2020")
    specs = official.read(unpacked("kinetics700_2020/val.csv"), dataset, dataset.split("val"))
    assert {spec.split for spec in specs} == {"val"}
    lengths = [spec.end_s - spec.start_s for spec in specs if spec.end_s is not None and spec.start_s is not None]
    assert sum(length != 10 for length in lengths) == 6
    assert any(spec.id.startswith("---QUuC4vJs_000084_000094") for spec in specs)


def test_published_spellings_of_a_class() -> None:
    spelling = Spelling(the("k600").classes)
    for text, name in (
        ("massaging person's head", "massaging person's head"),
        ("massaging_person's_head", "massaging person's head"),
        ("massaging_persons_head", "massaging person's head"),
        ('"air drumming"', "air drumming"),
        ("passing American football (in game)", "passing American football (in game)"),
        ("passing_american_football_(not_in_game)", "passing american football (not in game)"),
        ("passing_American_football_not_in_game", None),  # K700's spelling of what K600 writes with a small letter
    ):
        assert spelling.find(text) == name


def test_kinetics_json_in_its_published_forms(tmp_path: Path) -> None:
    expected = [
        ("-a_B-c_D-e_F_000417_000427", "air drumming", 417.0, 427.0),
        ("zvdtk1CSpao_000031_000041", None, 31, 41),
    ]
    entry = {"label": "air drumming", "segment": [417.0, 427.0]}
    deepmind = {
        "-a_B-c_D-e_F": {"annotations": entry, "duration": 10.0, "subset": "validate", "url": "https://youtu.be/x"},
        "zvdtk1CSpao": {"annotations": {"segment": [31, 41]}, "subset": "validate"},
        "aaaaaaaaaaa": {"annotations": entry, "subset": "train"},
    }
    activitynet = {
        "version": "1",
        "database": {key: {**one, "annotations": [one["annotations"]]} for key, one in deepmind.items()},
    }
    rows = [
        {"youtube_id": "-a_B-c_D-e_F", "time_start": 417, "time_end": "427.0", "label": "air drumming", "split": "val"},
        {"youtube_id": "zvdtk1CSpao", "time_start": 31, "time_end": 41, "split": "val"},
    ]
    path = tmp_path / "validate.json"
    for content in (deepmind, activitynet, rows):
        path.write_text(json.dumps(content))
        specs = kinetics_json(path, "val", ["air drumming"])
        assert [(s.id, s.label, s.start_s, s.end_s) for s in specs] == expected
    for broken in ("[1]", "{}}", '{"aaaaaaaaaaa": {"subset": "val"}}'):
        path.write_text(broken)
        with pytest.raises(BadManifest, match=r"validate\.json is no Kinetics list in JSON"):
            kinetics_json(path, "val", ["air drumming"])


@pytest.mark.parametrize(("name", "file", "text"), [
    ("k400", "val.csv", "label,youtube_id,time_start,time_end,split\n"),
    ("k400", "val.json", '{"a": {"annotations": {"label": "yoga", "segment": [1, 2]}, "subset": "training"}}'),
    ("jester", "jester-v1-validation.csv", "\n"),
    ("gym99", "gym99_val_element.txt", ""),
])  # fmt: skip
def test_a_list_of_nothing_is_no_list(tmp_path: Path, name: str, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(BadManifest, match=f"{file} lists no clip of val"):
        official.read(tmp_path / file, the(name), the(name).split("val"))


def test_moments_within_one_second_are_two_clips(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text(
        "label,youtube_id,time_start,time_end,split\nyoga,aaaaaaaaaaa,1.2,11.2,val\nzumba,aaaaaaaaaaa,1.7,11.7,val\n"
        "yoga,bbbbbbbbbbb,3.0,13.0,val\nyoga,bbbbbbbbbbb,3,13,val\n"
    )
    specs = kinetics_csv(path, "val", ["yoga", "zumba"])
    assert [(spec.id, spec.label) for spec in specs] == [
        ("aaaaaaaaaaa_000001.200_000011.200", "yoga"),
        ("aaaaaaaaaaa_000001.700_000011.700", "zumba"),
        ("bbbbbbbbbbb_000003_000013", "yoga"),
    ]


def test_times_of_all_elements_agree_with_their_names(unpacked: Unpack) -> None:
    dataset = the("gym99-v1.1")
    late = 0
    for split, clips in (("train", 26320), ("val", 8521)):
        path = unpacked(f"finegym/gym99_{split}_element{'_v1.1' if split == 'train' else ''}.txt")
        specs = official.read(path, dataset, dataset.split(split), unpacked(f"finegym/gym99_{split}_timestamps.csv"))
        assert len(specs) == clips
        for spec in specs:
            assert spec.start_s is not None and spec.end_s is not None and spec.event_s is not None  # noqa: PT018
            # An id is the video's and the whole seconds, nothing else: VIDEO_E_start_end_A_start_end
            inside = [math.floor(round(second - spec.event_s[0], 6)) for second in (spec.start_s, spec.end_s)]
            event = "_".join(f"{math.floor(second):06d}" for second in spec.event_s)
            assert spec.id == f"{spec.video}_E_{event}_A_{inside[0]:04d}_{inside[1]:04d}"
            assert spec.event == f"{spec.video}_E_{event}"
            late += spec.end_s > spec.event_s[1] + 0.001
    assert late == 74  # they end after their event and are kept whole


def test_gym_times_from_the_makers_json(tmp_path: Path) -> None:
    """Written as FineGym's annotation_info is: a vault in three stages, an event without elements."""
    path = tmp_path / "finegym_annotation_info_v1.1.json"
    path.write_text(
        json.dumps(
            {
                "_-A_E_0A_-x": {
                    "E_002184_002237": {
                        "event": 1,
                        "timestamps": [[2184.24, 2237.24]],
                        "segments": {
                            "A_0035_0036": {"stages": 1, "timestamps": [[35.37, 36.97]]},
                            "A_0040_0044": {"stages": 3, "timestamps": [[40.0, 41.1], [41.1, 42.5], [42.5, 44.04]]},
                        },
                    },
                    "E_003000_003010": {"event": 2, "timestamps": [[3000.0, 3010.0]], "segments": None},
                }
            }
        )
    )
    listed = tmp_path / "train.txt"
    listed.write_text("_-A_E_0A_-x_E_002184_002237_A_0040_0044 1\n_-A_E_0A_-x_E_002184_002237_A_0035_0036 0\n")
    first, vault = official.gym(listed, "train", ("beam", "vault"), path)
    assert (first.video, first.event, first.label) == ("_-A_E_0A_-x", "_-A_E_0A_-x_E_002184_002237", "beam")
    assert (first.start_s, first.end_s, first.event_s) == (2219.61, 2221.21, (2184.24, 2237.24))
    assert (vault.start_s, vault.end_s, vault.label) == (2224.24, 2228.28, "vault")
    for line in ("_-A_E_0A_-x_E_002184_002237_A_0040_0044 2", "short_E_002184_002237_A_0040_0044 0", "x"):
        listed.write_text(f"{line}\n")
        with pytest.raises(BadManifest, match=r"train\.txt:1: VIDEO_E_start_end_A_start_end and a label below 2"):
            official.gym(listed, "train", ("beam", "vault"), path)


def test_the_two_label_orders_of_sthv1(unpacked: Unpack, tmp_path: Path) -> None:
    dataset = the("sthv1")
    assert list(dataset.classes) == unpacked("sthv1/label_map_mmaction2.txt").read_text().splitlines()
    by_number = official.read(unpacked("sthv1/val_id_nframes_label.txt"), dataset, dataset.split("val"))
    label_of = {spec.id: spec.label for spec in by_number}
    # Numbers in such lists count in the sorted order of category.txt, not in the official one.
    category = unpacked("sthv1/category.txt").read_text().splitlines()
    line = unpacked("sthv1/val_id_nframes_label.txt").read_text().splitlines()[0].split()
    assert label_of[line[0]] == category[int(line[2])] != dataset.classes[int(line[2])]
    # The official CSV names the class, so it gives the same clips whatever the order.
    names = tmp_path / "something-something-v1-validation.csv"
    names.write_text("".join(f"{spec.id};{spec.label}\n" for spec in by_number))
    assert official.read(names, dataset, dataset.split("val")) == by_number


def test_jester_is_numbered_as_its_label_file_and_not_by_alphabet(unpacked: Unpack) -> None:
    dataset = the("jester")
    assert list(dataset.classes) == unpacked("jester/label_map_mmaction2.txt").read_text().splitlines()
    assert list(dataset.classes) != sorted(dataset.classes)
    names = official.read(unpacked("jester/jester-v1-validation.csv"), dataset, dataset.split("val"))
    assert official.read(unpacked("jester/bear_test.csv"), dataset, dataset.split("val")) == names  # id frames number


def test_one_more_data_set_is_a_toml(tmp_path: Path) -> None:
    dataset = the("ucf101")
    train = tmp_path / "trainlist01.txt"
    train.write_text("Hammering/v_Hammering_g08_c01.avi 35\nHandstandPushups/v_HandStandPushups_g01_c01.avi 37\n")
    assert [(spec.id, spec.label) for spec in official.read(train, dataset, dataset.split("train"))] == [
        ("v_Hammering_g08_c01", "Hammering"),
        ("v_HandStandPushups_g01_c01", "HandstandPushups"),  # file and folder are spelled differently
    ]
    test = tmp_path / "testlist01.txt"
    test.write_text("YoYo/v_YoYo_g01_c01.avi\r\n")
    assert [spec.label for spec in official.read(test, dataset, dataset.split("val"))] == ["YoYo"]
    for line, message in (
        ("Hammering/v_Hammering_g08_c01.avi 36", "'36' and 'Hammering' are different classes: another label order"),
        ("Hammering/v_Hammering_g08_c01.avi 0", "'0' is none of the 101 classes"),
        ("Sawing/v_Sawing_g08_c01.avi", "'Sawing' is none of the 101 classes"),
    ):
        train.write_text(f"{line}\n")
        with pytest.raises(BadManifest, match=message):
            official.read(train, dataset, dataset.split("train"))


@pytest.mark.parametrize("name", SETS)
def test_manifests_say_all_there_is_to_know(name: str) -> None:
    dataset = the(name)
    assert len(dataset.classes) == dataset.num_classes
    assert catalog.class_list_sha256(dataset.classes) == dataset.classes_sha256
    assert dataset.licence and dataset.access  # noqa: PT018
    assert {"train", "val"} <= {split.name for split in dataset.splits}
    assert set(dataset.variants) <= set(catalog.variant_names())
    assert {"mmaction2", "torchvision"} <= set(dataset.label_orders)


def test_a_wrong_manifest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = manifests.read("datasets/jester")
    for change, message in (
        ({"clases": []}, "unknown key 'clases'; did you mean 'classes'"),
        ({"num_classes": 26}, "27 different class names, 20BN-Jester v1 has 26"),
        ({"classes": [*table["classes"][:-1], "Waving"]}, "the class names are not those of 20BN-Jester"),
        ({"flip_labels": [["Swiping Left", "Swiping Rigth"]]}, "'Swiping Rigth', which is no class"),
        ({"label_orders": {"mine": [0, 1]}}, "label_orders.mine is no order of the 27 classes"),
        ({"layout": {"class_folder": False}}, r"\[layout\]: unknown key 'class_folder'; did you mean 'class_folders'"),
        ({"splits": {"val": {"rows": 3}}}, r"\[splits.val\]: files is not there"),
        ({"splits": {"dev": {"files": []}}}, r"\[splits.dev\]: a split is one of test, train, val"),
        ({"splits": {"val": {"files": "val.csv"}}}, r"\[splits.val\]: files = 'val.csv' should be a list of texts"),
        ({"title": 5}, "title = 5 should be a text"),
        ({"num_classes": "27"}, "num_classes = '27' should be a whole number"),
        ({"clip_names": ["{name}"]}, "'{name}' is no name of a file made of id, video, event, start and end"),
    ):
        monkeypatch.setattr(manifests, "read", lambda name, change=change: {**table, **change})
        with pytest.raises(BadManifest, match=message):
            catalog.dataset("jester")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title = ", "title "), "line 1"),
        (('"mine.txt"', '"nothing.txt"'), "nothing.txt"),
        (("256p", "255p"), "no variant '255p'; there are: 256p, "),
        (('torchvision = "folders"', 'torchvision = "folder"'), "'folder' is no rule; there are: official, sorted"),
        (("[sources.youtube]", "[sources.ftp]"), r"\[sources.ftp\]: no such source; there are: archive, cvdf"),
        (("margin_s = 2.0", ""), r"\[sources.youtube\]: margin_s is not there"),
        (('unit = "event"', 'unit = "events"'), "unit is one of clip, event, video"),
    ],
)
def test_a_wrong_manifest_of_ones_own_is_refused_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "datasets").mkdir()
    ours = manifests.ROOT / "datasets" / "gym99.toml"
    text = "\n".join(
        line for line in ours.read_text().replace("gym99.classes.txt", "mine.txt").splitlines() if line[:1] != "#"
    )
    (tmp_path / "datasets" / "mine.toml").write_text(text.lstrip().replace(*change))
    (tmp_path / "datasets" / "mine.txt").write_text((ours.parent / "gym99.classes.txt").read_text())
    (tmp_path / "gym99_val_element.txt").write_text("0LtLS9wROrk_E_002407_002435_A_0003_0005 78\n")
    (tmp_path / "finegym_annotation_info_v1.1.json").write_text("{}")
    monkeypatch.setenv("MANIFESTS", str(tmp_path))
    words = ["prepare", "mine", "--variant", "256p", "--split", "val", "--label-order", "torchvision"]
    with pytest.raises(BadManifest, match=message):
        main([*words, "--raw", str(tmp_path), "--data-root", str(tmp_path / "data")])


def test_list_ids_do_not_depend_on_the_file(unpacked: Unpack) -> None:
    dataset = the("sthv1")
    specs = official.read(unpacked("sthv1/mvfnet_val_rgb.txt"), dataset, dataset.split("val"))  # an independent copy
    assert fingerprint.list_id((spec.id, spec.label or "") for spec in specs) == dataset.split("val").list_id


def test_a_data_set_of_ones_own_is_a_toml_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    ours = manifests.ROOT / "datasets" / "gym99.toml"
    (tmp_path / "datasets" / "mine.toml").write_text(ours.read_text().replace("gym99.classes.txt", "mine.txt"))
    (tmp_path / "datasets" / "mine.txt").write_text((ours.parent / "gym99.classes.txt").read_text())
    (tmp_path / "variants.toml").write_text("")  # only data sets are looked for there
    assert catalog.dataset("mine") is None
    monkeypatch.setenv("MANIFESTS", str(tmp_path))
    found = catalog.dataset("mine")
    assert found is not None
    assert (found.num_classes, found.flow) == (99, ("256p",))
    assert {"mine", "gym99"} <= set(manifests.names("datasets"))
    assert "256p" in catalog.variant_names()


def test_every_complaint_has_an_answer_and_a_test() -> None:
    """docs/complaints.md: one row each, and the tests it names are there."""
    folder = Path(__file__).parent
    rows = re.findall(r"^\| (\d+) \|.*\|(.*)\|$", (folder.parents[1] / "docs/complaints.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 39))
    for _, tests in rows:
        for group in tests.split(";"):
            file, *names = re.findall(r"`(\w+)`", group)
            assert names
            there = (folder / f"{file}.py").read_text()
            assert all(f"def test_{name}(" in there for name in names), (file, names)
