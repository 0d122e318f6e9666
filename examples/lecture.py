"""Walks through the lecture on convolutional networks, against a running server.

    ./scripts/serve                          # in another terminal
    .venv/bin/python examples/lecture.py     # prints the numbers, and writes the figures into lecture/

Each `# %%` is a cell: editors and Jupyter run it cell by cell, and show what stands in its last line. It needs
matplotlib: ./scripts/install plot. The server's address is $CONVLENS_SERVER, or localhost:8001; the figures' folder is
$LECTURE_FIGURES, or lecture.
"""

# ruff: noqa: B018 - a notebook's last line shows what it is

# %% The server, and a folder for the figures
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view

import convlens

figures = Path(os.environ.get("LECTURE_FIGURES") or "lecture")
figures.mkdir(parents=True, exist_ok=True)
client = convlens.Client(os.environ.get("CONVLENS_SERVER") or "localhost:8001")

# %% 1. A convolution by hand: a kernel slides over an image; at each place products are added up
image = np.array([[0, 1, 1, 0, 1]] * 5)
kernel = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1]])
windows = sliding_window_view(image, kernel.shape)
convolved = (windows * kernel).sum((2, 3))
print("image\n", image, "\nkernel\n", kernel, "\nconvolved\n", convolved)  # each row is 4 3 5

# %% 2. Max pooling: of each square of 2 × 2 the largest number stays
values = np.array(
    [
        [4, 8, 2, 1, 1, 3],
        [7, 1, 1, 2, 2, 6],
        [2, 2, 3, 8, 1, 9],
        [2, 2, 6, 2, 8, 4],
        [3, 2, 1, 2, 1, 8],
        [1, 1, 1, 3, 6, 1],
    ]
)
pooled = values.reshape(3, 2, 3, 2).max((1, 3))
print("pooled\n", pooled)  # 8 2 6 / 2 8 9 / 3 3 8

# %% Both as pictures
figure = Figure((9, 6), layout="constrained")
for place, (title, matrix) in enumerate(
    {"image": image, "kernel": kernel, "convolved": convolved, "values": values, "pooled": pooled}.items()
):
    axes = figure.add_subplot(2, 3, place + 1)
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=matrix.max() * 1.6)
    for (row, column), number in np.ndenumerate(matrix):
        axes.text(column, row, str(number), ha="center", va="center")
    axes.set_title(title)
    axes.set_axis_off()
figure.savefig(figures / "01_by_hand.png")
figure

# %% 3. The lecture's network: its layers, and how many values each has learnt
network = client.model("lecture_cnn")
for layer in network.layers:
    print(f"{layer.name:12} {layer.kind:10} {'×'.join(map(str, layer.shape)):>10} {layer.parameters:>10,}")
print(f"{'together':35}{network.parameters:>10,}")  # 320 + 18,496 + 1,179,776 + 1,290 = 1,199,882
network

# %% Where these numbers come from: weights, and one bias for each output channel or unit
for name in ("conv_1", "conv_2", "dense_1", "output"):
    kernels = client.kernels(name, "lecture_cnn")
    biases = 0 if kernels.bias is None else kernels.bias.size
    print(f"{name:8} {'×'.join(map(str, kernels.weights.shape)):>12} + {biases} = {kernels.weights.size + biases:,}")

# %% What convolution saves: a fully connected layer would connect each unit with each input
graph = client.graph("lecture_cnn")
for each in graph.layers:
    if each.layer.kind == "conv":
        print(
            f"{each.layer.name}: {each.input_units:,} inputs, {each.units:,} units, {each.connections:,} connections; "
            f"fully connected {each.dense_connections:,}"
        )

# %% 4. A digit, layer by layer
digits = {sample.name: sample.file for sample in client.samples("lecture_cnn")}
seven = digits["7"]
answer = client.classify(seven, "lecture_cnn")
print(f"the drawn 7 is a {answer.label}, says the network: {answer.score:.1%}")
client.maps(seven, "lecture_cnn", layers="conv_1")[0].plot().savefig(figures / "02_digit_conv_1.png")
client.maps(seven, "lecture_cnn", layers="max_pool_1")[0].plot().savefig(figures / "03_digit_max_pool_1.png")
answer

# %% One unit of the first layer, with the network's own numbers
unit = client.explain(seven, "conv_1", channel=0, row=8, column=14, model="lecture_cnn")
print(unit)
unit.plot().savefig(figures / "04_one_unit.png")
unit

# %% 5. Tiny VGG on an espresso
things = {sample.name: sample.file for sample in client.samples("tiny_vgg")}
espresso = things["espresso"]
answer = client.classify(espresso, "tiny_vgg", logits=True)
print(f"{answer.label}: {answer.score:.1%}")
for number, feature_map in enumerate(client.maps(espresso, "tiny_vgg", kinds=["conv", "max_pool"]), 5):
    feature_map.plot().savefig(figures / f"{number:02}_espresso_{feature_map.layer}.png")
answer

# %% From the last maps to the answer: what counts most for the class, and the softmax
for layer_name, file in (("output", "11_logit.png"), ("softmax", "12_softmax.png")):
    unit = client.explain(espresso, layer_name, channel=answer.index, model="tiny_vgg")
    print(unit)
    unit.plot().savefig(figures / file)

# %% Where in the image the answer comes from
where = client.attribute(espresso, "tiny_vgg", overlay=True)
where.plot().savefig(figures / "13_where_occlusion.png")
by_gradient = client.attribute(espresso, "tiny_vgg", method="grad_cam", overlay=True)
by_gradient.plot().savefig(figures / "14_where_grad_cam.png")
where

# %% Done
client.close()
