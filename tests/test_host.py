import time
from types import ModuleType

import pytest

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.errors import PluginError, StudyError
from autotl.export import bundle
from autotl.host import Host
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent


def test_what_ships_is_registered_through_the_hooks():
    host = Host()
    assert host.problems == []
    assert {entry.name for entry in host.backbones} == {"autotl", "timm", "torchvision", "reference"}
    assert "none" in host.augmentations
    assert "linear-probe" in host.strategies
    assert {entry.owner.distribution for entry in host.backbones} == {"autotl"}


def test_a_plugin_that_fails_is_skipped_with_everything_it_registered():
    class Broken:
        @hookimpl
        def register_backbones(self, register):
            register("half", dict, summary="registered before it broke")

        @hookimpl
        def register_strategies(self, register):
            raise ZeroDivisionError("no strategies today")

    host = Host()
    host.add(Broken(), "broken")
    assert "half" not in host.backbones
    (problem,) = host.problems
    assert "broken" in str(problem)
    assert "ZeroDivisionError: no strategies today" in str(problem)
    assert "linear-probe" in host.strategies


def test_a_name_taken_twice_names_both_owners():
    class Second:
        @hookimpl
        def register_strategies(self, register):
            register("linear-probe", dict, summary="mine")

    host = Host()
    host.add(Second(), "second")
    assert "linear_probe" in host.problems[0].reason
    assert "plugin 'second' (not installed)" in host.problems[0].reason
    assert "plugin 'linear_probe' (autotl 0.1.0, entry point autotl.builtin.linear_probe)" in host.problems[0].reason
    assert host.strategies["linear-probe"].owner.plugin == "linear_probe"


def test_a_hook_that_does_not_exist_is_a_problem():
    class Odd:
        @hookimpl
        def register_backbonez(self, register):
            pass

    host = Host()
    host.add(Odd(), "odd")
    assert "register_backbonez" in host.problems[0].reason
    assert "odd" not in {owner.plugin for owner in host.owners}
    host.add(ModuleType("fine"), "fine")  # the host still accepts others
    assert len(host.problems) == 1


def test_a_hook_without_its_mark_is_a_problem():
    class Unmarked:
        def register_strategies(self, register):
            pass

        @hookimpl
        def register_methods(self, register):
            pass

    host = Host()
    host.add(Unmarked(), "unmarked")
    assert [problem.reason for problem in host.problems] == [
        "its function register_strategies is not marked with @autotl.hookimpl"
    ]


@pytest.mark.parametrize(
    ("name", "summary", "says"),
    [
        ("", "s", "'' is not a valid name"),
        ("a,b", "s", "'a,b' is not a valid name"),
        ("a*", "s", "is not a valid name"),
        ("a:b", "s", "is not a valid name"),
        (5, "s", "5 is not a valid name"),
        ("fine", None, "the summary of 'fine' must be a string, not None"),
    ],
)
def test_what_cannot_be_a_name_is_a_problem(name, summary, says):
    class Named:
        @hookimpl
        def register_strategies(self, register):
            register(name, dict, summary=summary)

    host = Host()
    host.add(Named(), "named")
    assert says in host.problems[0].reason


class Mute:
    pass


class Short:
    def suggest(self, trial):
        pass


class Headless:
    def fit(self, features, labels, classes, options, step):
        pass


@pytest.mark.parametrize(
    ("kind", "load", "says"),
    [
        ("strategies", Mute, "TypeError: Mute has no method 'suggest'"),
        ("strategies", Short, r"its suggest\(trial\) cannot be called as suggest\(trial, context\)"),
        ("strategies", lambda: Short, "it is the class Short, but must be an instance of it"),
        ("strategies", lambda: None, "NoneType has no method 'suggest'"),
        ("augmentations", Short, "its suggest"),
        ("methods", Headless, "Headless has no 'options'"),
        ("backbones", Mute, "Mute has no method 'names'"),
    ],
)
def test_an_object_without_the_methods_of_its_kind_cannot_be_loaded(kind, load, says):
    plugin = ModuleType("lacking")

    def hook(register):
        register("mine", load, summary="For a test")

    setattr(plugin, f"register_{kind}", hookimpl(hook))
    hook.__name__ = f"register_{kind}"
    host = Host()
    host.add(plugin, "lacking")
    with pytest.raises(PluginError, match=f"'mine' of plugin 'lacking' .* cannot be loaded: .*{says}"):
        _ = host.registries[kind]["mine"].item


def test_what_a_plugin_prints_goes_to_standard_error(capsys):
    class Loud:
        @hookimpl
        def register_strategies(self, register):
            print("registering")
            register("loud", lambda: print("loading") or Whisper(), summary="For a test")

    class Whisper:
        def suggest(self, trial, context): ...

    host = Host()
    host.add(Loud(), "loud")
    assert host.strategies["loud"].item
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "registering\nloading\n")


def test_blocked_plugins_are_not_loaded(monkeypatch):
    monkeypatch.setenv("AUTOTL_DISABLE_PLUGINS", "timm_family, reference")
    names = {entry.name for entry in Host.from_environment().backbones}
    assert names == {"autotl", "torchvision"}


def test_the_augmentation_that_changes_nothing_is_always_there(monkeypatch):
    monkeypatch.setenv("AUTOTL_DISABLE_PLUGINS", "augmentations")
    host = Host.from_environment()
    assert [entry.name for entry in host.augmentations] == ["none"]
    images = object()
    assert host.augmentations["none"].item.build({})(images, None) is images

    class Mine:
        @hookimpl
        def register_augmentations(self, register):
            register("none", dict, summary="For a test")

    host.add(Mine(), "mine")
    assert "augmentation 'none' is registered twice: by plugin 'autotl'" in host.problems[0].reason


def test_an_item_that_cannot_be_loaded_names_its_owner():
    def load():
        raise ImportError("needs libfoo")

    class Needy:
        @hookimpl
        def register_strategies(self, register):
            register("needy", load, summary="needs something")

    host = Host()
    host.add(Needy(), "needy-plugin")
    with pytest.raises(PluginError, match="needy-plugin.*ImportError: needs libfoo"):
        _ = host.strategies["needy"].item


def test_an_unknown_name_suggests_the_nearest():
    host = Host()
    with pytest.raises(PluginError, match="Did you mean 'linear-probe'"):
        _ = host.strategies["liner-probe"]
    with pytest.raises(PluginError, match="Unknown augmentation 'flop\\*'"):
        host.augmentations.match("flop*")
    assert [entry.name for entry in host.backbones.match("t*")] == ["torchvision", "timm"]


def test_the_error_about_a_missing_plugin_names_it(stripes):
    """Started with a plugin that is no longer installed; and a bundle whose backbone is missing."""
    host = Host()
    host.add(_Nets(), "nets")
    options = {"data": stripes, "trials": 2, "backbones": ("nets:one",), "strategies": ("linear-probe",)}
    made = Search(Settings(**options), host, Silent(), time.monotonic())
    made.run()
    with pytest.raises(
        StudyError, match=r"family 'nets' of \(not installed\) 0, which is not installed.*autotl doctor"
    ):
        Search(Settings(**options), Host(), Silent(), time.monotonic())
    with pytest.raises(PluginError, match="needs backbones of the family 'nets', whose plugin is not installed"):
        bundle.load(made.folder.bundle, Catalogue(Host(), made.cache_dir))


def test_a_broken_plugin_ends_a_strict_search_before_it_starts(stripes, tmp_path):
    class Broken:
        @hookimpl
        def register_strategies(self, register):
            raise ZeroDivisionError("no strategies today")

    host = Host()
    host.add(Broken(), "broken")
    with pytest.raises(PluginError, match="plugin 'broken' .* ZeroDivisionError: no strategies today. Fix it"):
        Search(Settings(data=stripes, strict_plugins=True), host, Silent(), time.monotonic())
    assert not (tmp_path / "studies").exists()


class _Nets:
    @hookimpl
    def register_backbones(self, register):
        from autotl.testing.lab import TinyFamily

        class Family(TinyFamily):
            more = {"one": 0}

        register("nets", Family, summary="A network")
