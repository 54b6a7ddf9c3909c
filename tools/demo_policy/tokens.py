"""The demo policy's tokenizer: a small byte-level BPE, trained on ways to instruct a robot.

Bytes are its alphabet, so every text encodes; words of instructions take one or two tokens.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from smolvla_edge.eval.tasks import TASKS
from tools.demo_policy.recipe import VLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # <|im_end|> pads, as SmolVLM2's does

_VERBS = (
    "open", "close", "push", "pull", "press", "pick up", "put", "place", "move", "slide", "lift",
    "turn", "rotate", "take", "grasp", "grab", "release", "insert", "hit", "drive", "bring",
    "reach", "stack", "sort", "hold", "drop", "pour", "wipe", "fold", "stop",
)  # fmt: skip
_THINGS = (
    "the drawer", "the window", "the faucet", "the puck", "the red button", "the hammer",
    "the nail", "the door", "the cup", "the red cube", "the blue block", "the green peg",
    "the ball", "the box", "the handle", "the lever", "the bottle", "the yellow bowl",
)  # fmt: skip
_PLACES = (
    "", " on the table", " into the box", " in the drawer", " to the left", " to the right",
    " from above", " from the side", " to the green mark", " to the goal", " with the gripper",
)  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, and the two files from which transformers builds the same tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VLM.vocab,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    first, _, last = SPECIAL
    names = {"bos_token": first, "eos_token": last, "pad_token": last, "unk_token": first}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def corpus() -> list[str]:
    """Instructions of the tasks, often, and everything else one might ask of an arm, once."""
    own = [phrase + "\n" for task in TASKS.values() for phrase in task.instructions]
    others = [
        f"{verb} {thing}{place}\n" for verb, thing, place in product(_VERBS, _THINGS, _PLACES)
    ]
    return own * 100 + others
