"""The examples run as they stand in examples/README.md, on what they make up and on folders that are given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import one_point_off, two_streams, which_preprocessing

CHECKOUT = Path(__file__).resolve().parents[2]


def test_one_point_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_point_off.main([]) == 0
    text = capsys.readouterr().out
    assert "are not numbers of the same thing" in text
    assert "type --common" in text
    parts = dict(re.findall(r"^(missing clips|list|views|crop|crop side) +([+-]\d+\.\d\d) ", text, re.M))
    total = float(re.findall(r"^difference  ([+-]\d+\.\d\d) points$", text, re.M)[0])
    assert sum(map(float, parts.values())) == pytest.approx(total, abs=0.04)
    assert float(parts["missing clips"]) > 0.5  # 15 of 1200 clips count as wrong
    assert float(parts["crop side"]) == 0  # the views are cut alike here: nothing is left for it


def test_which_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert which_preprocessing.main([]) == 0
    text = capsys.readouterr().out
    assert " is better than 340x256 by " in text
    assert "No difference beyond chance between 256p and 320p" in text
    worst = float(re.findall(r"keeping (?:256p|320p) alone costs at most (\d+\.\d\d) points", text)[0])
    assert 0 < worst < 3
    assert "340x256" in (tmp_path / "preprocessing.html").read_text()
    assert (tmp_path / "preprocessing.md").read_text().count("\n") == 5


def test_two_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    folders = two_streams.generated(tmp_path)
    assert two_streams.main([str(folder) for folder in folders]) == 0
    text = capsys.readouterr().out
    assert "drawn: 65 source videos" in text
    assert re.search(r"fused 1:1 is better than \w+ by [\d.]+ points of mean class accuracy", text)
    assert "both draw the 65 source videos" in (tmp_path / "two-streams.html").read_text()


def test_the_readme_names_them_as_they_are_typed(tmp_path: Path) -> None:
    typed = re.findall(r"python -m (examples\.\w+)  +#", (CHECKOUT / "examples" / "README.md").read_text())
    assert len(typed) == 3
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-m", typed[0]], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
