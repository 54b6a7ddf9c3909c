"""Whether a plan fits a policy: its layers, cameras and left-overs exist there."""

from __future__ import annotations

from smolvla_edge.config import ModelConfig
from smolvla_edge.config_fields import ONE_STEP
from smolvla_edge.contract import Contract
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, Plan


def check_fit(plan: Plan, model: ModelConfig, contract: Contract) -> None:
    """Raises PlanError for layers, rows or cameras that the policy does not have, and for a warm
    start where what is left of the last chunk serves something else or is of another space."""
    plan.rows(model.chunk_size)
    if model.flow_kind == ONE_STEP:
        _check_one_step(plan)
    if plan.exit is not None and plan.exit not in model.exits:
        declared = ", ".join(map(str, model.exits)) or "none"
        raise PlanError(
            f"exit={plan.exit}: expected an exit that the checkpoint declares, because others give "
            f"no actions; it declares {declared}. Remove exit from the plan"
        )
    counts = {
        "vision": model.vision_layers,
        "vlm": model.text_layers,
        "expert": model.expert_layers,
    }
    named = [(f"skip.{part}", getattr(plan.skip, part), counts[part]) for part in PARTS]
    named += [
        (f"skip.reuse[{k}]", layers, counts["expert"]) for k, layers in enumerate(plan.skip.reuse)
    ]
    for where, layers, count in named:
        if layers and layers[-1] >= count:
            raise PlanError(f"{where}: layer {layers[-1]} of {count}; they are counted from 0")
    if plan.cache is not None and plan.cache.attended and not model.cross_expert_layers():
        raise PlanError(
            "cache.attended needs an expert with cross-attention layers, and this one has none; "
            "remove it from the plan"
        )
    if plan.cache is not None and plan.cache.cameras is not None:
        unknown = [name for name in plan.cache.cameras if name not in contract.cameras]
        if unknown:
            raise PlanError(
                f"cache.cameras: unknown {', '.join(map(repr, unknown))}; the model's cameras are "
                f"{', '.join(contract.cameras)}"
            )
    if plan.warm_start is not None and contract.rtc.enabled:
        raise PlanError(
            "warm_start and real-time chunking (rtc_config.enabled is true) would both use what is "
            "left of the last chunk; remove warm_start from the plan"
        )
    if plan.warm_start is not None and model.adapt_to_pi_aloha:
        raise PlanError(
            "warm_start needs chunks as the flow made them, and this policy (adapt_to_pi_aloha) "
            "converts them to the robot's joints; remove warm_start from the plan"
        )


def _check_one_step(plan: Plan) -> None:
    """What goes on where a velocity ends: in one that was distilled nothing is to be integrated."""
    asked = {
        f"steps={plan.steps}": plan.steps != 1,
        f"solver={plan.solver}": plan.solver != "euler",
        "schedule": plan.schedule is not None,
        "adaptive": plan.adaptive is not None,
        "stop": plan.stop is not None,
        "warm_start": plan.warm_start is not None,
        "skip.reuse": bool(plan.skip.reuse),
    }
    given = [name for name, there in asked.items() if there]
    if given:
        raise PlanError(
            "this checkpoint declares flow.kind one_step: it was distilled so that one Euler step "
            f"from noise gives the chunk, and means nothing in between. Expected steps=1, got "
            f"{', '.join(given)}; remove it from the plan"
        )
