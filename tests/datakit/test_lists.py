"""Every list against the rule by which its program reads it, and the orders in which classes are numbered."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from datakit import catalog, labels, lists, manifest
from datakit.__main__ import main
from datakit.catalog import Dataset
from datakit.errors import BadManifest, UsageError

CLASSES = ("wave", "jump high", "(VT) round-off, 1 turn")
ROWS = [
    ("a", "wave", "train/wave/a.mp4", 12),
    ("-b_c", "jump high", "train/jump_high/-b_c.mp4", 1),
    ("gone", "wave", None, None),
    ("d", "(VT) round-off, 1 turn", "val/d.mp4", 300),
    ("e", None, "val/e.mp4", 7),
]


def rows_of(entries: list[tuple[str, str | None, str | None, int | None]]) -> list[dict[str, Any]]:
    return [
        {
            "id": id_, "label": label, "label_index": CLASSES.index(label) if label else -1, "path": path,
            "frames": frames, "split": path.split("/")[0] if path else "train",
        }
        for id_, label, path, frames in entries
    ]  # fmt: skip


def mmaction2(path: Path) -> list[tuple[str, list[int]]]:
    """video_dataset.py and rawframe_dataset.py, both versions: a line is split at white space; path, then numbers."""
    with path.open() as file:
        parts = [line.strip().split() for line in file]
    return [(first, [int(word) for word in rest]) for first, *rest in parts]


def pyslowfast(path: Path, separator: str | None) -> list[tuple[str, int]]:
    """slowfast/datasets/kinetics.py: older versions split at white space, newer at DATA.PATH_LABEL_SEPARATOR (" ")."""
    pairs = []
    for line in path.read_text().splitlines():
        assert len(line.split(separator)) == 2
        name, label = line.split(separator)
        pairs.append((name, int(label)))
    return pairs


def test_every_program_reads_its_list(tmp_path: Path) -> None:
    lists.write_lists(tmp_path, rows_of(ROWS), CLASSES, "official")
    folder = tmp_path / "lists"
    assert mmaction2(folder / "train_videos.txt") == [("train/wave/a.mp4", [0]), ("train/jump_high/-b_c.mp4", [1])]
    assert mmaction2(folder / "train_frames.txt") == [("train/wave/a", [12, 0]), ("train/jump_high/-b_c", [1, 1])]
    # One flow field less than frames: a clip of one frame has none.
    assert mmaction2(folder / "train_flow.txt") == [("train/wave/a", [11, 0])]
    assert mmaction2(folder / "val_flow.txt") == [("val/d", [299, 2]), ("val/e", [6, -1])]
    for separator in (None, " "):
        assert pyslowfast(folder / "val_pyslowfast.csv", separator) == [("val/d.mp4", 2), ("val/e.mp4", -1)]
    assert (folder / "classes.txt").read_text().splitlines() == list(CLASSES)
    with (folder / "label_map.csv").open(newline="") as file:
        assert [(row["index"], row["name"], row["order"]) for row in csv.DictReader(file)] == [
            (str(index), name, "official") for index, name in enumerate(CLASSES)
        ]


def test_folders_of_pictures_are_no_videos(tmp_path: Path) -> None:
    lists.write_lists(tmp_path, rows_of([("v1.2_take", "wave", "val/v1.2_take", 37)]), CLASSES, "official")
    assert mmaction2(tmp_path / "lists/val_frames.txt") == [("val/v1.2_take", [37, 0])]
    assert mmaction2(tmp_path / "lists/val_flow.txt") == [("val/v1.2_take", [36, 0])]
    assert not (tmp_path / "lists/val_videos.txt").exists()
    assert not (tmp_path / "lists/val_pyslowfast.csv").exists()


@pytest.mark.parametrize("blank", [" ", "\u3000", "\x85"])
def test_paths_with_spaces_are_refused_until_links_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], blank: str
) -> None:
    folder = tmp_path / "mine/theirs"
    name = f"val/jump{blank}high/x{blank}y.mkv"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(b"video")
    good = rows_of([("x", "jump high", "val/x.mp4", 5)])
    lists.write_lists(folder, good, CLASSES, "official")
    spaced = rows_of([("x y", "jump high", name, 5)])
    lists.write_lists(folder, spaced, CLASSES, "official")
    assert not list((folder / "lists").glob("val_*"))  # yesterday's are gone, none is silently wrong
    said = capsys.readouterr().err
    assert "1 paths of" in said
    assert "python -m datakit lists mine --tree" in said
    lists.write_tree(folder, spaced, CLASSES)
    lists.write_lists(folder, spaced, CLASSES, "official")
    (listed,) = mmaction2(folder / "lists/val_videos.txt")
    assert listed == ("tree/val/jump_high/x_y.mkv", [1])
    assert (folder / listed[0]).read_bytes() == b"video"


def test_tree_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets.folder import find_classes, make_dataset

    folder = tmp_path / "gym/256p"
    for _, _, path, _ in ROWS:
        if path:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(path.encode())
    rows = rows_of(ROWS)
    assert lists.write_tree(folder, rows, CLASSES) == 3  # not the one without a label
    assert lists.write_tree(folder, rows, CLASSES) == 3  # again, whole
    found, to_index = find_classes(folder / "tree/val")
    # A class without clips has its folder too: the numbers of the others stay what the label map says.
    by_name = labels.ordered(CLASSES, "torchvision")
    assert [found.index(name.replace(" ", "_")) for name in by_name] == [0, 1, 2]
    samples = make_dataset(str(folder / "tree/val"), to_index, (".mp4",), allow_empty=True)
    ((sample, number),) = samples
    assert Path(sample).read_bytes() == b"val/d.mp4"
    assert by_name[number] == "(VT) round-off, 1 turn"
    assert not list(folder.glob("*.part"))
    (folder / "tree/val/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no links of ours; move it away"):
        lists.write_tree(folder, rows, CLASSES)
    two = rows_of([("x y", "wave", "val/1.mp4", 5), ("x_y", "wave", "val/2.mp4", 5)])
    with pytest.raises(BadManifest, match=r"two clips would both be tree/val/wave/x_y\.mp4"):
        lists.write_tree(tmp_path / "other", two, CLASSES)


def the(name: str) -> Dataset:
    dataset = catalog.dataset(name)
    assert dataset is not None
    return dataset


@pytest.mark.parametrize(("name", "moved"), [("k400", 2), ("k600", 4), ("k700", 5)])
def test_order_of_torchvisions_kinetics_folders(tmp_path: Path, name: str, moved: int) -> None:
    from torchvision.datasets.folder import find_classes

    dataset = the(name)
    for text in dataset.classes:  # torchvision/datasets/kinetics.py, _make_ds_structure
        (tmp_path / text.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "")).mkdir()
    order = labels.ordered(dataset.classes, "torchvision", dataset)
    assert [text.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "") for text in order] == (
        find_classes(tmp_path)[0]
    )
    assert sum(one != other for one, other in zip(order, dataset.classes, strict=True)) == moved
    # The tree of links is numbered the same, so that lists and folders agree.
    row = {"id": "x", "label": order[-1], "split": "val", "path": "val/x.mp4"}
    lists.write_tree(tmp_path / "made", [row], dataset.classes, labels.class_folder(dataset))
    assert find_classes(tmp_path / "made/tree/val")[0] == [labels.bare_name(text) for text in order]


def test_torchvisions_weights_are_in_sorted_order() -> None:
    from torchvision.models.video import R3D_18_Weights

    dataset = the("k400")
    assert labels.ordered(dataset.classes, "sorted") == tuple(R3D_18_Weights.DEFAULT.meta["categories"])


def test_published_label_files_are_understood(shared: Path, tmp_path: Path) -> None:
    folder, dataset = shared / "annotations/kinetics400", the("k400")
    for name in (
        "label_map_k400_mmaction2.txt",
        "label_map_tsm.txt",
        "label_list_paddle.txt",  # number name_with_underscores
        "nonlocal_classids.json",  # {"\"name in quotes\"": number}
    ):
        assert labels.ordered(dataset.classes, str(folder / name), dataset) == dataset.classes
    theirs = labels.ordered(dataset.classes, str(folder / "uniformer_categories.txt"), dataset)  # name TAB number
    assert theirs[:2] == ("riding a bike", "marching")
    assert theirs == labels.ordered(dataset.classes, "uniformer", dataset)
    hugging_face = tmp_path / "id2label.json"
    hugging_face.write_text(json.dumps({str(n): name for n, name in enumerate(theirs)}))
    from_one = tmp_path / "classInd.txt"
    from_one.write_text("".join(f"{n} {name.replace(' ', '_')}\n" for n, name in enumerate(theirs, start=1)))
    lists.write_lists(tmp_path, [], theirs, "uniformer")
    for path in (hugging_face, from_one, tmp_path / "lists/label_map.csv", tmp_path / "lists/classes.txt"):
        assert labels.ordered(dataset.classes, str(path), dataset) == theirs
    # FineGym calls two classes alike, and so does mmaction2's file; here the second has a name of its own.
    gym = the("gym99")
    assert (
        labels.ordered(gym.classes, str(shared / "annotations/finegym/label_map_gym99_mmaction2.txt"), gym)
        == gym.classes
    )
    assert [name for name in gym.classes if name.startswith("(BB) salto backward tucked")] == [
        "(BB) salto backward tucked with 1 twist", "(BB) salto backward tucked", "(BB) salto backward tucked [2]",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), [("gym99", "gym99_categories.txt"), ("gym288", "gym288_categories.txt")])
def test_the_label_file_of_finegym_is_the_official_order(shared: Path, name: str, file: str) -> None:
    dataset = catalog.dataset(name)
    assert dataset is not None
    path = shared / "annotations/finegym" / file  # Clabel: 0; set: 1; Glabel: 1; (VT) round-off, ...
    assert labels.ordered(sorted(dataset.classes), str(path), dataset) == dataset.classes


def test_uniformers_order_of_k600_is_that_of_its_list(shared: Path) -> None:
    dataset = the("k600")
    order = labels.ordered(dataset.classes, "uniformer", dataset)
    packed = (shared / "annotations/kinetics600/uniformer_val.csv.xz").read_bytes()
    for line in lzma.decompress(packed).decode().splitlines():
        path, _, number = line.rpartition(",")
        assert labels.bare_name(order[int(number)]) == labels.bare_name(path.split("/")[1])


def test_orders_that_are_none(tmp_path: Path) -> None:
    dataset = the("jester")
    with pytest.raises(
        UsageError, match=r"'pyslowfast'; type --label-order with one of: official, sorted, mmaction2, tor"
    ):
        labels.ordered(dataset.classes, "pyslowfast", dataset)
    path = tmp_path / "labels.txt"
    for names, message in (
        ([*dataset.classes[:-1], "Waving"], "'Waving' is no class of this set"),
        (list(dataset.classes[:-1]), "'Doing other things' is not there"),
        (
            [f"{number} {name}" for number, name in enumerate(dataset.classes, start=7)],
            "the class numbers are not 0 to 26",
        ),
    ):
        path.write_text("\n".join(names))
        with pytest.raises(BadManifest, match=message):
            labels.ordered(dataset.classes, str(path), dataset)


def test_an_order_is_kept_until_it_is_changed(tmp_path: Path, class_folders: Path) -> None:
    root = ["--data-root", str(tmp_path / "data")]
    other = tmp_path / "label_map.txt"
    other.write_text("wave\njump_high\n")
    prepare = ["prepare", "mine", "--raw", str(class_folders), "--variant", "256p", "--jobs", "2", *root]
    assert main([*prepare, "--label-order", str(other)]) == 5
    other.unlink()  # a file is read once
    folder = tmp_path / "data/mine/256p"
    assert main(prepare) == 5
    assert main(["lists", "mine", "--tree", *root]) == 0
    assert (folder / "lists/classes.txt").read_text() == "wave\njump high\n"
    assert "0,wave,label_map.txt" in (folder / "lists/label_map.csv").read_text()
    assert json.loads((folder / "manifest.lock").read_text())["label_order"] == "label_map.txt"
    table = manifest.read(folder)
    assert table.classes == ("wave", "jump high")
    assert {clip.label_index for clip in table.clips if clip.label == "wave"} == {0}
    assert (folder / "tree/val/jump_high/e.mp4").resolve() == folder / "val/jump_high/e.mp4"
    listed = table.list_id(table.clips)
    assert main(["lists", "mine", "--label-order", "sorted", *root]) == 0
    assert mmaction2(folder / "lists/val_videos.txt") == [("val/wave/d.mp4", [1]), ("val/jump_high/e.mp4", [0])]
    again = manifest.read(folder)
    assert again.classes == ("jump high", "wave")
    assert again.list_id(again.clips) == listed  # another numbering is no other list
    with pytest.raises(UsageError, match="no label order and no file 'alphabetical'; type --label-order with one of"):
        main(["lists", "mine", "--label-order", "alphabetical", *root])
