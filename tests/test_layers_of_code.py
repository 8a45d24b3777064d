"""Who may import whom, held by reading the imports; and the house rules that a machine can hold."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from expunge.notation.parse import Plugin, plugins

ROOT = Path(__file__).parent.parent / "expunge"
MODULES = {
    ".".join(("expunge", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
MODULE = pytest.mark.parametrize("module", MODULES)

ANYTHING = {"*"}
BASE = ("errors", "events", "primitives", "core")
GROUND = (*BASE, "notation", "runtime", "internals")
LEAVES = ("data", "select", "models", "adapters", "objectives", "edit", "guard", "audits", "summaries", "prune")
MAY_IMPORT = {
    # 0: refusals, helpers that know no noun, and the nouns
    "errors": set(),
    "events": set(),
    "primitives": {"errors"},
    "core": {"errors", "events", "primitives"},
    # 1: what everything else stands on
    "notation": {*BASE},
    "internals": {*BASE, "runtime"},
    "runtime": {*BASE, "internals"},
    # 2, leaves: never one another
    **{leaf: {*GROUND} for leaf in LEAVES},
    "report": {*GROUND, ""},  # the top package, for its version
    # 3, routes
    "train": {*GROUND, "adapters", "objectives", "prune"},
    "methods": {*GROUND, "adapters", "objectives", "select", "prune", "train"},
    "exact": {*GROUND, "adapters", "objectives", "train", "methods"},
    "attack": {*GROUND, "adapters", "objectives", "train", "methods"},
    # 4
    "benchmarks": {*GROUND, "data", "models", "select", "audits", "report"},
    # 5: what is put together from the rest
    "run": {*GROUND, *LEAVES, "report", "train", "methods", "exact", "attack"},
    "plan": {*GROUND, *LEAVES, "report", "train", "methods", "exact", "attack", "run"},
    "export": {*GROUND, "data", "models", "adapters", "report", "run"},
    "demo": {*BASE, "run"},
    "cli": ANYTHING,
    "__main__": {"cli"},
    # the top package names what it exports, and loads it when it is asked for
    "": ANYTHING,
    "_peft_hook": set(),
}
"""What each folder, or module beside the folders, may import; "" is the top package itself."""


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def folder(module: str) -> str:
    """`core` of `expunge.core.model`; `job` of `expunge.run.unlearn`; nothing of `expunge`."""
    return (module.split(".") + [""])[1]


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def named(module: str, types: bool = True) -> set[str]:
    """Every module that `module` imports, in functions too; those under TYPE_CHECKING where `types`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by dots; write the whole name"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        waiting += [] if only_for_types(node) and not types else list(ast.iter_child_nodes(node))
    return found


def ours(module: str, types: bool = True) -> set[str]:
    return {name for name in named(module, types) if name.split(".")[0] == "expunge"}


@MODULE
def test_a_module_imports_only_from_layers_below_or_from_its_own_folder(module: str):
    assert folder(module) in MAY_IMPORT, f"{folder(module)} has no layer; give it one in design.md and here"
    allowed = MAY_IMPORT[folder(module)]
    wrong = {name for name in ours(module) if folder(name) not in {folder(module), *allowed} and "*" not in allowed}
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"
    assert ours(module) <= set(MODULES), "it imports a module that is not there"


def test_the_core_stands_on_refusals_and_on_helpers_that_know_no_noun():
    for module in MODULES:
        if folder(module) == "core":
            assert {folder(name) for name in ours(module)} <= {*BASE}
        if folder(module) == "primitives":
            assert "core" not in {folder(name) for name in ours(module)}


def refuse_circles(imports: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(imports[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def test_no_imports_go_round_in_a_circle():
    """Imports in functions count; those that only a type checker reads do not."""
    refuse_circles({module: ours(module, types=False) - {module} for module in MODULES})


NAMES_ITS_WHOLE = {"models", "methods", "report"}
"""Folders in which a part of a class's work names that class, for the type checker alone, as it is handed to it."""


@pytest.mark.parametrize("name", sorted({folder(module) for module in MODULES} - NAMES_ITS_WHOLE))
def test_within_a_folder_imports_for_the_type_checker_alone_go_in_no_circle_either(name: str):
    inside = {module for module in MODULES if folder(module) == name}
    refuse_circles({module: (ours(module) - {module}) & inside for module in inside})


def test_a_circle_is_found():
    with pytest.raises(AssertionError, match="b -> c -> b"):
        refuse_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_a_module_that_imports_peft_can_be_the_first_that_is_imported(script):
    """Importing peft registers ours, and so imports modules that may be half loaded. One process for each, by fork."""
    first = [module for module, path in MODULES.items() if re.search(r"^(from|import) peft", path.read_text(), re.M)]
    assert len(first) > 4
    lines = """
        import importlib, os, sys
        for name in sys.argv[1:]:
            child = os.fork()
            if not child:
                importlib.import_module(name)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                sys.exit(name)
    """
    done = script(textwrap.dedent(lines), *first)
    assert done.code == 0, done.err


@pytest.mark.parametrize("path", sorted(p for p in ROOT.rglob("__init__.py") if p.parent != ROOT), ids=str)
def test_a_packages_init_file_is_empty(path: Path):
    assert path.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("plugin", plugins(), ids=lambda plugin: plugin.name)
def test_a_plugin_file_has_one_public_class_or_function_which_it_is_named_after(plugin: Plugin):
    top = [node for node in tree(plugin.module).body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    public = [node.name for node in top if not node.name.startswith("_")]
    assert public == [plugin.name]


@MODULE
def test_a_module_stays_under_400_lines(module: str):
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines < 400, f"{module} has {lines} lines: two modules in one"


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@MODULE
def test_nothing_is_pickled_and_no_strangers_code_is_run(module: str):
    assert not {name.split(".")[0] for name in named(module)} & PICKLES
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert not {alias.name for alias in node.names} & {"load", "save"}, f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile"}, f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), f"line {node.value.lineno}: say False here, in so many words"
            assert node.value.value is False, f"line {node.value.lineno}"
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    assert isinstance(value, ast.Constant), f"line {value.lineno}"
                    assert value.value is False, f"line {value.lineno}"


IRREGULAR = frozenset(
    """begun born bound bought broken brought built caught chosen dealt done drawn driven fed felt fought found frozen
    given gone grown heard held hidden kept known laid learnt led left lent lost made meant met paid said sealed seen
    sent shown shut sold sought spelt spent spoken stolen taken taught thought thrown told torn understood won worn
    written""".split()  # noqa: SIM905 (sixty quoted words are harder to read)
)
"""Participles that do not end in -ed, but for those that are verbs as they stand: cut, put, read, run, set, split."""


def is_bare_participle(name: str) -> bool:
    """Whether a name is one word that says what was done to something, and not what the function does."""
    word = name.strip("_")
    return "_" not in word and (word in IRREGULAR or (word.endswith("ed") and not word.endswith(("eed", "bed"))))


@MODULE
def test_no_function_is_named_by_a_bare_participle(module: str):
    """`told`, `kept` or `made` says what came of something, and not what the function does."""
    functions = [node for node in ast.walk(tree(module)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not [f"{node.name}, line {node.lineno}" for node in functions if is_bare_participle(node.name)]


def test_verbs_and_nouns_are_no_participles():
    assert all(map(is_bare_participle, ("told", "_kept", "made", "folded", "widened")))
    assert not any(
        map(is_bare_participle, ("cut", "read", "split", "embed", "seed", "make", "hidden_states", "_in_shed_"))
    )


# Budgets, and what no file may ask


def lines_of(folder: str) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(("folder", "most"), [("core", 1300), ("plan", 900)])
def test_a_folder_stays_within_its_budget(folder: str, most: int):
    assert lines_of(folder) <= most


QUESTIONS = ("predict", "answers", "hidden", "routes", "generate")
"""What models were asked by methods of their own, each forwarded by hand through whatever stood around a model."""


@MODULE
def test_what_a_model_is_asked_is_forwarded_by_nobody_by_hand(module: str):
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    methods = {node.name for kind in classes for node in kind.body if isinstance(node, ast.FunctionDef)}
    assert not methods & set(QUESTIONS)


NOUNS = {"model", "network", "inner", "adapted", "method", "adapter", "objective", "term", "audit", "example", "e"}
"""What variables that hold one of our nouns are called."""


def capability_lookups(module: str) -> list[str]:
    """`getattr(model, "...", ...)` and `hasattr(model, "...")`: asking one of our nouns whether it can do something."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            subject, name = node.args[0], node.args[-1] if len(node.args) == 1 else node.args[1]
            last = (
                subject.attr
                if isinstance(subject, ast.Attribute)
                else subject.id
                if isinstance(subject, ast.Name)
                else ""
            )
            if last in NOUNS and isinstance(name, ast.Constant):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@MODULE
def test_no_noun_is_asked_by_name_what_it_can_do(module: str):
    assert not capability_lookups(module)


PLUGGED_IN = {
    plugin.name: plugin.folder for plugin in plugins() if plugin.folder in ("methods", "edit", "attack", "adapters")
}


@MODULE
def test_no_method_or_adapter_is_known_by_name_outside_of_its_folder(module: str):
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            found += [f"line {node.lineno}: {n}" for n in names if PLUGGED_IN.get(n, folder(module)) != folder(module)]
    assert not found
