"""What can be named in a method or an audit, told from the plug-ins' own files; none of them is imported."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator

from expunge.errors import UsageRefused
from expunge.notation.parse import FOLDERS, Plugin, plugins, squash
from expunge.notation.recipes import FAMILIES, Recipe, recipes
from expunge.notation.settings import made_by, settings

TITLES = {"recipes": "recipes", **{folder: folder for folder in FOLDERS}}
"""What each kind is called, in the order of the list: recipes, and the plug-in folders."""
WIDTH = 100


def nameable() -> list[str]:
    """What `describe` can be asked of: the kinds, and every plug-in."""
    found = plugins()
    filled = {"recipes", *(plugin.folder for plugin in found)}
    names = dict.fromkeys((*(recipe.name for recipe in recipes()), *(plugin.name for plugin in found)))
    return [*(title for folder, title in TITLES.items() if folder in filled), *names]


def describe(asked: str | None) -> Iterator[str]:
    """The lines that tell of all plug-ins, of one kind, or of one plug-in with its settings."""
    found = plugins()
    kinds = {title: [p for p in found if p.folder == folder] for folder, title in TITLES.items()}
    kinds = {title: members for title, members in kinds.items() if members}
    if asked == "recipes":
        yield from _all_recipes()
        return
    if asked is None:
        yield "recipes"
        names = ", ".join(dict.fromkeys(recipe.name for recipe in recipes()))
        yield from _block(f"{names}. `expunge list recipes` tells what each runs.", 2)
    wanted = [title for title in kinds if asked is None or asked in (title, kinds[title][0].folder)]
    if wanted:
        for title in wanted:
            yield title
            for plugin in kinds[title]:
                yield f"  {plugin.name:<16} {plugin.summary}"
                if plugin.intention:
                    yield f"  {'':<16} {_intention(plugin)}"
        return
    name = squash(asked or "")
    one = next((plugin for plugin in found if squash(plugin.name) == name), None)
    named = [recipe for recipe in recipes() if name in (squash(recipe.name), squash(recipe.home))]
    if one is None and not named:
        known = dict.fromkeys((*(p.name for p in found), *(r.name for r in recipes())))
        near = difflib.get_close_matches(name, map(squash, known), n=3, cutoff=0.5)
        hint = [each for n in near for each in known if squash(each) == n]
        nearest = f" Nearest: {', '.join(hint)}." if hint else ""
        raise UsageRefused(
            f"There is no kind, recipe or plug-in '{asked}'.{nearest} Kinds: {', '.join(('recipes', *kinds))}."
        )
    yield from _entry(one) if one else (f"{named[0].name} (recipes)",)
    for recipe in named:
        yield from ("", *_recipe(recipe))


def _all_recipes() -> Iterator[str]:
    """Every recipe, by family."""
    yield "recipes"
    for family, models in FAMILIES.items():
        yield f"  for {models}"
        for recipe in recipes():
            if recipe.family == family:
                yield from (f"    {line}" for line in _recipe(recipe))


def _recipe(recipe: Recipe) -> Iterator[str]:
    """What `--method NAME` runs, in lines that can be copied, and where its numbers come from."""
    yield f"--method {recipe.name:<12} ({recipe.family}) {recipe.what}"
    for said in (recipe.method, f"Numbers: {recipe.source}"):
        yield from _block(said, 4)


def _block(text: str, indent: int) -> list[str]:
    """Lines that break at spaces alone."""
    space = indent * " "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _intention(plugin: Plugin) -> str:
    return f"{plugin.intention}; needs {', '.join(plugin.needs) or 'nothing but the weights'}"


def _entry(plugin: Plugin) -> Iterator[str]:
    """What a plug-in's file says of it, and what turning each of its settings does."""
    tree, made = made_by(plugin)
    said = inspect.cleandoc(ast.get_docstring(tree, clean=False) or "")
    yield f"{plugin.name} ({TITLES[plugin.folder]})"
    yield from ("", *said.splitlines())
    if plugin.intention:
        yield from ("", f"Intention: {_intention(plugin)}.")
    known = settings(made)
    if known:
        yield from ("", "Settings")
    for setting in known:
        yield f"  {setting.name} = {setting.default}" if setting.default else f"  {setting.name}, which must be given"
        yield from textwrap.wrap(
            " ".join(setting.doc.split()), WIDTH, initial_indent="      ", subsequent_indent=6 * " "
        )
