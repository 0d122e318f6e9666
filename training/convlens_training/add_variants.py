"""Adds variants to a version that was published without: `python -m convlens_training.add_variants`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convlens.manifest import PRECISIONS, file_name
from convlens_training import datasets, publication, variants
from convlens_training.errors import TrainingError
from convlens_training.recipes import ImageSize


def main(argv: Sequence[str] | None = None) -> int:
    """Makes a model file's variants, says what was measured, and puts those worth it beside the file.

    Returns:
        The exit status: 0 if a variant was added, 1 if not.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except TrainingError as error:
        print(f"add_variants: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    file: Path = arguments.file
    wanted = arguments.precision or PRECISIONS[1:]
    for precision in wanted:
        if (target := file.with_name(file_name(precision))).exists():
            raise TrainingError(f"{target} is there already: move it away, or publish another version")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror}; give a version's model.onnx") from None
    manifest = variants.manifest_of(content)
    image = manifest.input
    size = ImageSize(image.height, image.width, image.channels)
    dataset = datasets.load(arguments.data, size, arguments.data_root, arguments.seed)
    if dataset.labels != manifest.labels:
        raise TrainingError(
            f"--data {arguments.data} has the labels {', '.join(dataset.labels)}, but {file} has "
            f"{', '.join(manifest.labels)}: give the data that it was trained on"
        )
    made = variants.make_variants(
        content,
        dataset.train.images,
        dataset.test,
        max_drop=arguments.max_drop,
        threads=arguments.threads,
        precisions=wanted,
    )
    added = {file_name(variant.precision): variant.content for variant in made if variant.published}
    publication.add(added, file.parent)
    for variant in made:
        print(f"{variant.precision} {'published' if variant.published else 'not published'}: {variant.reason}")
        if variant.content:
            print(
                f"  same class first as float32 on {variant.label_agreement:.2%} of {len(dataset.test.images)} "
                f"held-out images; logits differ by at most {variant.max_logit_difference:.2g}; "
                f"{len(variant.content):,} bytes"
            )
    return 0 if added else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convlens_training.add_variants",
        description="Adds float16 and int8 variants to a published version.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the version's model.onnx")
    parser.add_argument("--data", required=True, help="what it was trained on, as for `convlens train`")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="as for `convlens train`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="that it was trained with (%(default)s)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS[1:], help="only this one; may be repeated")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=variants.MAX_DROP,
        metavar="POINTS",
        help="points of per cent of accuracy that a variant may lose (%(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU, for evaluation (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
