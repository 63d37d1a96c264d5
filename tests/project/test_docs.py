"""The Python in README.md and docs/*.md runs, each page from top to bottom; its links and versions hold."""

import re
import tomllib

import pytest
from paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("h5py", "optuna", "pandas"):
        if f"import {package}" in page.read_text():
            pytest.importorskip(package)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_lowest_versions_are_those_of_pyproject():
    table = re.findall(
        r"^\| (\w[\w-]*)[^|]* \| ([\d.]+) \| [\d.]+ \|$", (ROOT / "docs/reliability.md").read_text(), re.M
    )
    told = {name.lower(): lowest for name, lowest in table}
    told["dask[distributed]"], told["cupy-cuda12x[ctk]"] = told.pop("dask"), told["cupy"]
    told["cupy-cuda13x[ctk]"] = told.pop("cupy")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("jax", "cuda12", "cuda13", "fast", "sklearn", "plot", "search", "onnx", "tensorboard")
    needed = sum((project["optional-dependencies"][extra] for extra in extras), project["dependencies"])
    asked = dict(need.lower().split(">=") for need in needed if ">=" in need)
    assert told == {"python": project["requires-python"].removeprefix(">=")} | asked
