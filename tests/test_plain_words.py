"""Turns of phrase that must not return to the texts that people read, each with what to write instead."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/methods.md",
    "plugins/README.md",
    "studies/README.md",
    "plugins/autotl-head2toe/README.md",
    "plugins/autotl-ssf/README.md",
    "plugins/autotl-efficientnet-lite/README.md",
)
PUBLIC = ("__init__.py", "api.py", "contracts.py", "hookspecs.py", "plan.py", "errors.py", "cli/", "testing/")
"""Modules of autotl whose docstrings users and authors of plugins read, `--help` included."""

INSTEAD = {
    r"told|tells? (MLflow|Optuna|a server|the server)": "logged to, sent, reported",
    r"beg[aiu]n(s|ning)?": "start, started",
    r"(search|start)(ed|es|s)? otherwise": "with other settings",
    r"(go|goes|going|went|gone) on": "continue, resume",
    r"left[ -]out|lea(ve|ves|ving) (\w+ )?out": "skipped, excluded, held out",
    r"set(s|ting)? aside": "excluded",
    r"pass(es|ed|ing)? over": "ignored",
    r"put(s|ting)? right|mend(s|ed|ing)?": "fix",
    r"lies?|lay|lain": "is in, is at, exists",
    r"no more(?=[.,;:)]|$)|not there": "no longer exists, is missing",
    r"be had": "is available",
    r"come[s]? by|came by": "is in, is at",
    r"dear(er|est)?": "expensive",
    r"flatter(s|ed|ing)?": "is optimistic",
    r"by lot": "at random",
    r"fresh seeds?|run(s)? again with": "rerun with new seeds",
    r"(all images|all) but the (sealed|test)|once more": "refit on all images except the test images",
    r"sealed (images?|photos|ones|test images?)": "test images",
    r"(?<!learning )(?<!error )rates?": "learning rate",
    r"carr(y|ies|ied|ying) out": "train, run",
    r"who(so)?ever|whatever|as much as|(?<=, )for (it|they|there|he|she)": "a plain clause",
    r"hence|thus|lest|naught|nought|alike|whence|thereof|therein|thereby|(?<=[,.;] )nor": "a plain clause",
    r"at once|now and then": "a plain word",
    r"holds? for": "applies to",
    r"say (--?\w+|make)": "use, is given",
    r"heed(s|ed|ing)?": "respect, use",
    r"(will|would) do|(did|does|will) not do(?! (so|this|that|it))": "is enough",
    r"stands?(?! for)|stood|stand-in": "is, is in",
    r"do(es|ing)? without": "does not use",
    r"(bring|brings|brought|take|takes|took) along": "include",
    r"looked at|glances?|(a|the|cheap|probe's) look": "check, read",
    r"straddle(s|d)?": "is in several splits",
    r"polite (kill|end)|politely": "SIGTERM",
    r"closed[- ]form|stage rates?|head rates?": "logistic, stage_lr, head_lr",
    r"(without( a)?|needs? no|(is|has) no|machine with) network(?=[.,:;)]| (run|needed)|$)": "internet access",
    r"fall(s|ing)?( to [\w ]+)? with depth": "falls from the last stage to the first",
    r"(its|the|their|all|train the|best) controls": "baselines",
    r"trainings": "training runs, training twice",
    r"cuts? away": "removes",
}
ANY = "|".join(f"(?P<w{at}>{turn})" for at, turn in enumerate(INSTEAD))
TURNS = re.compile(rf"(?<![\w-])(?:{ANY})(?![\w-])", re.IGNORECASE)


class Text(NamedTuple):
    """A text that people read, and where it starts."""

    file: str
    line: int
    text: str


class Turn(NamedTuple):
    """A forbidden turn of phrase, where it is and what to write instead."""

    file: str
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.found!r} (write: {self.instead})"


def turns(text: Text) -> Iterator[Turn]:
    """The forbidden turns of a text. One that is broken between lines counts, too."""
    words = text.text.split()
    for found in TURNS.finditer(" ".join(words)):
        before = len(" ".join(words)[: found.start()].split())
        start = [*re.finditer(r"\S+", text.text)][before].start()
        line = text.line + text.text.count("\n", 0, start)
        instead = next(INSTEAD[turn] for at, turn in enumerate(INSTEAD) if found[f"w{at}"])
        yield Turn(text.file, line, found[0], instead)


def texts(file: str, source: str, public: bool) -> Iterator[Text]:
    """Literals of more than two words outside docstrings; the module's docstring; of public modules all docstrings."""
    tree = ast.parse(source)
    documentation: set[ast.AST] = set()
    joined: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                documentation.add(node.value)
                if public or node is tree.body[0]:
                    yield Text(file, node.lineno, str(node.value.value))
            case ast.JoinedStr() if node not in joined:
                joined.update(ast.walk(node))
                parts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values]
                yield from literal(file, node.lineno, "".join(parts))
            case ast.Constant(value=str()) if node not in documentation and node not in joined:
                yield from literal(file, node.lineno, str(node.value))


def literal(file: str, line: int, value: str) -> Iterator[Text]:
    if len(value.split()) > 2:
        yield Text(file, line, " ".join(value.split("\n")))


def everything() -> Iterator[Text]:
    for page in PAGES:
        yield Text(page, 1, (ROOT / page).read_text())
    for path in sorted((ROOT / "autotl").rglob("*.py")):
        inside = path.relative_to(ROOT / "autotl").as_posix()
        yield from texts(f"autotl/{inside}", path.read_text(), inside.startswith(PUBLIC))


def test_no_text_that_people_read_has_a_forbidden_turn():
    found = [str(turn) for text in everything() for turn in turns(text)]
    assert not found, f"{len(found)} turns to rewrite:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The memory did not do for it.", ["did not do"]),
        ("That chose it, so it flatters.", ["flatters"]),
        ("Study x was begun\notherwise.", ["begun"]),
        ("Each is dear; the others are left\n  out, for they are many.", ["dear", "left out", "for they"]),
        ("It is left out, set aside and told to MLflow.", ["left out", "set aside", "told"]),
        ("A rate of its own, and the learning rate.", ["rate"]),
        (
            "Run trainings on a machine with network: learning rates fall with depth.",
            ["trainings", "machine with network", "fall with depth"],
        ),
        ("By leave-one-out, with a standard learning rate, of no more than 3 endeared layers.", []),
    ],
)
def test_a_forbidden_turn_is_noticed(text, found):
    assert [turn.found for turn in turns(Text("x.py", 1, text))] == found


def test_texts_are_found_where_they_are_written():
    source = '"""Told by the module."""\nx = {"told", f"it was {1} told" "me"}\ndef f():\n    """Told by f."""\n'
    assert [each[1:] for each in texts("x.py", source, public=False)] == [
        (1, "Told by the module."),
        (2, "it was … toldme"),
    ]
    assert (4, "Told by f.") in [each[1:] for each in texts("x.py", source, public=True)]
