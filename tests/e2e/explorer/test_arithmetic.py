"""The page's own arithmetic: windows, their sizes, and convolutions between two answers of the server."""

from __future__ import annotations

import numpy as np

from visiting import Visit

RUN = """async ([map, size, kernel, geometry, output]) => {
    const { convolve } = await import("/explorer/js/arithmetic/convolve.js");
    const rows = convolve(Float32Array.from(map), size, Float32Array.from(kernel), geometry, output);
    let step = rows.next();
    while (!step.done) step = rows.next();
    return [...step.value];
}"""


def test_convolutions_of_any_geometry_are_those_of_numpy(visit: Visit) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=playground")
    random = np.random.default_rng(5)
    for _ in range(40):
        size, kernel, stride, dilation = (
            random.integers(low, high, 2) for low, high in ((1, 12), (1, 5), (1, 4), (1, 4))
        )
        padding = random.integers(0, 4, 4)
        span = (kernel - 1) * dilation + 1
        output = (size + padding[:2] + padding[2:] - span) // stride + 1
        if (output < 1).any():
            continue
        values = random.standard_normal(size).astype(np.float32)
        weights = random.standard_normal(kernel).astype(np.float32)
        padded = np.pad(values, ((padding[0], padding[2]), (padding[1], padding[3])))
        expected = np.zeros(output)
        for row, column in np.ndindex(*output):
            top, left = row * stride[0], column * stride[1]
            window = padded[top : top + span[0] : dilation[0], left : left + span[1] : dilation[1]]
            expected[row, column] = (window * weights).sum()
        geometry = {
            name: array.tolist()
            for name, array in zip(
                ("kernel", "stride", "padding", "dilation"), (kernel, stride, padding, dilation), strict=True
            )
        }
        arguments = [values.ravel().tolist(), size.tolist(), weights.ravel().tolist(), geometry, output.tolist()]
        np.testing.assert_allclose(page.evaluate(RUN, arguments), expected.ravel(), rtol=1e-4, atol=1e-5)


def test_numbers_are_written_with_a_true_minus(visit: Visit) -> None:
    page = visit.on("#model=tiny_vgg&image=espresso&view=playground")
    script = """async ([how, number, places]) => {
      const format = await import("/explorer/js/arithmetic/format.js");
      return format[how](number, places);
    }"""
    for how, number, places, text in (
        ("fixed", 1.005, 2, "1.00"),
        ("fixed", -0.004, 2, "0.00"),
        ("fixed", -3.14159, 3, "−3.142"),
        ("fixed", 12, 0, "12"),
        ("fixed", float("-inf"), 2, "−∞"),
        ("telling", -0.25, 4, "−0.2500"),
        ("telling", 0, 4, "0.0000"),
        ("telling", -4.3e-12, 4, "−4.3 × 10⁻¹²"),
        ("telling", float("nan"), 4, "NaN"),
        ("telling", float("inf"), 4, "∞"),
    ):
        assert page.evaluate(script, [how, number, places]) == text
