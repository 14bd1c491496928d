"""python -m demo: which commands run, in which order, and what is said at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from datakit.errors import UsageError
from datakit.manifest import Clip
from demo import __main__ as demo


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with modules that end in different ways and note that they ran."""
    for name, code in (("fine", 0), ("partly", 5), ("broken", 3)):
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'a').write('{name} ')\nraise SystemExit({code})\n")
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *names: str, some_may_fail: bool = False) -> int:
    found = [demo.Stage(name=name, arguments=(name,), some_may_fail=some_may_fail) for name in names]
    monkeypatch.setattr(demo, "stages", lambda *args, **kinds: found)
    return demo.main([])


@pytest.mark.parametrize(("name", "code"), [("broken", 3), ("partly", 5), ("killed", 1)])
def test_a_command_that_fails_ends_the_demo_with_its_exit_code(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    assert run(monkeypatch, "fine", name, "fine") == code
    said = capfd.readouterr()
    assert f"stopped: '{name}'" in said.err
    assert f"python -m {name}" in said.err
    assert (commands / "ran").read_text().split().count("fine") == 1


def test_broken_clips_are_no_reason_to_stop(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"manifest\.parquet is not there"):  # it got as far as the closing table
        run(monkeypatch, "partly", "fine", some_may_fail=True)
    assert (commands / "ran").read_text().split() == ["partly", "fine"]


def test_each_command_is_printed_before_it_runs(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "broken")
    assert capfd.readouterr().out.splitlines()[1] == "$ python -m broken"


def test_what_is_read_was_written_by_an_earlier_command() -> None:
    """Networks, scores and folders: every path below OUT that goes into a command came out of one before it."""
    out = Path("out")
    made: set[str] = set()
    for stage in demo.stages(Path("raw"), Path("data"), out, quick=False):
        arguments = list(stage.arguments)
        written = ""
        if arguments[0] != "demo.generate" and "--out" in arguments:
            at = arguments.index("--out")
            written = arguments[at + 1]
            del arguments[at : at + 2]
        for argument in arguments:
            if argument.startswith("out/"):
                assert "/".join(argument.split("/")[:2]) in made, stage.typed
        made.add(written)
    assert str(out / "report.html") in made


def test_the_closing_table(tmp_path: Path) -> None:
    for number, folder in enumerate(["rgb-efficient", "rgb-accurate", "diff-efficient", "diff-accurate", "fused"]):
        (tmp_path / folder).mkdir()
        numbers = {"top1": 0.5 + number / 10, "top1_se": 0.0612, "mean_class": 0.25, "mean_class_se": 0.05}
        text = json.dumps({**numbers, "n": 56, "requested": 59})
        (tmp_path / folder / "metrics.json").write_text(text)
    assert demo.table(tmp_path) == [
        "stream     mode       top-1       mean class  scored",
        "rgb        efficient  50.0 ± 6.1  25.0 ± 5.0  56 of 59",
        "rgb        accurate   60.0 ± 6.1  25.0 ± 5.0  56 of 59",
        "diff       efficient  70.0 ± 6.1  25.0 ± 5.0  56 of 59",
        "diff       accurate   80.0 ± 6.1  25.0 ± 5.0  56 of 59",
        "fused 1:1  accurate   90.0 ± 6.1  25.0 ± 5.0  56 of 59",
    ]


def test_what_is_not_there_is_counted_and_named_with_its_reason() -> None:
    def clip(name: str, status: str, reason: str | None, path: Path | None = None) -> Clip:
        return Clip(id=name, label="grow", label_index=0, split="val", path=path, status=status, reason=reason)

    clips = [
        clip("a", "ok", None, Path("a.mp4")),
        clip("b", "unreadable", "no video stream"),
        clip("c", "missing", "c.mp4 is not there"),
        clip("d", "unreadable", "Invalid data; more; and more"),
    ]
    assert demo.absent(clips) == [
        "not there: 1 missing",
        "not there: 2 unreadable",
        "  b (val) unreadable: no video stream",
        "  c (val) missing: c.mp4 is not there",
        "  d (val) unreadable: Invalid data",
    ]


def test_clips_with_fewer_frames_than_a_network_looks_at_are_named() -> None:
    clips = [
        Clip(id=name, label="grow", label_index=0, split="val", path=Path(name), frames=frames)
        for name, frames in (("a", 3), ("b", 8), ("c", 40), ("d", None))
    ]
    assert demo.short(clips) == ["very short: a (val), frames: 3"]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, contextlib\nfrom demo import __main__ as demo\n"
    code += "with contextlib.suppress(SystemExit): demo.main(['-h'])\n"
    code += "print(sorted({'torch', 'pandas', 'numpy', 'sklearn', 'av', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_quick_demo_runs_through_and_a_second_time_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "demo",
        "--quick",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
    ]
    closing = []
    for _ in range(2):
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        closing.append(text[text.index("\nstream ") : text.index(" in all;")].rpartition("\n")[0])
    assert closing[0] == closing[1]
    for said in ("fused 1:1", "unreadable: no video stream", "missing: grow_908.mp4 is not there"):
        assert said in closing[0]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
