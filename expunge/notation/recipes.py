"""Published recipes: what a paper ran, by its method's name. Each stands in the file of a plug-in, as `PUBLISHED`.

    PUBLISHED = Recipe("NPO", "language", f"Finetune(objective=NPO(beta=0.1) + RetainNLL(), {TOFU})", "where from")

The files are read and not imported, so that a name is known before torch is loaded.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from expunge.errors import UsageRefused
from expunge.notation.parse import ROOT, Plugin, check_names, plugins, squash, syntax
from expunge.notation.settings import check_settings, made_by, setting_names

FAMILIES = {"language": "language models", "vision": "image classifiers", "graph": "graph networks"}
"""The families of models that recipes are for, in words."""
METHODS = ("methods", "edit", "exact", "guard", "attack")
"""Folders whose plug-ins are methods by themselves."""

ALL_STEPS = "stop=None"
"""No stop of ours: papers take all steps."""
TOFU = (
    "adapter=Full(), learning_rate=1e-05, batch=32, retain_batch=32, warmup=Epochs(count=1.0), schedule='linear', "
    f"weight_decay=0.01, {ALL_STEPS}"
)
"""How open-unlearning trains on TOFU, but for the length: AdamW, batches of 32, an epoch of warm-up."""
CIFAR = f"optimizer='sgd', batch=28, retain_batch=228, schedule='cosine', weight_decay=0.0005, {ALL_STEPS}"
"""How SalUn's code trains on CIFAR-10, but for rate and length: batches of 256, of which one in nine is to forget."""


@dataclass(frozen=True)
class Recipe:
    """What a paper ran."""

    name: str
    """What `--method` takes."""
    family: str
    """language, vision or graph."""
    method: str
    """In the notation, complete."""
    source: str
    """Where the numbers come from, and what is not as published."""
    what: str = ""
    """What it is, in a line; empty for the first line of the file that it stands in."""
    home: str = ""
    """The plug-in in whose file it stands; filled in by `recipes`."""

    def with_settings(self, asked: ast.Call) -> Recipe:
        """The recipe with other settings: those of the plug-in in whose file it stands, or of the method around it."""
        tree = syntax(self.method)[0]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        inner = [call for call in calls if squash(_name(call)) == squash(self.home)]
        said = []
        for keyword in asked.keywords:
            setting = keyword.arg or "**"
            if sum(each.arg == keyword.arg for each in asked.keywords) > 1:
                raise UsageRefused(f"The `{setting[:100]}` of {self.name} is given twice. Give it once.")
            at = next((call for call in (*inner, calls[0]) if setting in _settings(call)), None)
            if at is None:
                known = ", ".join(dict.fromkeys(name for call in (*inner, calls[0]) for name in _settings(call)))
                raise UsageRefused(f"The recipe {self.name} has no setting '{setting[:100]}'. It has: {known}.")
            beside = (call for call in calls if call is not at and _folder(call) == _folder(at))
            shared = [_name(call) for call in beside if _has_setting(call, setting)]
            if shared:
                raise UsageRefused(
                    f"In the recipe {self.name} the `{setting}` of {_name(at)} goes with that of {shared[0]}. "
                    f"Write it out: {self.method}"
                )
            at.keywords = [*(each for each in at.keywords if each.arg != setting), keyword]
            said.append(ast.unparse(keyword))
        name = f"{self.name}({', '.join(said)})" if said else self.name
        return replace(self, name=name, method=ast.unparse(tree))


@cache
def recipes(root: Path = ROOT) -> tuple[Recipe, ...]:
    """Every published recipe, in the order of plug-ins."""
    found = []
    for plugin in plugins(root):
        tree, _ = made_by(plugin, root)
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PUBLISHED":
                read = _value(node.value)
                for recipe in read if isinstance(read, tuple) else (read,):
                    assert isinstance(recipe, Recipe)
                    found.append(replace(recipe, what=recipe.what or plugin.summary, home=plugin.name))
    return tuple(found)


def _value(node: ast.expr) -> object:
    """What a `PUBLISHED` says: texts, names of this file, and recipes made of them."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name):
            return globals()[name]
        case ast.JoinedStr(values=parts):
            return "".join(str(_value(part)) for part in parts)
        case ast.FormattedValue(value=inner):
            return _value(inner)
        case ast.Tuple(elts=items):
            return tuple(map(_value, items))
        case ast.Call(func=ast.Name(id="Recipe"), args=given, keywords=named):
            return Recipe(*map(str, map(_value, given)), **{str(k.arg): str(_value(k.value)) for k in named})
    raise TypeError(f"PUBLISHED, line {node.lineno}: only texts and Recipe(...) are read")


def recipe_of(text: str, family: str) -> Recipe | None:
    """The recipe that a text names for a family; None where the text is no recipe's name, with or without settings.

    A call such as `NPO(beta=0.5)` is the recipe with other settings, but that of a method, such as `SSD(alpha=5.0)`,
    is the method. Raises `UsageRefused` where the recipe is one of another family.
    """
    asked, named = _find_asked(text)
    if not named:
        return None
    for recipe in named:
        if recipe.family == family or family not in FAMILIES:  # of a new kind of models, the first that there is
            return recipe.with_settings(asked) if asked else recipe
    raise UsageRefused(
        f"--method {text.strip()}: the recipe is one for {FAMILIES[named[0].family]}, and the request is to one of the "
        f"{FAMILIES[family]}. `expunge list recipes` shows what is for those. To try it all the same, write it out: "
        f"{named[0].method}"
    )


def _find_asked(text: str) -> tuple[ast.Call | None, list[Recipe]]:
    """The recipes that a text names, by a lone name or by a call of one that is no method, which comes with them."""
    named = [recipe for recipe in recipes() if squash(recipe.name) == squash("".join(text.split()))]
    node = None if named else syntax(text)[0].body
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        return None, named
    own = _plugin(_name(node))
    called = [] if own and own.folder in METHODS else recipes()
    return node, [recipe for recipe in called if squash(recipe.name) == squash(_name(node))]


def check_method(text: str) -> None:
    """Refuse a method that names what is not there, before anything is imported."""
    asked, named = _find_asked(text)
    if not named:
        _suggest_recipe(text)
        check_names(text)
        check_settings(text)
    elif asked:
        named[0].with_settings(asked)


def _suggest_recipe(text: str) -> None:
    """Refuse a lone name that is nearer to a recipe's than to any plug-in's."""
    name = squash(text.strip())
    known = {squash(plugin.name) for plugin in plugins()}
    if not name.isalnum() or name in known:
        return
    ours = {squash(recipe.name): recipe.name for recipe in recipes()}
    near = difflib.get_close_matches(name, [*ours, *known], n=1, cutoff=0.4)
    if near and near[0] in ours:
        raise UsageRefused(f"No method is called '{text.strip()[:100]}'. Nearest: {ours[near[0]]}, a published recipe.")


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _has_setting(call: ast.Call, setting: str) -> bool:
    return any(keyword.arg == setting for keyword in call.keywords)


def _settings(call: ast.Call) -> tuple[str, ...]:
    plugin = _plugin(_name(call))
    return setting_names(plugin) if plugin else ()


def _folder(call: ast.Call) -> str:
    plugin = _plugin(_name(call))
    return plugin.folder if plugin else ""


def _plugin(name: str) -> Plugin | None:
    return next((plugin for plugin in plugins() if squash(plugin.name) == squash(name)), None)


def written_with(objective: str) -> str:
    """How an objective becomes a method, for who gave one: by a recipe in whose file it stands, or written out."""
    names = [recipe.name for recipe in recipes() if squash(recipe.home) == squash(objective.partition("(")[0])]
    by_name = f", or name a recipe with it: {', '.join(dict.fromkeys(names))}" if names else ""
    return f"Write Finetune(objective={objective}){by_name}."
