"""Commands that write a run for other machines."""

from __future__ import annotations

import argparse

from polyrec.cli.flags import Commands


def add_export(commands: Commands) -> None:
    """`polyrec export`."""
    export = commands.add_parser(
        "export",
        help="write a run as graphs for onnxruntime or torch, and compare them with the model",
        description="Writes graphs, the encoded items, a manifest and a runner that needs numpy and onnxruntime alone, "
        "and reports head by head how far graphs and model lie apart on windows of the test set.",
    )
    export.add_argument("run_folder", metavar="RUN", help="folder of a saved model and processor")
    export.add_argument(
        "--format",
        choices=["onnx", "torch"],
        default="onnx",
        dest="form",
        help="onnx (default), or torch: .pt2 files of torch.export, which stay on this machine",
    )
    export.add_argument("--int8", action="store_true", help="quantize weights to int8 first")
    export.add_argument("--output", metavar="DIR", help="(default: onnx or torch in RUN; `push` shares RUN/onnx)")
    export.add_argument("--windows", type=int, default=1000, metavar="N", help="windows to compare by (default: 1000)")
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from polyrec.serving.export_run import export_run

    export_run(options.run_folder, options.form, options.int8, options.output, options.windows)
