"""The public names of nnx are those that docs/api.txt lists, and change only with it."""

import difflib
import importlib

import public_api
import pytest

from nnx.registry import REGISTRIES


def test_names_and_arguments_are_those_of_the_list():
    pytest.importorskip("sklearn")  # for nnx.estimators
    listed, found = public_api.LIST.read_text(encoding="utf-8"), public_api.listing()
    changes = difflib.unified_diff(
        listed.splitlines(), found.splitlines(), "docs/api.txt", "nnx", n=0, lineterm=""
    )
    assert listed == found, "public names have changed; if that is meant, run: make api\n" + "\n".join(
        changes
    )


@pytest.mark.parametrize("name", public_api.public_modules())
def test_every_name_of_a_public_module_is_there(name):
    if name == "nnx.estimators":
        pytest.importorskip("sklearn")
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


PLACES = {kind: f"nnx.{kind}s" for kind in REGISTRIES} | {"loss": "nnx.losses"}


@pytest.mark.parametrize("kind", PLACES)
def test_what_can_be_chosen_by_name_is_public(kind):
    chosen = {REGISTRIES[kind].find(name) for name in REGISTRIES[kind].names()}
    own = {cls.__name__ for cls in chosen if cls.__module__.startswith("nnx.")}
    assert own
    assert own <= set(importlib.import_module(PLACES[kind]).__all__)
