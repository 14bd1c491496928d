"""Where the list of a data set comes from: given, beside the videos, or fetched; what is said when there is none."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manifests
from datakit import catalog
from datakit.annotations import JOURNAL, ClipSpec
from datakit.asked import clips_asked_for
from datakit.errors import BadManifest, UsageError
from datakit.journal import Journal
from datakit.prepare import Request
from datakit.sources import Options
from tests.datakit.server import Server, serving

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as running:
        yield running


def ask(root: Path, name: str, *, mirror: str = "", splits: tuple[str, ...] = (), **more: Any) -> list[ClipSpec]:
    request = Request(
        name=name, data_root=root, raw=more.get("raw"), labels=None, annotations=more.get("annotations"), splits=splits,
        variants=(catalog.variant("256p"),), num_jobs=1, limit=None, allow_damaged=2, retry_failed=False,
        fetching=Options(mirror=mirror),
    )  # fmt: skip
    with Journal.open(request.set_dir / JOURNAL) as journal:
        found, specs = clips_asked_for(request, catalog.dataset(name), journal)
        journal.replace_clips(found, specs)
        assert journal.clips() == sorted(specs, key=lambda spec: spec.id)  # events, cuts and times survive the journal
        return specs


def put(server: Server, url_path: str, data: bytes) -> None:
    path = server.root / url_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_list_is_fetched_out_of_the_archive_it_is_published_in(tmp_path: Path, server: Server) -> None:
    rows = (HEADER + 'yoga,-aaaaaaaaaa,1,11,validate\n"zumba",bbbbbbbbbbb,2,12,validate\n').encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in (("kinetics600/._validate.csv", b"apple"), ("kinetics600/validate.csv", rows)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    put(server, "deepmind-media/Datasets/kinetics600.tar.gz", out.getvalue())
    specs = ask(tmp_path / "data", "k600", mirror=server.url, splits=("val",))
    assert [(spec.id, spec.label, spec.split) for spec in specs] == [
        ("-aaaaaaaaaa_000001_000011", "yoga", "val"),
        ("bbbbbbbbbbb_000002_000012", "zumba", "val"),
    ]
    kept = tmp_path / "data/k600/raw/annotations/validate.csv"
    assert kept.read_bytes() == rows
    asked = len(server.requests)
    ask(tmp_path / "data", "k600", mirror=server.url, splits=("validate",))  # by any of its names
    assert len(server.requests) == asked  # what is here is not fetched again


def test_the_next_published_copy_when_the_first_is_gone(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (HEADER + "yoga,aaaaaaaaaaa,1,11,val\n").encode()
    put(server, "mmaction/dataset/kinetics400/annotations/kinetics_val.csv", rows)
    (spec,) = ask(tmp_path / "data", "k400", mirror=server.url, splits=("val",))
    assert spec.id == "aaaaaaaaaaa_000001_000011"
    said = capsys.readouterr().err
    assert "has 1 clips, the official list 19906" in said


def test_lists_in_a_zip(tmp_path: Path, server: Server) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 101\n")
        archive.writestr("ucfTrainTestlist/testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    put(server, "wp-content/uploads/2019/03/UCF101TrainTestSplits-RecognitionTask.zip", out.getvalue())
    raw = tmp_path / "UCF-101"
    raw.mkdir()
    specs = ask(tmp_path / "data", "ucf101", mirror=server.url, raw=raw)
    assert [(spec.id, spec.split) for spec in specs] == [("v_YoYo_g08_c01", "train"), ("v_YoYo_g01_c01", "val")]
    put(server, "wp-content/uploads/2019/03/UCF101TrainTestSplits-RecognitionTask.zip", b"PK\x03\x04 no archive")
    with pytest.raises(UsageError, match=r"trainlist01\.txt into .*data2/ucf101/raw/annotations"):
        ask(tmp_path / "data2", "ucf101", mirror=server.url, raw=raw)


def test_elements_and_their_times_are_fetched_together(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "FineGym/resources/dataset"
    put(server, f"{folder}/gym99_val_element.txt", b"0LtLS9wROrk_E_002407_002435_A_0003_0005 78\n")
    (spec,) = ask(tmp_path / "no times", "gym99", mirror=server.url, splits=("val",))
    assert (spec.event, spec.start_s, spec.event_s) == ("0LtLS9wROrk_E_002407_002435", None, None)
    assert "only files that are cut already are found" in capsys.readouterr().err
    event = {
        "event": 4,
        "timestamps": [[2407.04, 2435.28]],
        "segments": {"A_0003_0005": {"stages": 1, "timestamps": [[3.45, 5.64]]}},
    }
    times = {"0LtLS9wROrk": {"E_002407_002435": event}}
    put(server, f"{folder}/finegym_annotation_info_v1.1.json", json.dumps(times).encode())
    (spec,) = ask(tmp_path / "data", "gym99", mirror=server.url, splits=("val",))
    assert (spec.start_s, spec.end_s, spec.event_s) == (2410.49, 2412.68, (2407.04, 2435.28))


def test_offline_says_the_address_and_where_to_put_the_file(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(UsageError) as caught:
        ask(tmp_path / "data", "k400", mirror=mirror, splits=("val",))
    said = str(caught.value)
    assert "https://s3.amazonaws.com/kinetics/400/annotations/val.csv" in said
    assert str(tmp_path / "data/k400/raw/annotations") in said
    assert "--annotations FILE" in said


def test_what_no_program_may_fetch_says_who_has_it(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(UsageError, match=r"cannot be fetched by a program: it comes from https://developer\.qualcomm"):
        ask(tmp_path / "data", "jester", raw=raw, splits=("val",))
    with pytest.raises(UsageError, match=r"on disk type: make ucf101-256p RAW=/videos"):
        ask(tmp_path / "data", "ucf101")


def test_lists_beside_the_videos_and_given_ones(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    packed = shared / "annotations/jester/jester-v1-validation.csv.xz"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/jester-v1-validation.csv").write_bytes(lzma.decompress(packed.read_bytes()))
    assert len(ask(tmp_path / "data", "jester", raw=raw)) == 14787
    assert "no list of train here; it comes from https://developer.qualcomm" in capsys.readouterr().err
    other = tmp_path / "mine.csv"
    shutil.copy(tmp_path / "annotations/jester-v1-validation.csv", other)
    assert len(ask(tmp_path / "data2", "jester", raw=raw, annotations=other, splits=("val",))) == 14787
    with pytest.raises(UsageError, match=r"which split does .*mine\.csv list\? type one --split"):
        ask(tmp_path / "data3", "jester", raw=raw, annotations=other)
    with pytest.raises(UsageError, match=r"nowhere is not there; type --annotations with the official list"):
        ask(tmp_path / "data3", "jester", raw=raw, annotations=tmp_path / "nowhere")


def test_class_names_that_only_the_list_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set whose manifest says how many classes there are and their hash, not their names."""
    read, exists = manifests.read, manifests.exists
    table = read("datasets/k400")
    for key in ("classes", "label_orders"):
        del table[key]
    table |= {"num_classes": 2, "classes_sha256": catalog.class_list_sha256(["yoga", "zumba"])}
    monkeypatch.setattr(manifests, "exists", lambda name: name == "datasets/new" or exists(name))
    monkeypatch.setattr(manifests, "read", lambda name: table.copy() if name == "datasets/new" else read(name))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "val.csv").write_text(HEADER + "zumba,aaaaaaaaaaa,1,11,val\nyoga,bbbbbbbbbbb,1,11,val\n")
    specs = ask(tmp_path / "data", "new", raw=raw, splits=("val",))
    assert [spec.label for spec in specs] == ["zumba", "yoga"]
    (raw / "val.csv").write_text(HEADER + "zumba,aaaaaaaaaaa,1,11,val\nyoghurt,bbbbbbbbbbb,1,11,val\n")
    with pytest.raises(BadManifest, match="the class names are not those of Kinetics-400"):
        ask(tmp_path / "data", "new", raw=raw, splits=("val",))
    (raw / "val.csv").write_text(HEADER + "zumba,aaaaaaaaaaa,1,11,val\n")
    with pytest.raises(BadManifest, match="1 different class names, Kinetics-400 has 2"):
        ask(tmp_path / "data", "new", raw=raw, splits=("val",))
