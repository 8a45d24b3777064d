"""What can be named in a method or an audit, told from the plug-ins' own files; none of them is imported."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator

from expunge.errors import UsageRefused
from expunge.notation.parse import FOLDERS, Plugin, plugins, squash
from expunge.notation.settings import made_by, settings

TITLES = {folder: folder for folder in FOLDERS}
"""What each plug-in folder is called, in the order of the list."""
WIDTH = 100


def nameable() -> list[str]:
    """What `describe` can be asked of: the kinds, and every plug-in."""
    found = plugins()
    filled = {plugin.folder for plugin in found}
    return [*(title for folder, title in TITLES.items() if folder in filled), *(plugin.name for plugin in found)]


def describe(asked: str | None) -> Iterator[str]:
    """The lines that tell of all plug-ins, of one kind, or of one plug-in with its settings."""
    found = plugins()
    kinds = {title: [p for p in found if p.folder == folder] for folder, title in TITLES.items()}
    kinds = {title: members for title, members in kinds.items() if members}
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
    if one is None:
        near = difflib.get_close_matches(name, [squash(p.name) for p in found], n=3, cutoff=0.5)
        hint = [p.name for n in near for p in found if squash(p.name) == n]
        nearest = f" Nearest: {', '.join(hint)}." if hint else ""
        raise UsageRefused(f"There is no kind and no plug-in '{asked}'.{nearest} Kinds: {', '.join(kinds)}.")
    yield from _entry(one)


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
