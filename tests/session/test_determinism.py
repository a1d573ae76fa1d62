"""Equal recipes on equal data give equal runs, in fresh processes and in this one."""

import os
import subprocess
import sys
from pathlib import Path

from golf.files import read_json
from tests.session_tools import Place, copy_place, digests


def test_a_fresh_process_makes_the_same_artifact_and_checkpoints(place: Place, finished: Place) -> None:
    """Also with another hash seed, on more threads than the recipe takes, and from another folder."""
    subprocess.run(
        [sys.executable, "-m", "golf", "train", "pico.toml", "--name", "fresh"],
        cwd=place.folder,
        env=os.environ | {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert digests(place.run("fresh")) == digests(finished.run("done"))


def test_another_seed_makes_another_artifact_of_the_same_recipe_otherwise(place: Place, finished: Place) -> None:
    place.start("other", "run.seed=2")
    mine, theirs = digests(place.run("other")), digests(finished.run("done"))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] == theirs[name]] == []


def test_the_name_of_a_run_and_its_folder_change_no_digest(finished: Place, tmp_path: Path) -> None:
    elsewhere = copy_place(finished, tmp_path / "elsewhere")
    elsewhere.start("b", 'name="renamed"', 'description="another"')
    assert digests(elsewhere.run("b")) == digests(finished.run("done"))
    assert read_json(elsewhere.run("b") / "final.json")["recipe"] == "renamed"
