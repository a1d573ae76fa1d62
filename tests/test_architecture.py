"""The shape of the house: who may import whom, and the few things that only one file may do."""

import ast
import functools
import re
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from golf.artifact.budget import shipped_files

ROOT = Path(__file__).resolve().parents[1]

# A module may import its own level, without cycles, and any lower one. A package stands for all of its modules unless
# they are listed themselves.
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "golf",
        "golf.config",
        "golf.distributed",
        "golf.errors",
        "golf.files",
        "golf.log",
        "golf.model_config",
        "golf.part_config",
        "golf.peers",
        "golf.ranks",
        "golf.quant_config",
        "golf.recipe",
        "golf.roles",
        "golf.side_channel",
        "golf.tensorfile",
        "golf.training_config",
        "golf.ttt_config",
    ),
    (
        "golf.artifact",
        "golf.averaging",
        "golf.checkpoint",
        "golf.checkpoint_manifest",
        "golf.data",
        "golf.kernels",
        "golf.optim",
        "golf.pace",
        "golf.profiles",
        "golf.quant",
        "golf.quant.gptq",
        "golf.quant.lqer",
        "golf.quant.nearest",
        "golf.quant.primitives",
        "golf.quant.prune",
        "golf.quant.rotation",
        "golf.quant.scheme",
        "golf.quant.sdclip",
        "golf.quant.ternary",
        "golf.replicas",
        "golf.run_folder",
        "golf.schedule",
        "golf.sweep",
        "golf.sweep.gates",
        "golf.sweep.keys",
        "golf.sweep.plots",
        "golf.sweep.stats",
        "golf.sweep.table",
    ),
    ("golf.model",),
    (
        "golf.compilation",
        "golf.evaluate",
        "golf.posttrain",
        "golf.priming",
        "golf.quant.calibration",
        "golf.quant.pipeline",
        "golf.quant.qat",
        "golf.run_model",
        "golf.saver",
        "golf.train",
        "golf.train_state",
        "golf.gradient",
        "golf.recording",
        "golf.ttt",
        "golf.workbench",
    ),
    (
        "golf.bench",
        "golf.comparison",
        "golf.doctor",
        "golf.inspection",
        "golf.recipe_report",
        "golf.session",
        "golf.submission",
        "golf.sweep.executors",
        "golf.sweep.plan",
        "golf.sweep.run",
    ),
    ("golf.__main__", "golf.cli", "golf.launch", "golf.recipes", "golf.tools"),
)
ALONE = {"golf", "golf.quant", "golf.sweep"}  # packages whose modules are of several levels: each is listed itself


def files() -> dict[str, Path]:
    """Every module of the project by its name as installed."""
    folders = {"golf": ROOT / "golf", "golf.tools": ROOT / "tools", "golf.recipes": ROOT / "recipes"}
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


FILES = files()


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_bytes())


def imports(module: str) -> set[str]:
    """The project's modules that a module imports anywhere, also within functions and for types."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := module_of(name)) is not None and found != module}


def packages_of(module: str) -> set[str]:
    """The packages that a module imports anywhere, Python's own included."""
    nodes = list(ast.walk(tree(module)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def module_of(name: str) -> str | None:
    """The module that an imported name is or lies in; None outside of the project."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def level(module: str) -> int | None:
    name = module
    while name:
        for number, names in enumerate(LEVELS):
            if name in names and (name == module or name not in ALONE):
                return number
        name = name.rpartition(".")[0]
    return None


def places(is_wrong: Callable[[ast.AST], bool], *, but: Sequence[str] = ()) -> list[str]:
    """Where in the project something is done that should not be, except in the modules that may."""
    modules = [module for module in FILES if module not in but]
    found = [(module, node) for module in modules for node in ast.walk(tree(module)) if is_wrong(node)]
    return [f"{FILES[module].relative_to(ROOT)}: {ast.unparse(node)}" for module, node in found]


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_level(module: str) -> None:
    assert level(module) is not None, f"{module} is in no level of this test: give it one, and ARCHITECTURE.md too"


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_its_own_level_and_lower_ones(module: str) -> None:
    own = level(module)
    assert own is not None
    assert [name for name in sorted(imports(module)) if (level(name) or 0) > own] == []


def test_what_a_submission_leaves_out_is_used_by_nothing_that_it_ships() -> None:
    shipped = set(shipped_files())
    left_out = {module for module, path in FILES.items() if path.is_relative_to(ROOT / "golf") and path not in shipped}
    users = [module for module, path in FILES.items() if path in shipped and imports(module) & left_out]
    assert {module.split(".")[1] for module in left_out} == {"bench", "doctor"}
    assert users == []


def test_imports_make_no_cycle() -> None:
    list(TopologicalSorter({module: imports(module) for module in FILES}).static_order())


def test_nobody_imports_a_tool_not_even_a_tool() -> None:
    users = [module for module in FILES if any(name.startswith("golf.tools.") for name in imports(module))]
    assert users == []


def test_the_command_shell_is_imported_by_tools_alone() -> None:
    users = [module for module in FILES if "golf.cli" in imports(module)]
    assert [module for module in users if module != "golf.__main__" and not module.startswith("golf.tools.")] == []


def test_the_environment_is_read_in_one_place() -> None:
    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.module == "os" and any(alias.name in ("environ", "getenv") for alias in node.names)
        return isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")

    assert places(reads, but=["golf.ranks"]) == []


def test_nothing_is_pickled() -> None:
    pickles = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {"torch.save", "torch.load", "np.load", "numpy.load"}  # numpy's reader unpickles object arrays on demand

    def is_pickle(node: ast.AST) -> bool:
        if isinstance(node, ast.Import):
            return any(alias.name.partition(".")[0] in pickles for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            return node.module in pickles or any(f"{node.module}.{alias.name}" in calls for alias in node.names)
        return isinstance(node, ast.Attribute) and ast.unparse(node) in calls

    assert places(is_pickle) == []


def test_files_are_written_by_the_atomic_helper_alone() -> None:
    """Writing within `with atomic_path(...) as temp` is the helper's; the event log appends and says how."""
    written = [place for module in FILES for place in places_of_writing(module)]
    assert [place for place in written if not place.startswith(("golf/files.py", "golf/log.py"))] == []


def test_the_library_prints_nothing() -> None:
    def prints(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"

    assert places(prints) == []


def places_of_writing(module: str) -> list[str]:
    """Calls that make or change a file under a name that `atomic_path` did not give."""
    nodes = list(ast.walk(tree(module)))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    given = [
        (item.context_expr, item.optional_vars) for node in nodes if isinstance(node, ast.With) for item in node.items
    ]
    given += [(node.value, node.targets[0]) for node in nodes if isinstance(node, ast.Assign)]
    maker = re.compile(r"(.*\.enter_context\()?atomic_path\(")
    temporary = {ast.unparse(name) for value, name in given if name is not None and maker.match(ast.unparse(value))}
    wrong = [call for call in calls if writes(call) and target_of(call) not in temporary]
    return [f"{FILES[module].relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}" for call in wrong]


def writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.rpartition(".")[2] == "open":
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        is_writing = any(re.fullmatch(r"[rbt+wax]{1,3}", text) and set(text) & set("wax+") for text in texts)
        return is_writing or any("O_CREAT" in ast.unparse(value) for value in values)
    if name in ("files.write_bytes", "files.write_text"):
        return False
    return "." in name and name.rpartition(".")[2] in ("write_text", "write_bytes", "save_file", "savez", "touch")


def target_of(call: ast.Call) -> str:
    """What is written to: the object of a method, or the first argument of a function."""
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) not in ("np", "safetensors.torch", "gzip"):
        return ast.unparse(call.func.value)
    return ast.unparse(call.args[0]) if call.args else ""
