"""golf requant: the control is the run's own artifact, every setting is one row, nothing is done twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from golf.artifact.container import unpack_bytes
from golf.distributed import World
from golf.errors import GolfError
from golf.files import read_json
from golf.log import Log
from golf.quant.scheme import QuantizedTensor
from golf.quant_config import QuantConfig
from golf.recipe import load_recipe
from golf.session import open_run
from golf.sweep.run import default_tries, parse_settings, requant
from golf.sweep.table import COLUMNS
from golf.workbench import Workbench
from tests.ranks import run_ranks
from tests.session_tools import Place, golf

Run = Callable[..., list[dict[str, Any]]]
SHOWN = [key for key in COLUMNS if key != "changed"]  # a row is named by what is changed


@pytest.fixture
def rows(finished: Place, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `golf requant RUN --try …` and return its rows."""

    def requant(run: str, *tries: str) -> list[dict[str, Any]]:
        said = golf(capsys, "requant", run, "--root", finished.root, "--json", *(f"--try={text}" for text in tries))
        assert said.code == 0, said.err
        found: list[dict[str, Any]] = said.json
        return found

    return requant


def test_the_control_comes_first_and_is_exactly_the_runs_own_artifact(finished: Place, rows: Run) -> None:
    control, other = rows("done", "matrix_bits=5")
    final = read_json(finished.run("done") / "final.json")
    assert (control["name"], control["delta_bpb"]) == ("control", 0.0)
    assert control["val_bpb"] == final["quantized"]["val_bpb"]
    assert control["gap_bpb"] == final["quantization_gap_bpb"]
    for key in ("model_bytes", "code_bytes", "total_bytes", "headroom_bytes", "fits"):
        assert control[key] == final["artifact"][key]
    assert other["delta_bpb"] == other["val_bpb"] - control["val_bpb"] != 0.0


def test_the_control_is_the_same_whatever_is_tried_before_or_after(rows: Run) -> None:
    alone, many = rows("done", "matrix_bits=5"), rows("done", "calibration_batches=1", "embed_bits=4", "matrix_bits=5")
    timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in (*alone, *many)]
    assert timeless[0] == timeless[2]
    assert timeless[1] == timeless[5]


def test_fewer_bits_cost_bytes_less_and_score_worse(rows: Run) -> None:
    control, three, two = rows("done", "matrix_bits=3,embed_bits=3", "matrix_bits=2,embed_bits=2,damping=0.02")
    assert two["model_bytes"] < three["model_bytes"] < control["model_bytes"]
    assert abs(two["gap_bpb"]) > abs(control["gap_bpb"])


def test_hessians_are_collected_once_for_equal_calibrations(rows: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated: list[tuple[int, int]] = []
    collect = Workbench.hessians

    def counted(bench: Workbench, log: Any, config: QuantConfig) -> Any:
        calibrated.append((config.calibration_batches, config.calibration_windows))
        return collect(bench, log, config)

    monkeypatch.setattr(Workbench, "hessians", counted)
    fewer = ("calibration_batches=2", "calibration_batches=2,matrix_bits=4")
    assert len(rows("done", "matrix_bits=5", *fewer, "embed_bits=7")) == 5
    assert calibrated == [(3, 4), (2, 4)]


def test_another_calibration_is_of_the_original_weights(rows: Run) -> None:
    """The model holds quantized weights after each row; Hessians of these would be others."""
    after = rows("done", "matrix_bits=2", "calibration_batches=2")[2]
    first = rows("done", "calibration_batches=2")[1]
    assert after["val_bpb"] == first["val_bpb"]
    assert after["model_bytes"] == first["model_bytes"]


@pytest.mark.parametrize("boundary", ["pre_loop", "pre_qat"])
def test_a_boundary_is_quantized_in_the_graph_it_was_trained_in(
    finished: Place, capsys: pytest.CaptureFixture[str], rows: Run, boundary: str
) -> None:
    (control, _) = rows(f"done@{boundary}", "matrix_bits=5")
    unquantized = golf(capsys, "evaluate", f"done@{boundary}", "--root", finished.root, "--json").json
    assert control["val_bpb"] - control["gap_bpb"] == pytest.approx(unquantized["val_bpb"], rel=1e-12)


@pytest.mark.parametrize(
    ("tries", "sentence"),
    [
        (["matrix_bits=6"], "--try matrix_bits=6 gives the same settings as control; leave it out"),
        (
            ["matrix_bits=5", "quant.matrix_bits=5"],
            "--try quant.matrix_bits=5 gives the same settings as matrix_bits=5",
        ),
        (["matrix_bits=5,embed_bits=7", "embed_bits=7, matrix_bits=5"], "gives the same settings as matrix_bits=5"),
        ([""], "--try '' is empty; write key=value"),
        ([" , "], "--try ' , ' is empty"),
        (["matrx_bits=5"], "unknown key quant.matrx_bits; did you mean matrix_bits?"),
        (["matrix_bits"], "write table.key=value"),
        (["matrix_bits=five"], "quant.matrix_bits must be of type int"),
        (["matrix_bits=9"], "quant.matrix_bits must be between 2 and 8"),
    ],
)
def test_tries_that_make_no_sense_exit_2_before_anything_is_computed(
    finished: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tries: list[str],
    sentence: str,
) -> None:
    monkeypatch.delattr("golf.sweep.run.Workbench")
    said = golf(capsys, "requant", "done", "--root", finished.root, *(f"--try={text}" for text in tries))
    assert said.code == 2
    assert sentence in said.err


def test_a_shell_that_expands_quant_keys_may_write_them_in_full(finished: Place) -> None:
    recipe = finished.recipe()
    (_, setting) = parse_settings(recipe, ["quant.matrix_bits=5, quant.embed_bits=7"])
    assert (setting.config.matrix_bits, setting.config.embed_bits) == (5, 7)
    assert setting.name == "matrix_bits=5 embed_bits=7"


@pytest.mark.parametrize(
    ("changes", "tries"),
    [
        ([], ["attn_clip_sigmas=10.28,mlp_clip_sigmas=10.28", "matrix_bits=5"]),
        (["quant.mlp_clip_sigmas=11.5"], ["attn_clip_sigmas=10.28,mlp_clip_sigmas=9.2", "matrix_bits=5"]),
        (["quant.attn_clip_sigmas=0"], ["mlp_clip_sigmas=10.28", "matrix_bits=5"]),
        (["quant.attn_clip_sigmas=0", "quant.mlp_clip_sigmas=0"], ["matrix_bits=5"]),
        (["quant.matrix_bits=2"], ["attn_clip_sigmas=10.28,mlp_clip_sigmas=10.28"]),
        (["quant.matrix_bits=8", "quant.attn_clip_sigmas=0.000123456789"], None),
    ],
)
def test_without_a_try_the_suggested_settings_are_valid_and_different(
    changes: list[str], tries: list[str] | None
) -> None:
    recipe = load_recipe("demo", changes)
    suggested = default_tries(recipe)
    assert tries is None or suggested == tries
    assert len(parse_settings(recipe, suggested)) == 1 + len(suggested)


def test_without_a_try_the_table_has_the_control_and_the_suggestions(finished: Place, rows: Run) -> None:
    assert [row["name"] for row in rows("done")] == [
        "control",
        *(text.replace(",", " ") for text in default_tries(finished.recipe())),
    ]


def test_the_same_table_is_written_in_every_form(
    finished: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outs = [f"--out={tmp_path / name}" for name in ("t.csv", "t.json", "deep/t.md")]
    said = golf(capsys, "requant", "done", "--root", finished.root, "--try=matrix_bits=5", "--json", *outs)
    assert said.code == 0
    assert json.loads((tmp_path / "t.json").read_text()) == said.json
    table = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(table) == SHOWN
    assert table["val_bpb"].tolist() == [row["val_bpb"] for row in said.json]
    assert table["total_bytes"].tolist() == [row["total_bytes"] for row in said.json]
    lines = (tmp_path / "deep" / "t.md").read_text().splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == SHOWN
    assert f"{said.json[1]['val_bpb']:.6f}" in lines[3]


def test_the_terminal_gets_the_table_and_stderr_the_rest(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "requant", "done", "--root", finished.root, "--try=matrix_bits=5")
    lines = said.out.splitlines()
    assert lines[0].split() == SHOWN
    assert [line.split()[0] for line in lines[2:]] == ["control", "matrix_bits=5"]
    assert "matrix_bits=5: " in said.err


def test_a_table_of_no_known_kind_is_refused_with_the_known_ones(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr("golf.sweep.run.Workbench")  # before hours are spent
    said = golf(capsys, "requant", "done", "--root", finished.root, "--out", tmp_path / "table.xlsx")
    assert said.code == 2
    assert "use .csv, .json or .md" in said.err


def test_a_table_that_exists_is_kept_unless_it_is_replaced_by_force(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "old.json").write_text("mine")
    outs = [f"--out={tmp_path / name}" for name in ("new.csv", "old.json")]
    words = ("requant", "done", f"--root={finished.root}", "--try=matrix_bits=5", "--json", *outs)
    with monkeypatch.context() as unused:
        unused.delattr("golf.session.load_checkpoint")  # before anything is read
        refused = golf(capsys, *words)
    assert refused.code == 2
    assert "old.json exists; name another file or give --force" in refused.err
    assert (tmp_path / "old.json").read_text() == "mine"
    assert not (tmp_path / "new.csv").exists()
    replaced = golf(capsys, *words, "--force")
    assert replaced.code == 0
    assert json.loads((tmp_path / "old.json").read_text()) == replaced.json


def test_the_settings_reach_the_artifact(monkeypatch: pytest.MonkeyPatch, rows: Run) -> None:
    artifacts: list[bytes] = []
    quantize = Workbench.quantize

    def kept(bench: Workbench, *args: Any, **values: Any) -> Any:
        outcome = quantize(bench, *args, **values)
        artifacts.append(outcome.artifact)
        return outcome

    monkeypatch.setattr(Workbench, "quantize", kept)
    rows("done", "matrix_bits=4,embed_bits=3")
    tensors = unpack_bytes(artifacts[1]).tensors
    bits = {name: tensor.bits for name, tensor in tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert bits["tok_emb.weight"] == 3
    assert bits["blocks.0.mlp.fc.weight"] == bits["blocks.3.attn.c_q.weight"] == 4
    assert {bits[name] for name in bits if name.endswith(".table.weight")} == {8}


def test_a_setting_that_fails_keeps_its_reason_and_the_others_their_rows(
    finished: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("requant", "done", "--root", finished.root, "--try=prune_to_bytes=1", "--try=matrix_bits=5", "--json")
    said = golf(capsys, *words, "--out", tmp_path / "t.json")
    assert said.code == 2
    control, bad, good = said.json
    assert bad.keys() == {"name", "seconds", "reason"}
    assert "quant.prune_to_bytes is 1, but" in bad["reason"]
    assert good["delta_bpb"] == good["val_bpb"] - control["val_bpb"]
    assert json.loads((tmp_path / "t.json").read_text()) == said.json
    assert f"prune_to_bytes=1: failed: {bad['reason']}" in said.err


def test_the_table_so_far_is_written_after_every_row(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quantize, calls = Workbench.quantize, []

    def stopped_at_the_third(bench: Workbench, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return quantize(bench, *args)

    monkeypatch.setattr(Workbench, "quantize", stopped_at_the_third)
    words = ("requant", "done", "--root", finished.root, "--try=matrix_bits=5", "--try=matrix_bits=4")
    assert golf(capsys, *words, "--out", tmp_path / "t.json").code == 130
    assert [row["name"] for row in json.loads((tmp_path / "t.json").read_text())] == ["control", "matrix_bits=5"]


def test_a_comma_inside_brackets_parts_no_keys(finished: Place) -> None:
    recipe = finished.recipe()
    (_, setting) = parse_settings(recipe, ["lqer={rank=2,top_k=1},matrix_bits=5"])
    assert setting.config.lqer is not None
    assert (setting.config.lqer.rank, setting.config.lqer.top_k, setting.config.matrix_bits) == (2, 1, 5)
    assert setting.name == "lqer={rank=2,top_k=1} matrix_bits=5"


def fail(*args: object) -> None:
    raise GolfError("rank 0 cannot pack")


def requant_that_fails(world: World, root: Path) -> str:
    """Run in a child alone, so that what is replaced stays so."""
    Workbench.quantize = fail  # type: ignore[assignment,method-assign]
    run = open_run("done", root=root)
    with pytest.raises(GolfError) as told:
        requant(run, parse_settings(run.recipe, []), world, Log(rank=world.rank))
    return str(told.value)


def test_of_several_ranks_a_failure_ends_all_lest_one_wait_for_ever(finished: Place, tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, requant_that_fails, finished.root) == 2 * ["rank 0 cannot pack"]
