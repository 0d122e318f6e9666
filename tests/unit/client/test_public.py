"""What `import convlens` offers: complete, documented, typed, the same for both clients."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import convlens
import convlens._errors

_PACKAGE = Path(convlens.__file__).parent.parent


def test_all_is_complete():
    public = {
        name
        for name, value in vars(convlens).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(convlens.__all__)
    assert len(convlens.__all__) == len(set(convlens.__all__))


def test_every_error_is_offered_and_drawn():
    tree = convlens._errors.__doc__ or ""
    kinds = [kind for kind in vars(convlens._errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    for kind in kinds:
        if kind.__module__ == "convlens._errors":
            assert kind.__name__ in convlens.__all__
            assert kind.__name__ in tree
            assert issubclass(kind, convlens.Error)


def test_errors_survive_pickling():
    error = convlens.DeadlineExceeded("late", reason="R", metadata={"a": "b"}, request_id="i", retry_after=1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is convlens.DeadlineExceeded
    assert str(copy) == "late"
    assert vars(copy) == vars(error)


def _methods(client):
    return {name: value for name, value in vars(client).items() if not name.startswith("_") and callable(value)}


def test_both_clients_have_the_same_methods():
    sync, other = _methods(convlens.Client), _methods(convlens.AsyncClient)
    assert set(sync) == set(other)
    for name in sync:
        here, there = inspect.signature(sync[name]), inspect.signature(other[name])
        assert list(here.parameters) == list(there.parameters)
        assert [p.default for p in here.parameters.values()] == [p.default for p in there.parameters.values()]
    assert inspect.signature(convlens.Client) == inspect.signature(convlens.AsyncClient)


@pytest.mark.parametrize("name", convlens.__all__)
def test_everything_is_documented(name):
    item = getattr(convlens, name)
    if inspect.isclass(item):
        assert item.__doc__
        for method in _methods(item).values():
            assert method.__doc__


def test_type_checkers_know_what_is_wrong(tmp_path):
    """mypy, on a program of a user: the right lines pass, each wrong line fails."""
    program = textwrap.dedent("""
        from pathlib import Path

        import numpy as np
        import numpy.typing as npt
        import PIL.Image

        import convlens

        client = convlens.Client("localhost:1")
        one: convlens.Classification = client.classify("a.png", model="m", top_k=3)
        one = client.classify(Path("a.png"))
        one = client.classify(PIL.Image.new("L", (1, 1)))
        many: list[convlens.Classification] = client.classify([b"a", "b.png", np.zeros((1, 1), np.uint8)])
        array = client.classify(np.zeros((1, 1), np.uint8))
        for outcome in client.stream(Path("x").iterdir()):
            print(outcome.error, outcome.classification.label)
        maps: list[convlens.FeatureMap] = client.maps("a.png", layers="conv_1", dtype="uint8")
        unit: convlens.Explanation = client.explain("a.png", "conv_1", 3, 1, 2, model="m")
        if isinstance(unit.arithmetic, convlens.WeightedSum):
            print(unit.arithmetic.products.sum())
        client.attribute("a.png", method="grad_cam", overlay=True).plot().savefig("b.png")

        async def main() -> None:
            async with convlens.AsyncClient("localhost:1", tls=convlens.TLS("ca.pem")) as client:
                one: convlens.Classification = await client.classify("a.png")
                async for outcome in client.stream([b"a"]):
                    print(outcome.classification.label)

        floats: npt.NDArray[np.float32] = np.zeros((1, 1), np.float32)
        client.classify(7)  # wrong
        client.classify("a.png", topk=3)  # wrong
        client.classify(floats)  # wrong
        client.maps("a.png", dtype="int8")  # wrong
        client.explain(["a.png"], "conv_1", 3)  # wrong
        client.attribute("a.png", method="magic")  # wrong
        unit.arithmetic.products  # wrong
        convlens.Client(8001)  # wrong
        one.label = "b"  # wrong
        one = client.classify(["a.png"])  # wrong
        """)
    path = tmp_path / "program.py"
    path.write_text(program)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-incremental",
            "--no-error-summary",
            "--config-file=",
            str(path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"MYPYPATH": str(_PACKAGE)},
        check=False,
    )
    wrong = {i for i, line in enumerate(program.splitlines(), 1) if line.endswith("# wrong")}
    found = {int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error:" in line}
    assert found == wrong, result.stdout + result.stderr
