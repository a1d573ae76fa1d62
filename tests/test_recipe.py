"""Reading recipes: strict keys and types, one parent, overrides."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from golf.errors import UsageError
from golf.recipe import load_recipe, override_recipe, recipe_from_dict, recipe_names
from tests.pico import pico_recipe, pico_values


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(values))
    return path


def child(path: Path, parent: str, **values: Any) -> Path:
    return write_recipe(path, {"extends": parent, **values})


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The pico recipe as a file."""
    return write_recipe(tmp_path / "parent.toml", pico_values())


def test_an_unknown_key_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(UsageError) as refused:
        pico_recipe("model.nun_layers=3")
    assert "unknown key model.nun_layers; did you mean num_layers?" in str(refused.value)
    assert all(key in str(refused.value) for key in ("vocab_size", "rope", "value_embedding"))


@pytest.mark.parametrize("key", ["modle.num_layers", "model.rope.dmis", "quantum"])
def test_unknown_keys_are_refused_at_every_depth(key: str) -> None:
    with pytest.raises(UsageError, match=f"unknown key {key.rsplit('.num', 1)[0]}"):
        pico_recipe(f"{key}=3")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layers=4.0", "model.num_layers must be of type int"),
        ("model.num_layers=true", "model.num_layers must be of type int"),
        ("model.ln_scale=1", "model.ln_scale must be of type bool"),
        ("optim.matrix_lr='fast'", "optim.matrix_lr must be of type float"),
        ("optim.matrix_lr=true", "optim.matrix_lr must be of type float"),
        ("optim.matrix_lr=nan", "optim.matrix_lr must be a finite number"),
        ("schedule.max_seconds=inf", "schedule.max_seconds must be a finite number"),
        ("data.dataset=3", "data.dataset must be of type str"),
        ("run.checkpoints=step_3", "run.checkpoints must be a list"),
        ("run.checkpoints=[3]", "run.checkpoints must be of type str"),
        ("model.value_embedding.layers=[1.5]", "model.value_embedding.layers must be of type int"),
        ("run.dtype=float16", "run.dtype must be one of 'float32', 'bfloat16'"),
        ("model=3", "model is a table; set one of its keys, for example model.vocab_size"),
        ("model.bigram=true", "model.bigram is a table; set one of its keys, for example model.bigram.buckets"),
        ("model=false", "model is a table"),
    ],
)
def test_a_wrong_type_says_what_is_allowed(override: str, expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        pico_recipe(override)
    assert expected in str(refused.value)


def test_a_missing_key_is_named_with_its_table() -> None:
    values = pico_values()
    del values["model"]["rope"]["dims"]
    with pytest.raises(UsageError, match=r"missing key model\.rope\.dims"):
        recipe_from_dict(values)


def test_a_missing_table_is_named() -> None:
    values = pico_values()
    del values["quant"]
    with pytest.raises(UsageError, match="missing key quant"):
        recipe_from_dict(values)


def test_whole_numbers_are_fine_where_a_float_is_wanted() -> None:
    lr = pico_recipe("optim.matrix_lr=1").optim.matrix_lr
    assert (type(lr), lr) == (float, 1.0)


@pytest.mark.parametrize(
    "override", ["model.num_layers", "=3", " =3", ".num_layers=3", "model.=3", "model..num_layers=3", "model. .x=3"]
)
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match=r"write table\.key=value"):
        pico_recipe(override)


def test_spaces_around_the_parts_of_a_key_do_not_count() -> None:
    assert pico_recipe("run . seed = 5").run.seed == 5


@pytest.mark.parametrize("override", ["extends=demo", " extends = 'demo'"])
def test_an_override_of_the_parent_is_sent_to_a_file(override: str) -> None:
    with pytest.raises(UsageError, match=r"^--set .*: extends belongs in a recipe file"):
        pico_recipe(override)


@pytest.mark.parametrize("text", ["swa", "'swa'", '"swa"', " swa "])
def test_a_bare_word_is_a_string(text: str) -> None:
    assert pico_recipe(f"average.use={text}").average.use == "swa"


def test_later_overrides_win() -> None:
    assert pico_recipe("run.seed=5", "run.seed=6").run.seed == 6


def test_an_override_leaves_the_recipe_it_was_given_alone() -> None:
    recipe = pico_recipe()
    override_recipe(recipe, ["model.rope.dims=2"])
    assert recipe == pico_recipe()


@pytest.mark.parametrize("part", ["skips", "bigram", "smear", "value_embedding"])
def test_false_switches_a_part_off(part: str) -> None:
    assert getattr(pico_recipe(f"model.{part}=false").model, part) is None


def test_a_child_changes_its_keys_and_keeps_the_others(parent: Path) -> None:
    path = child(parent.with_name("child.toml"), "parent.toml", model={"rope": {"dims": 2}}, run={"seed": 7})
    assert load_recipe(path) == pico_recipe("model.rope.dims=2", "run.seed=7")


def test_a_grandchild_wins_over_its_parent(parent: Path) -> None:
    child(parent.with_name("child.toml"), "parent.toml", run={"seed": 7, "log_every": 3})
    path = child(parent.with_name("grandchild.toml"), "child.toml", run={"seed": 8})
    assert load_recipe(path) == pico_recipe("run.seed=8", "run.log_every=3")


def test_a_child_may_switch_off_its_parents_part(parent: Path) -> None:
    path = child(parent.with_name("child.toml"), "parent.toml", model={"bigram": False})
    assert load_recipe(path).model.bigram is None


def test_a_file_may_extend_a_shipped_recipe(tmp_path: Path) -> None:
    path = child(tmp_path / "mine.toml", "demo", run={"seed": 9})
    assert load_recipe(path) == load_recipe("demo", ["run.seed=9"])


def test_overrides_win_over_the_file(parent: Path) -> None:
    path = child(parent.with_name("child.toml"), "parent.toml", run={"seed": 7})
    assert load_recipe(path, ["run.seed=11"]).run.seed == 11


@pytest.mark.parametrize("way_back", ["a.toml", "./a.toml", "../here/a.toml"])
def test_a_cycle_of_parents_is_refused(tmp_path: Path, way_back: str) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    child(folder / "a.toml", "b.toml")
    child(folder / "b.toml", way_back)
    with pytest.raises(UsageError, match=r"extends itself: .*a\.toml -> .*b\.toml -> .*a\.toml"):
        load_recipe(folder / "a.toml")


def test_a_parent_must_be_named_by_a_string(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.toml", {"extends": 3})
    with pytest.raises(UsageError, match=r"mine\.toml: extends must name one recipe"):
        load_recipe(path)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe file .*absent\.toml"):
        load_recipe(child(tmp_path / "mine.toml", "absent.toml"))


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe\x00"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml: not valid TOML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "missing key name"),
        ({"nmae": "x"}, "unknown key nmae"),
        ({"extends": "demo", "name": 3}, "name must be of"),
    ],
)
def test_an_error_of_a_file_starts_with_its_path(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    path = write_recipe(tmp_path / "mine.toml", values)
    with pytest.raises(UsageError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{path}: {reason}")


def test_an_error_of_a_file_under_overrides_says_so(parent: Path) -> None:
    with pytest.raises(UsageError) as refused:
        load_recipe(parent, ["run.sed=3"])
    assert str(refused.value).startswith(f"{parent} with --set: unknown key run.sed")


def test_an_error_of_a_shipped_recipe_names_no_file() -> None:
    with pytest.raises(UsageError, match=r"^unknown key run\.sed"):
        load_recipe("demo", ["run.sed=3"])


@pytest.mark.parametrize("absent", ["dmeo", "absent.toml"])
def test_a_parent_that_does_not_exist_is_told_of_its_child(tmp_path: Path, absent: str) -> None:
    path = child(tmp_path / "mine.toml", absent)
    with pytest.raises(UsageError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{path.resolve()}: extends: no recipe ")


def test_an_unknown_name_suggests_the_nearest_shipped_recipe() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'dmeo'; did you mean demo\?"):
        load_recipe("dmeo")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_the_way_through_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert load_recipe(write_recipe(tmp_path / "dump.toml", recipe.to_dict())) == recipe


def test_a_recipe_with_every_part_on_survives_the_way_through_toml(parent: Path) -> None:
    assert load_recipe(parent) == pico_recipe()
