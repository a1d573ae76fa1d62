"""golf demo, with a smaller model and corpus: every phase, tables, pictures, and advice that can be followed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from golf.checkpoint import find_checkpoint
from golf.files import read_json, write_json
from tests.pico import pico_dataset
from tests.session_tools import Said, golf

SMALL = {
    "model.vocab_size": 61,
    "model.model_dim": 32,
    "model.rope.dims": 4,
    "data.batch_tokens": 256,
    "data.seq_len": 16,
    "eval.seq_len": 16,
    "eval.batch_tokens": 64,
    "schedule.iterations": 8,
    "quant.calibration_batches": 1,
    "optim.momentum_warmup_steps": 2,
    "run.log_every": 1,
}


def make_corpus(out: Path, *, force: bool) -> None:
    pico_dataset(out)
    write_json(out / "manifest.json", {"not": "ours"})


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, *words: str) -> Said:
    monkeypatch.chdir(here)
    monkeypatch.setattr("golf.data.demo.make_demo_corpus", make_corpus)
    overrides = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    said = golf(capsys, "demo", *overrides, *words)
    assert said.code == 0, said.err
    return said


def test_it_ends_with_a_table_and_advice_that_names_what_there_is(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = demo(capsys, monkeypatch, here)
    assert "corpus: the documentation inside this Python" in said.err
    run = here / "checkpoints" / "demo-1"
    final = read_json(run / "final.json")
    assert f"{final['artifact']['total_bytes']:,} of 16,000,000 bytes" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:5]] == [
        "control",
        "attn_clip_sigmas=10.28",
        "matrix_bits=5",
    ]
    assert "golf train --resume demo-1@pre_loop --force" in said.out
    assert find_checkpoint("demo-1@pre_loop", root=here / "checkpoints").exists()
    for line in ("golf inspect demo-1", "golf recipe show demo"):
        assert line in said.out
        assert golf(capsys, *line.split()[1:]).code == 0
    tries = next(line for line in said.out.splitlines() if "golf requant" in line).split()[1:]
    assert golf(capsys, *tries).code == 0


def test_it_stores_the_table_in_every_form_and_the_pictures(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    report = demo(capsys, monkeypatch, here, "--name", "second", "--json").json
    run = here / "checkpoints" / "second"
    rows: list[dict[str, Any]] = json.loads((run / "results" / "requant.json").read_text())
    assert report["requant"] == rows
    assert rows[0]["val_bpb"] == report["quantized"]["val_bpb"] == read_json(run / "final.json")["quantized"]["val_bpb"]
    assert pd.read_csv(run / "results" / "requant.csv")["val_bpb"].tolist() == [row["val_bpb"] for row in rows]
    assert len((run / "results" / "requant.md").read_text().splitlines()) == 2 + len(rows)
    for name in ("loss.png", "results.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
