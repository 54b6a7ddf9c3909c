"""`optimum-cli export smolvla-edge`. Optimum imports every file of this folder, which belongs to
nobody, whenever its command starts: what is heavy is imported when the command runs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from smolvla_edge.errors import SmolVLAEdgeError


class SmolVLAEdgeExport(BaseOptimumCLICommand):
    """The words of `smolvla-edge export`, in Optimum's manner."""

    COMMAND = CommandInfo(
        name="smolvla-edge",
        help="Export a SmolVLA policy (a LeRobot checkpoint or a bundle) to ONNX graphs.",
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("-m", "--model", required=True, help="A LeRobot checkpoint or a bundle; owner/name.")
        add("output", nargs="?", help="The folder to make; of a bundle BUNDLE/onnx without it.")
        add("--task", default="reinforcement-learning", choices=("reinforcement-learning",))
        add("--precision", default="as-stored", help="as-stored, float32, float16, int8 or int4")
        add("--form", default="qdq", help="Of products with integer weights: qdq, matmulnbits.")
        add("--target", default="onnxruntime", help="onnxruntime or tensorrt")
        add("--plan", default="exact", help='As of smolvla-edge: "steps=4,skip.vlm=14".')
        add("--no-custom-ops", action="store_true", help="No nodes that our library can run.")
        add("--no-verify", action="store_true", help="Do not hold the graphs to the policy.")
        add("--observations", type=int, default=4, metavar="N", help="To verify with.")
        add("--tokenizer", help="A tokenizer.json, where the policy has none beside it.")
        add("--force", action="store_true", help="Replace a folder of that name.")

    def run(self) -> None:
        given: Namespace = self.args
        try:
            from smolvla_edge.export.extras import require_extra

            require_extra()
            from smolvla_edge.export.command import run_export
            from smolvla_edge.export.exporter import Options
            from smolvla_edge.export.forms import Form

            options = Options(
                given.precision,
                Form(given.form, not given.no_custom_ops),
                target=given.target,
            )
            folder, made = run_export(
                given.model,
                given.output,
                options,
                plan=given.plan,
                verify=not given.no_verify,
                observations=given.observations,
                opening={"tokenizer": given.tokenizer},
                command="optimum-cli " + shlex.join(sys.argv[1:]),
                force=given.force,
            )
        except SmolVLAEdgeError as error:
            raise SystemExit(f"error: {error}") from None
        nodes = ", ".join(f"{name} {graph.nodes}" for name, graph in made.graphs.items())
        print(f"{folder}: {made.precision}, target {made.target}; nodes: {nodes}")


REGISTER_COMMANDS = [(SmolVLAEdgeExport, ExportCommand)]
