"""An archive in numbered parts: read as one stream, its sequence checked, resumed, pictures and videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from datakit import catalog
from datakit.annotations import JOURNAL, ClipSpec
from datakit.catalog import Dataset
from datakit.errors import BadArchive, UsageError
from datakit.fetch import with_files
from datakit.journal import Journal
from datakit.sources import Options, fetch_stage
from datakit.sources.archive import find_parts
from tests.datakit.test_sources import link, tar

PREFIX = "20bn-jester-v1-"


def dataset() -> Dataset:
    found = catalog.dataset("jester")
    assert found is not None
    return found


def specs(num: int) -> list[ClipSpec]:
    return [ClipSpec(id=str(n), video=str(n), split="val", label="No gesture") for n in range(1, num + 1)]


def members(num: int) -> list[tuple[str, bytes]]:
    return [
        (f"20bn-jester-v1/{n}/{frame:05}.jpg", b"\xff\xd8" + bytes([n, frame]) * 200)
        for n in range(1, num + 1)
        for frame in range(1, 13)
    ]


def parts(folder: Path, data: bytes, size: int = 997) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, start in enumerate(range(0, len(data), size)):
        paths.append(folder / f"{PREFIX}{number:02}")
        paths[-1].write_bytes(data[start : start + size])
    return paths


def fetch(data: Path, num: int, raw: Path | None = None, limit: int | None = None, **options: object) -> list[ClipSpec]:
    set_dir = data / "jester"
    (data / "notes").mkdir(parents=True, exist_ok=True)
    with Journal.open(set_dir / JOURNAL) as journal:
        return with_files({"val"}, specs(num), dataset(), set_dir, raw, journal, Options(**options),  # type: ignore[arg-type]
                          num_jobs=2, limit=limit, notes=data / "notes")  # fmt: skip


def frames(found: list[ClipSpec]) -> dict[str, int]:
    return {spec.id: len(list(spec.source.glob("*.jpg"))) for spec in found if spec.source is not None}


@pytest.mark.parametrize("where", ["data/jester/raw", "elsewhere"])
def test_parts_become_folders_of_pictures(tmp_path: Path, where: str) -> None:
    made = parts(tmp_path / where, tar(members(30)))
    assert len(made) > 3
    raw = tmp_path / where if where == "elsewhere" else None
    found = fetch(tmp_path / "data", 31, raw)
    assert frames(found) == {str(n): 12 for n in range(1, 31)}
    with Journal.read(tmp_path / "data/jester" / JOURNAL) as journal:
        rows = journal.outcomes(fetch_stage("archive"))
    assert rows["31"].error == "Missing"
    assert rows["7"].data["member"] == "20bn-jester-v1/7"
    assert rows["7"].data["files"] == 12
    assert rows["7"].key
    # again: nothing is read
    for part in made:
        part.chmod(0)
    stamp = (tmp_path / "data/jester/raw/archive/clips/7").stat().st_mtime_ns
    assert frames(fetch(tmp_path / "data", 31, raw)) == frames(found)
    assert (tmp_path / "data/jester/raw/archive/clips/7").stat().st_mtime_ns == stamp


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    parts(tmp_path / "data/jester/raw", tar(members(30)))
    assert len(frames(fetch(tmp_path / "data", 30, limit=5))) == 5
    clips = tmp_path / "data/jester/raw/archive/clips"
    stamps = {path.name: path.stat().st_mtime_ns for path in clips.iterdir()}
    (clips.parent / "unfinished/9").mkdir(parents=True)  # half of a clip, as a kill leaves it
    (clips.parent / "unfinished/9/00099.jpg").write_bytes(b"x")
    assert frames(fetch(tmp_path / "data", 30)) == {str(n): 12 for n in range(1, 31)}
    assert {name: (clips / name).stat().st_mtime_ns for name in stamps} == stamps


def test_folders_that_are_unpacked_already_are_taken(tmp_path: Path) -> None:
    for name, data in members(3):
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert frames(fetch(tmp_path / "data", 4, tmp_path / "here")) == {"1": 12, "2": 12, "3": 12}


def test_missing_and_repeated_parts_are_named(tmp_path: Path) -> None:
    made = parts(tmp_path / "raw", tar(members(30)))
    assert find_parts(PREFIX, [tmp_path / "raw"]) == made
    made[2].rename(tmp_path / "kept")
    with pytest.raises(BadArchive, match=f"not there: {PREFIX}02"):
        find_parts(PREFIX, [tmp_path / "raw"])
    made[2].write_bytes(made[1].read_bytes())
    with pytest.raises(BadArchive, match=f"{PREFIX}02 repeats {PREFIX}01"):
        fetch(tmp_path / "data", 30, tmp_path / "raw")
    (tmp_path / "kept").replace(made[2])
    (tmp_path / "raw/again").mkdir()
    (tmp_path / "raw/again" / made[1].name).write_bytes(b"x")
    with pytest.raises(BadArchive, match="part 1 is there 2 times"):
        find_parts(PREFIX, [tmp_path / "raw"])
    with pytest.raises(UsageError, match="sign in"):
        fetch(tmp_path / "other", 30)


def test_a_last_part_that_lacks_or_is_cut_is_named(tmp_path: Path) -> None:
    made = parts(tmp_path / "raw", tar(members(30)))
    last = made[-1].read_bytes()
    made[-1].unlink()
    with pytest.raises(BadArchive, match=f"broke off in the last part, {made[-2].name}"):
        fetch(tmp_path / "data", 30, tmp_path / "raw")
    made[-1].write_bytes(last)
    made[3].write_bytes(made[3].read_bytes()[:-100])
    with pytest.raises(BadArchive, match=f"another size than the rest: {made[3].name}"):
        fetch(tmp_path / "data", 30, tmp_path / "raw")
    parts(tmp_path / "raw", tar(members(30)))
    assert len(frames(fetch(tmp_path / "data", 30, tmp_path / "raw"))) == 30


def test_harmful_members_are_refused_by_name(tmp_path: Path) -> None:
    evil = [("../../1/00001.jpg", b"x"), ("20bn-jester-v1/._1/00001.jpg", b"x"), ("20bn-jester-v1/1/0.jpg", b"")]
    parts(tmp_path / "raw", tar([*evil, *members(2)], extra=[link("20bn-jester-v1/1/00013.jpg", "/etc/passwd")]))
    assert frames(fetch(tmp_path / "data", 2, tmp_path / "raw")) == {"1": 12, "2": 12}
    with Journal.read(tmp_path / "data/jester" / JOURNAL) as journal:
        refused = journal.outcomes("archive:archive:refused")
    assert set(refused) == {"../../1/00001.jpg", "20bn-jester-v1/1/00013.jpg"}
