"""golf bench as a command: reports on stdout and in a file, exit codes, and what it starts."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from golf import launch as golf_launch
from golf.bench import suite
from golf.bench.ceilings import Ceilings
from golf.bench.findings import Findings
from golf.bench.measurement import Figure, Measurement
from golf.bench.profile import Kernel
from golf.bench.report import read_report, write_report
from golf.bench.saving import time_saving
from tests.bench.reports import report_of
from tests.pico import pico_dataset
from tests.session_tools import Place, golf

FAST = ("--set", "eval.batch_tokens=16", "--set", "model.loop=false", "--set", "schedule.loop_at=false")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings are tested on their own."""
    found = Ceilings(1e9, 1e9, (Measurement.of("ceiling/copy", [1.0]),))
    monkeypatch.setattr(suite, "measure_ceilings", lambda *rest, **settings: found)


def test_kernels_are_reported_with_their_sizes(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(
        capsys, "bench", "kernels", finished.toml, "--tokens", "423", "--seconds", "0.001", "--only", "norm", "--json"
    )
    assert said.code == 0
    assert [one["name"] for one in said.json["measurements"]] == [
        "ceiling/copy",
        "norm/plain/forward",
        "norm/plain/forward + backward",
    ]
    assert said.json["measurements"][1]["bytes_moved"] == 2 * 423 * 32 * 4
    settings = said.json["settings"]
    assert (settings["recipe"], settings["tokens"], settings["gpus"]) == ("pico", 423, 1)
    assert 'not timed: attention "fa4" cannot be used' in said.err


def test_without_a_gpu_a_kernel_has_few_tokens(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "kernels", finished.toml, "--seconds", "0.001", "--only", "norm", "--json")
    assert golf(capsys, *words).json["settings"]["tokens"] == 32  # an eighth of a step's 256


def test_an_operation_that_there_is_not_is_refused(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "bench", "kernels", finished.toml, "--only", "norms")
    assert said.code == 2
    assert "no operation is called 'norms'; there are: attention, project," in said.err


@pytest.mark.parametrize("tokens", [10**12, 10**17, 10**30])
def test_more_tokens_than_memory_can_hold_are_refused_before_any_work(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(suite, "measure_ceilings", lambda *rest, **settings: pytest.fail("it ran"))
    said = golf(capsys, "bench", "kernels", finished.toml, "--tokens", str(tokens))
    assert said.code == 5
    assert said.err.startswith(f"Error: {tokens:,} tokens take ")
    assert said.err.endswith(" MiB of memory; give fewer with --tokens\n")


def test_tokens_whose_logits_fill_the_memory_are_the_most(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = finished.recipe()
    most = 100 * recipe.model.vocab_size * 4  # float32
    monkeypatch.setattr(suite, "memory_bytes", lambda device: most)
    words = ("bench", "kernels", finished.toml, "--seconds", "0.001", "--only", "norm", "--tokens")
    assert [golf(capsys, *words, tokens).code for tokens in ("100", "101")] == [0, 5]


@pytest.mark.parametrize("seconds", ["nan", "inf"])
@pytest.mark.parametrize("name", ["kernels", "all"])
def test_seconds_that_never_pass_are_refused(
    finished: Place, capsys: pytest.CaptureFixture[str], name: str, seconds: str
) -> None:
    said = golf(capsys, "bench", name, finished.toml, "--seconds", seconds)
    assert said.code == 2
    assert f"Invalid value for '--seconds': {seconds} is no finite number." in said.err


def test_steps_are_reported_on_the_terminal_and_in_the_file(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "step", finished.toml, *FAST, "--steps", "2", "--out", tmp_path / "r.json")
    said = golf(capsys, *words)
    assert said.code == 0
    report = read_report(tmp_path / "r.json")
    assert [one.count for one in report.measurements if one.name == "step/loop off"] == [2]
    assert said.out.startswith(f"golf bench step, {report.time}, on ")
    assert "step/loop off/optimizer" in said.out


def test_a_preflight_says_how_many_steps_there_will_be(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "bench", "preflight", finished.toml, "--steps", "4", "--json")
    assert said.code == 0
    assert [(one["name"], one["count"]) for one in said.json["measurements"]] == [
        ("preflight/loop off", 2),
        ("preflight/loop on", 2),
    ]
    figures = {figure["name"]: figure["value"] for figure in said.json["figures"]}
    assert figures["preflight/steps of a run"] == 20
    assert figures["preflight/tokens of a run"] == 20 * 256


def test_a_result_is_replaced_by_force_alone(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text("mine")
    words = ("bench", "eval", finished.toml, *FAST, "--out", tmp_path / "r.json")
    said = golf(capsys, *words)
    assert said.code == 2
    assert "r.json exists; name another file or give --force" in said.err
    assert (tmp_path / "r.json").read_text() == "mine"
    assert golf(capsys, *words, "--force").code == 0
    assert [one.name for one in read_report(tmp_path / "r.json").measurements] == ["eval/cold", "eval/warm"]


def test_data_of_ones_own_are_used_if_named(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "bench", "eval", finished.toml, "--data", finished.data, "--json")
    assert [one["value"] for one in said.json["figures"] if one["name"] == "eval/tokens"] == [300]


def test_a_failure_is_told_with_exit_code_1_after_the_report(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "time_steps", lambda *rest, **settings: Findings(failures=["two graphs compiled"]))
    said = golf(capsys, "bench", "step", finished.toml, *FAST, "--json")
    assert said.code == 1
    assert said.json["failures"] == ["two graphs compiled"]
    assert said.err == "failed: two graphs compiled\n"


def test_a_profile_is_written_and_its_groups_reported(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "time_steps", lambda *rest, **settings: Findings())
    kernels = [Kernel("nvjet_a", 0.003, 5), Kernel("odd", 0.001, 1)]
    monkeypatch.setattr(suite, "profile_steps", lambda *rest, **settings: kernels)
    said = golf(capsys, "bench", "step", finished.toml, "--profile", tmp_path / "k.csv", "--json")
    table = pd.read_csv(tmp_path / "k.csv")
    assert table["name"].tolist() == ["loop off/nvjet_a", "loop off/odd", "loop on/nvjet_a", "loop on/odd"]
    values = {one["name"]: one["value"] for one in said.json["figures"]}
    assert (values["profile/loop on/GEMMs"], values["profile/loop off/rest"]) == (3.0, 1.0)


def test_a_profile_of_an_unknown_form_is_refused_before_anything_runs(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "bench_steps", lambda *rest, **settings: pytest.fail("it ran"))
    said = golf(capsys, "bench", "step", finished.toml, "--profile", "k.txt")
    assert said.code == 2
    assert "no kind of table ends in '.txt'" in said.err


def test_a_profile_and_a_result_of_one_name_are_refused_before_anything_runs(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "bench_steps", lambda *rest, **settings: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    said = golf(capsys, "bench", "step", finished.toml, "--profile", "a.json", "--out", tmp_path / "a.json", "--force")
    assert said.code == 2
    assert "--profile and --out are both a.json; name two files" in said.err
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_written_below_the_root_and_removed(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watched(state: Any, world: Any, log: Any, folder: Path, *, step_seconds: dict[bool, float]) -> Findings:
        found = time_saving(state, world, log, folder, step_seconds=step_seconds)
        seen.update(folder=folder, files=sorted(path.suffix for path in folder.iterdir()), seconds=step_seconds)
        return found

    monkeypatch.setattr(suite, "time_saving", watched)
    root = tmp_path / "new" / "root"
    said = golf(capsys, "bench", "checkpoint", finished.toml, "--steps", "2", "--root", root, "--json")
    assert said.code == 0
    times = {one["name"]: one["seconds"] for one in said.json["measurements"]}
    assert seen["seconds"] == {False: times["step/loop off"], True: times["step/loop on"]}
    assert seen["folder"].parent == root
    assert seen["files"].count(".safetensors") == 3
    assert list(root.iterdir()) == []


def test_a_root_that_is_a_file_is_refused_before_anything_is_timed(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "time_steps", None)
    (tmp_path / "file").touch()
    said = golf(capsys, "bench", "checkpoint", finished.toml, *FAST, "--root", tmp_path / "file")
    assert said.code == 4
    assert "file: no folder can be made here" in said.err


def test_a_start_is_timed_with_the_words_of_the_command(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def starts(words: list[str]) -> Findings:
        assert Path(words[words.index("--data") + 1], "manifest.json").exists()
        seen.append(words)
        return Findings([Measurement.of("start/cold", [3.0])])

    monkeypatch.setattr(suite, "time_starts", starts)
    said = golf(capsys, "bench", "start", finished.toml, "--set", "run.seed=7", "--gpus", "4", "--json")
    assert said.code == 0
    assert said.json["settings"]["gpus"] == 4
    (words,) = seen
    assert words[:4] == [str(finished.toml), "--set", "run.seed=7", "--data"]
    assert words[5:] == ["--gpus", "4"]


def test_both_layouts_are_compared(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "bench", "layout", finished.toml, "--seconds", "0.01", "--json")
    assert said.code == 0
    assert [one["name"].split("/")[1] for one in said.json["measurements"]] == ["layers", "layers", "banks", "banks"]


def test_a_first_step_gives_its_stamps(finished: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "first-step", finished.toml, "--data", finished.data)
    assert list(golf(capsys, *words, "--json").json) == ["import", "build", "prime", "first step"]
    assert [line.split()[0] for line in golf(capsys, *words).out.splitlines()] == ["import", "build", "prime", "first"]


def test_all_goes_on_where_one_breaks(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*rest: Any, **settings: Any) -> Findings:
        raise RuntimeError("no such kernel")

    def found(name: str, value: float) -> Any:
        return lambda *rest, **settings: Findings([Measurement.of(name, [value])], [Figure(name, value, "")])

    monkeypatch.setattr(suite, "time_starts", found("start/cold", 1.0))
    monkeypatch.setattr(suite, "time_kernels", breaks)
    monkeypatch.setattr(suite, "time_layouts", found("layout/layers/weights", 5.0))
    monkeypatch.setattr(suite, "time_steps", found("step/loop off", 2.0))
    monkeypatch.setattr(suite, "time_saving", found("checkpoint/gather", 3.0))
    monkeypatch.setattr(suite, "time_evaluation", found("eval/cold", 4.0))
    said = golf(capsys, "bench", "all", finished.toml, "--root", tmp_path, "--json")
    assert said.code == 1
    names = ["start/cold", "ceiling/copy", "layout/layers/weights", "step/loop off", "checkpoint/gather", "eval/cold"]
    assert [one["name"] for one in said.json["measurements"]] == names
    assert said.json["failures"] == ["RuntimeError: no such kernel"]
    assert "Traceback" in said.err


@pytest.mark.parametrize("name", ["step", "preflight", "eval", "checkpoint", "first-step"])
def test_several_processes_are_launched_with_the_same_words(
    finished: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    launched: list[tuple[list[str], int]] = []
    words = ["bench", name, str(finished.toml), "--data", str(finished.data), "--gpus", "2"]
    monkeypatch.setattr(sys, "argv", ["golf", *words])
    monkeypatch.setattr(golf_launch, "launch", lambda arguments, processes: launched.append((arguments, processes)))
    said = golf(capsys, *words)
    assert (said.code, said.out) == (0, "")
    assert launched == [(words, 2)]


def test_a_bad_recipe_is_refused_before_any_process_starts(capsys: pytest.CaptureFixture[str]) -> None:
    said = golf(capsys, "bench", "step", "pr1788", "--gpus", "2")
    assert said.code == 2
    assert "no recipe 'pr1788'" in said.err


@pytest.mark.parametrize(("limit", "code"), [(None, 0), ("60", 0), ("40", 1)])
def test_a_comparison_fails_above_a_limit_if_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str | None, code: int
) -> None:
    for name, seconds in (("a", 1.0), ("b", 1.5)):
        write_report(report_of({"step": [seconds]}), tmp_path / f"{name}.json")
    words = ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    said = golf(capsys, *words, *(["--fail-above", limit] if limit else []))
    assert said.code == code
    assert "slower" in said.out
    assert said.err == ("failed: step takes 50.0 % more time\n" if code else "")


def test_a_limit_is_not_kept_by_measuring_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_report(report_of({f"step {name}": [1.0]}), tmp_path / f"{name}.json")
    words = ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--fail-above"]
    said = golf(capsys, *words, "3")
    assert (said.code, said.err) == (1, "failed: nothing was timed in both\n")
    assert golf(capsys, *words, "nan").code == 2


def test_a_comparison_can_be_had_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(report_of({"step": [1.0]}), tmp_path / "a.json")
    said = golf(capsys, "bench", "compare", tmp_path / "a.json", tmp_path / "a.json", "--json")
    assert json.loads(said.out)["changes"][0]["verdict"] == "same"


def test_made_up_data_is_gone_afterwards(finished: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bench = suite.Bench(finished.recipe(), None, None, None)  # type: ignore[arg-type]  # neither is looked at
    with bench.dataset() as dataset:
        assert dataset.folder.exists()
    assert not dataset.folder.exists()
    other = pico_dataset(tmp_path / "own")
    with bench._replace(data=other.folder).dataset() as dataset:
        assert dataset.folder == other.folder
    assert other.folder.exists()
