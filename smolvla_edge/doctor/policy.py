"""The policy that was named: is it complete and undamaged, and does everything about it fit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge.bundle import Bundle, is_bundle, read_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding, gib
from smolvla_edge.errors import (
    BundleError,
    CheckpointError,
    ContractError,
    MissingExtraError,
    PlanError,
    SmolVLAEdgeError,
    TokenizerError,
)
from smolvla_edge.presets import Preset, read_presets
from smolvla_edge.safetensors_file import TensorEntry
from smolvla_edge.tokenizer import TaskTokenizer
from smolvla_edge.tokenizer_search import missing_tokenizer

Progress = Callable[[int, int], None]

_TASK = "pick up the cube"
_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (BundleError, "copy the bundle again, or make it again with 'smolvla-edge convert'"),
    (
        ContractError,
        "give what does not fit with --rename or --stats; 'smolvla-edge inspect --help' explains "
        "both",
    ),
    (TokenizerError, "name the policy's own tokenizer.json with --tokenizer FILE"),
    (MissingExtraError, "pip install 'smolvla-edge[hub]', or download the folder and name it"),
    (CheckpointError, "copy or save the whole folder again, and name that folder"),
)


@dataclass(frozen=True)
class Opened:
    """A policy whose structure is sound; tensors are described, not loaded."""

    path: Path
    model: ModelConfig
    contract: Contract
    tensors: Mapping[str, TensorEntry]
    tokenizer_file: Path | None
    no_tokenizer: str  # why there is none
    bundle: Bundle | None


def open_policy(
    path: str,
    *,
    rename: Mapping[str, str] | None = None,
    tokenizer: Path | None = None,
    stats: str | None = None,
    revision: str | None = None,
    allow_unnormalized: bool = False,
) -> tuple[Opened | None, Finding]:
    """The policy, or None and the reason why it cannot run."""
    try:
        if is_bundle(path):
            opened = _open_bundle(path, rename, tokenizer, stats, revision)
        else:
            checkpoint = read_checkpoint(
                path,
                rename=rename,
                tokenizer=tokenizer,
                stats=stats,
                revision=revision,
                allow_unnormalized=allow_unnormalized,
            )
            why = missing_tokenizer(checkpoint.path, checkpoint.policy.vlm_model_name)
            opened = Opened(
                checkpoint.path,
                checkpoint.model,
                checkpoint.contract,
                checkpoint.tensors,
                checkpoint.tokenizer_file,
                str(why),
                None,
            )
    except (SmolVLAEdgeError, OSError) as cause:
        return None, _refused("policy", cause)
    kind = "bundle" if opened.bundle else "checkpoint (not converted to a bundle yet)"
    size = sum(entry.nbytes for entry in opened.tensors.values())
    cameras = list(opened.contract.robot_names().values())
    message = (
        f"{kind} {opened.path}: {len(opened.tensors)} tensors, {gib(size)}, complete; cameras "
        f"{', '.join(cameras)}; state {opened.contract.state_dim}, action "
        f"{opened.contract.action_dim}"
    )
    facts = {
        "path": str(opened.path),
        "kind": "bundle" if opened.bundle else "checkpoint",
        "digest": opened.bundle.digest if opened.bundle else None,
        "tensors": len(opened.tensors),
        "bytes": size,
        "cameras": cameras,
    }
    return opened, Finding("policy", "policy", PASS, message, facts=facts)


def _open_bundle(
    path: str,
    rename: Mapping[str, str] | None,
    tokenizer: Path | None,
    stats: str | None,
    revision: str | None,
) -> Opened:
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} was given, but {path} is a local bundle")
    bundle = read_bundle(path)
    contract = bundle.contract
    if rename is not None:
        contract = contract.with_rename(rename)
    if stats is not None:
        contract = contract.with_stats(stats)
    return Opened(
        bundle.path,
        bundle.model,
        contract,
        bundle.tensors,
        bundle.tokenizer_file if tokenizer is None else tokenizer,
        f"{bundle.path} holds no tokenizer.json",
        bundle,
    )


def _refused(check: str, cause: Exception, facts: Mapping[str, Any] | None = None) -> Finding:
    remedy = next(
        (text for kind, text in _REMEDIES if isinstance(cause, kind)),
        "check that the path exists and that this user may read it",
    )
    return Finding("policy", check, FAIL, str(cause), remedy, facts or {})


def check_files(bundle: Bundle, progress: Progress | None = None) -> Finding:
    """Every file against its SHA-256; of damaged weights, the tensors by name."""
    facts: dict[str, Any] = {"files": sorted(bundle.files)}
    try:
        bundle.verify_files(progress)
        bundle.verify_tensors()
    except (BundleError, OSError) as damage:
        message = str(damage)
        try:
            bundle.verify_tensors()
        except (BundleError, OSError) as tensors:
            message = str(tensors)
        return Finding("policy", "files", FAIL, message, _REMEDIES[0][1], facts)
    message = f"{', '.join(sorted(bundle.files))}: as they were written (SHA-256)"
    return Finding("policy", "files", PASS, message, facts=facts)


def check_normalization(contract: Contract) -> Finding:
    facts = {"unnormalized": list(contract.unnormalized)}
    if contract.unnormalized:
        return Finding(
            "policy",
            "normalisation",
            WARN,
            f"{', '.join(contract.unnormalized)} runs without statistics: the robot gets the "
            "model's own numbers",
            "convert again with --stats FILE, unless the policy was trained without normalisation",
            facts,
        )
    message = "statistics for state and action, finite and of the right width"
    return Finding("policy", "normalisation", PASS, message, facts=facts)


def check_tokenizer(policy: Opened) -> Finding:
    facts = {"file": None if policy.tokenizer_file is None else str(policy.tokenizer_file)}
    if policy.tokenizer_file is None:
        return Finding("policy", "tokenizer", FAIL, policy.no_tokenizer, _REMEDIES[2][1], facts)
    try:
        tokenizer = TaskTokenizer(
            policy.tokenizer_file, policy.contract.tokenizer, policy.model.vocab
        )
        encoded = tokenizer.encode(_TASK)
    except (SmolVLAEdgeError, OSError, ImportError) as cause:
        return _refused("tokenizer", cause, facts)
    limit = policy.contract.tokenizer.max_length
    message = f"{policy.tokenizer_file}: {_TASK!r} is {len(encoded.ids)} of {limit} tokens"
    if encoded.flags:
        return Finding(
            "policy",
            "tokenizer",
            WARN,
            f"{message}; {'; '.join(encoded.flags)}",
            "a policy's own tokenizer has a token for every letter: name it with --tokenizer FILE",
            facts,
        )
    return Finding("policy", "tokenizer", PASS, message, facts=facts)


def check_presets(bundle: Bundle, device: str) -> Finding:
    """Presets hold for the weights and the device that they were measured on."""
    facts: dict[str, Any] = {"device": device}
    try:
        presets = read_presets(bundle.path, bundle.digest)
    except (PlanError, OSError) as cause:
        return Finding(
            "policy",
            "presets",
            FAIL,
            str(cause),
            f"remove {bundle.path / 'presets.json'}; the plan 'exact' needs no preset",
            facts,
        )
    facts["presets"] = {name: _measured_on(preset) for name, preset in presets.items()}
    if not presets:
        message = "none: every call uses the exact plan unless a program says otherwise"
        return Finding("policy", "presets", PASS, message, facts=facts)
    here = [name for name, where in facts["presets"].items() if where == device]
    timeless = [name for name, where in facts["presets"].items() if where == _NO_TIMES]
    elsewhere = [
        f"{name} ({where or 'unmeasured'})"
        for name, where in facts["presets"].items()
        if where not in (device, _NO_TIMES)
    ]
    message = f"measured on this device ({device}): {', '.join(here) or 'none'}"
    if timeless:
        message += f"; its error measured, no times: {', '.join(timeless)}"
    if elsewhere:
        return Finding(
            "policy",
            "presets",
            WARN,
            f"{message}; elsewhere: {', '.join(elsewhere)}",
            "their times do not hold here: measure on this device, or use the plan 'exact'",
            facts,
        )
    return Finding("policy", "presets", PASS, message, facts=facts)


_NO_TIMES = "no times"


def _measured_on(preset: Preset) -> str | None:
    """The device of a preset's evidence, _NO_TIMES when it has errors alone (device null); None
    when it has none, or does not say."""
    evidence = preset.evidence or {}
    if "device" in evidence and evidence["device"] is None:
        return _NO_TIMES
    device = evidence.get("device")
    return device if isinstance(device, str) and device else None


def check_no_policy() -> Finding:
    """What can be said of tokenizers when no policy was named."""
    from smolvla_edge.policy_config import DEFAULT_VLM
    from smolvla_edge.tokenizer_search import find_tokenizer

    cached = find_tokenizer(Path("/nonexistent"), DEFAULT_VLM)
    where = (
        f"{DEFAULT_VLM}'s tokenizer is in the Hugging Face cache"
        if cached
        else f"{DEFAULT_VLM}'s tokenizer is not in the Hugging Face cache: a checkpoint without "
        "its own needs --tokenizer FILE"
    )
    message = f"none named: 'smolvla-edge doctor PATH' looks at one. {where}"
    return Finding("policy", "policy", PASS, message, facts={"tokenizer": cached and str(cached)})
