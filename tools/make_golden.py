"""Make tests/data/golden_extra with LeRobot 0.4.4's own code (a maintainer's script).

    benchmarks/rivals/lerobot/install.sh
    benchmarks/rivals/lerobot/.venv/bin/python tools/make_golden.py [--only CASE ...]

Settings that the main golden files do not cover, in the same sizes and layout. Weights are not
stored: `weights_<group>.json` lists names, shapes and dtypes, and the generator of the golden
README rebuilds them bit for bit. `--check FOLDER` runs the recorder on the main golden files
first, to show that the environment reproduces them.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "rivals" / "lerobot"))

import build  # noqa: E402  (installs the stand-ins that LeRobot's import needs)
import golden_capture as capture  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from golden_cases import CASES, FAILURES, Case  # noqa: E402
from lerobot.policies.smolvla import processor_smolvla  # noqa: E402
from lerobot.policies.utils import prepare_observation_for_inference  # noqa: E402
from lerobot.processor import tokenizer_processor  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
LIMIT_BYTES = 60_000


def tensor(name: str, center: float, amp: float, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(capture.fill(name, 1, center, amp, shape))


def make_weights(case: Case, raw: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    """The generated weights of the case's group, after writing (or checking) its manifest."""
    manifest = capture.manifest_of(build.make_policy(raw, case.vlm, "bfloat16"))
    path = out / f"weights_{case.group}.json"
    text = json.dumps(manifest, indent=0, separators=(",", ":")) + "\n"
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{case.name}: other tensors than {path.name}; give it a group of its own")
    path.write_text(text)
    return capture.generated_weights(manifest)


def make_policy(case: Case, raw: dict[str, Any], out: Path) -> Any:
    policy = build.make_policy(raw, case.vlm, "float32")
    weights = make_weights(case, raw, out)
    policy.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return policy.eval()


def model_inputs(case: Case) -> dict[str, torch.Tensor]:
    """`in.*` of a case that starts after the preprocessor."""
    inputs = {}
    for index, (height, width) in enumerate(case.image_sizes):
        shape = (1, *case.frames, 3, height, width)
        inputs[f"in.image.{index}"] = tensor(f"in.image.{index}", 0.5, 0.5, shape)
    inputs["in.state"] = tensor("in.state", 0.0, 1.5, (1, *case.frames, case.state_dim))
    vocabulary = case.vlm["text_config"]["vocab_size"]
    ids = tensor("in.lang_tokens", 0.5, 0.5, (1, case.language)) * (vocabulary - 16)
    inputs["in.lang_tokens"] = ids.to(torch.int64)
    inputs["in.lang_mask"] = torch.ones(1, case.language, dtype=torch.bool)
    inputs["in.noise"] = make_noise(case)
    if case.rtc and "prev_shape" in case.rtc:
        shape = (1, *case.rtc["prev_shape"])
        inputs["in.prev_chunk_left_over"] = tensor("in.prev_chunk_left_over", 0.0, 1.5, shape)
    return inputs


def make_noise(case: Case) -> torch.Tensor:
    shape = (1, case.overrides.get("chunk_size", 8), case.max_action_dim)
    return tensor("in.noise", 0.0, 3**0.5, shape)


def batch_of(case: Case, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        key: inputs[f"in.image.{index}"].clone() for index, key in enumerate(case.image_keys)
    }
    batch["observation.state"] = inputs["in.state"].clone()
    batch[TOKENS] = inputs["in.lang_tokens"]
    batch[TOKEN_MASK] = inputs["in.lang_mask"]
    return batch


def run_model_case(case: Case, policy: Any, recorder: capture.Recorder) -> None:
    inputs = model_inputs(case)
    for name, value in inputs.items():
        recorder.keep(name, value)
    guidance = {}
    if case.rtc:
        guidance = {k: v for k, v in case.rtc.items() if k != "prev_shape"}
        guidance["prev_chunk_left_over"] = inputs.get("in.prev_chunk_left_over")
    noise = inputs["in.noise"]
    if case.calls:
        for call in range(case.calls):
            action = policy.select_action(batch_of(case, inputs), noise=noise)
            recorder.keep(f"out.selected.{call}", action)
        return
    actions = policy.predict_action_chunk(batch_of(case, inputs), noise=noise, **guidance)
    recorder.keep("out.actions", actions)


def statistics(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Plausible statistics: mean/std, and ordered min < q01 < q10 < q90 < q99 < max."""
    result = {}
    for feature, width in (("observation.state", case.state_dim), ("action", case.action_dim)):
        low = capture.fill(f"{feature}.min", 1, -1.0, 0.4, (width,))
        span = capture.fill(f"{feature}.span", 1, 2.0, 0.8, (width,))
        result[feature] = {
            "mean": capture.fill(f"{feature}.mean", 1, case.mean, 0.2, (width,)),
            "std": capture.fill(f"{feature}.std", 1, 0.9, 0.3, (width,)),
            "min": low,
            "max": low + span,
        }
        for name, share in (("q01", 0.05), ("q10", 0.15), ("q90", 0.8), ("q99", 0.95)):
            result[feature][name] = low + np.float32(share) * span
    for key in case.image_keys:
        result[key] = {
            "mean": capture.fill(f"{key}.mean", 1, 0.5, 0.1, (3, 1, 1)),
            "std": capture.fill(f"{key}.std", 1, 0.25, 0.05, (3, 1, 1)),
        }
    return result


class LocalTokenizer:
    """Stands for transformers.AutoTokenizer: the stand-in tokenizer of the pipeline cases."""

    folder: Path

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PreTrainedTokenizerFast:
        path = str(cls.folder / "tokenizer.json")
        return PreTrainedTokenizerFast(
            tokenizer_file=path, pad_token="<|im_end|>", eos_token="<|im_end|>"
        )


def run_pipeline_case(case: Case, policy: Any, recorder: capture.Recorder, folder: Path) -> None:
    """uint8 frames, raw state and a task string in; robot units out."""
    tokenizer_processor.AutoTokenizer = LocalTokenizer
    before, after = processor_smolvla.make_smolvla_pre_post_processors(
        policy.config, statistics(case)
    )
    observation = {}
    for index, (key, size) in enumerate(zip(case.image_keys, case.image_sizes, strict=True)):
        values = tensor(f"in.image.{index}", 0.5, 0.5, (*size, 3))
        frame = (values * 255).round().to(torch.uint8)
        recorder.keep(f"in.image_u8.{index}", frame)
        observation[key] = frame.numpy()
    raw = tensor("in.raw_state", case.mean, 0.5, (case.state_dim,))
    recorder.keep("in.raw_state", raw[None])
    observation["observation.state"] = raw.numpy().copy()
    batch = before(
        prepare_observation_for_inference(observation, torch.device("cpu"), task=case.task)
    )
    recorder.keep("in.state", batch["observation.state"])
    recorder.keep("in.lang_tokens", batch[TOKENS])
    recorder.keep("in.lang_mask", batch[TOKEN_MASK])
    if case.overrides.get("normalization_mapping", {}).get("VISUAL", "IDENTITY") != "IDENTITY":
        for index, key in enumerate(case.image_keys):
            recorder.keep(f"in.image.{index}", batch[key])
    noise = make_noise(case)
    recorder.keep("in.noise", noise)
    actions = policy.predict_action_chunk(batch, noise=noise)
    recorder.keep("out.actions", actions)
    recorder.keep("out.actions_unnormalized", after(actions))
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    target = folder / "tokenizer"
    target.mkdir(exist_ok=True)
    for source in sorted(LocalTokenizer.folder.iterdir()):
        (target / source.name).write_bytes(source.read_bytes())


def make_case(case: Case, out: Path) -> dict[str, Any]:
    folder = out / case.name
    folder.mkdir(parents=True, exist_ok=True)
    raw = case.config()
    (folder / "config.json").write_text(json.dumps(raw, indent=4) + "\n")
    (folder / "vlm_config.json").write_text(json.dumps(case.vlm, indent=1) + "\n")
    policy = make_policy(case, raw, out)
    recorder = capture.Recorder(policy)
    if case.task is None:
        run_model_case(case, policy, recorder)
    else:
        run_pipeline_case(case, policy, recorder, folder)
    for value in recorder.tensors.values():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SystemExit(f"{case.name}: LeRobot made a non-finite value")
    path = folder / "golden.safetensors"
    save_file(dict(sorted(recorder.tensors.items())), path, metadata={"format": "pt"})
    for written in folder.rglob("*.safetensors"):
        written.chmod(0o644)  # safetensors writes files that only their owner may read
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{case.name}: {len(recorder.tensors)} tensors, {size} bytes", file=sys.stderr)
    if path.stat().st_size > LIMIT_BYTES:
        raise SystemExit(f"{case.name}: golden.safetensors is over {LIMIT_BYTES} bytes")
    valid = recorder.tensors["out.prefix_pad_masks"].sum(dim=1)
    entry = {
        "about": case.about,
        "weights": f"weights_{case.group}.json",
        "image_keys": list(case.image_keys),
        "overrides": case.overrides,
        "rtc": case.rtc,
        "vlm": case.vlm,
        "prefix_len": int(recorder.tensors["out.prefix_pad_masks"].shape[1]),
        "valid_prefix": valid.tolist(),
    }
    if case.task is not None:
        entry["task"] = case.task
    return entry


def observe_failure(case: Case) -> str:
    """What LeRobot says to a setting in which it fails."""
    try:
        policy = build.make_policy(case.config(), case.vlm, "float32").eval()
        guidance = {}
        inputs = model_inputs(case)
        if case.rtc:
            guidance = {k: v for k, v in case.rtc.items() if k != "prev_shape"}
            guidance["prev_chunk_left_over"] = inputs.get("in.prev_chunk_left_over")
        policy.predict_action_chunk(batch_of(case, inputs), noise=inputs["in.noise"], **guidance)
    except Exception as error:  # the kind of error is the observation
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return "ran"


def check(folder: Path) -> None:
    """Print the largest difference from the main golden files, over every tensor recorded."""
    index = json.loads((folder / "index.json").read_text())["variants"]
    for name, entry in index.items():
        raw = json.loads((folder / name / "config.json").read_text())
        golden = load_file(folder / name / "golden.safetensors")
        policy = build.make_policy(raw, entry["vlm"], "float32")
        policy.load_state_dict(load_file(folder / entry["weights"]), strict=True)
        recorder = capture.Recorder(policy.eval())
        batch: dict[str, Any] = {
            entry["image_keys"][int(key.rsplit(".", 1)[1])]: value
            for key, value in golden.items()
            if key.startswith("in.image.")
        }
        for camera in ast.literal_eval(entry["inputs"].get("masked", "()")):
            key = entry["image_keys"][camera]
            batch[f"{key}_padding_mask"] = torch.zeros(1, dtype=torch.bool)
        batch["observation.state"] = golden["in.state"]
        batch[TOKENS], batch[TOKEN_MASK] = golden["in.lang_tokens"], golden["in.lang_mask"]
        guidance = {k: v for k, v in (entry["rtc"] or {}).items() if k != "first"}
        if guidance and "in.prev_chunk_left_over" in golden:
            guidance["prev_chunk_left_over"] = golden["in.prev_chunk_left_over"]
        policy.predict_action_chunk(batch, noise=golden["in.noise"], **guidance)
        shared = [key for key in recorder.tensors if key in golden]
        worst = max((recorder.tensors[k].float() - golden[k].float()).abs().max() for k in shared)
        print(f"{name}: {len(shared)} tensors, largest difference {worst:.2e}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data" / "golden_extra")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "data" / "golden" / "tiny")
    parser.add_argument("--only", nargs="*", help="names of cases (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with --golden first")
    arguments = parser.parse_args()
    LocalTokenizer.folder = arguments.golden / "pipeline_u8" / "tokenizer"
    if arguments.check:
        check(arguments.golden)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {"variants": {}}
    for case in CASES:
        if not arguments.only or case.name in arguments.only:
            index["variants"][case.name] = make_case(case, arguments.out)
    index["reference_failures"] = {
        case.name: {
            "overrides": case.overrides,
            "rtc": case.rtc,
            "about": case.about,
            "result": observe_failure(case),
        }
        for case in FAILURES
    }
    index["made_with"] = build.versions()
    path.write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
