"""What ships is replaceable: autotl itself names none of its own plugins' items."""

import ast
from pathlib import Path

from autotl.host import Host
from autotl.plan import NO_AUGMENTATION

ROOT = Path(__file__).parent.parent / "autotl"
LIBRARIES = {"autotl", "timm", "torchvision"}
"""Families that are called like a distribution, whose versions autotl records."""


KINDS = ("strategies", "methods", "augmentations")
"""The kinds whose names are no words of a plan: by default a phase trains with `adamw` and `cross-entropy`."""


def names():
    host = Host()
    families = {entry.name for entry in host.backbones} - LIBRARIES
    others = {entry.name for kind in KINDS for entry in host.registries[kind]}
    return (families | others) - {NO_AUGMENTATION.name}


def named(source, known):
    """The names among the string literals of a module, docstrings excepted: alone, or as `family:architecture`."""
    tree = ast.parse(source)
    documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    literals = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in documentation)
    texts = (node.value for node in literals if isinstance(node.value, str))
    return sorted(text for text in texts if text.partition(":")[0] in known)


def test_no_module_names_a_builtin():
    known = names()
    assert {"linear-probe", "logistic", "reference", "flip"} <= known
    for file in sorted(ROOT.rglob("*.py")):
        if {"builtin", "templates", "testing"}.isdisjoint(file.parts):  # the kits train with what ships
            found = named(file.read_text(), known)
            assert not found, f"{file} names {found}: ask the host, or an attribute of the contract"


def test_a_name_is_noticed():
    source = '"""About logistic."""\nx = {"logistic": "flipped", "y": "reference:pixels"}\n'
    assert named(source, {"logistic", "reference", "flip"}) == ["logistic", "reference:pixels"]
