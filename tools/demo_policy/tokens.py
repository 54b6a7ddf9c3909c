"""The demo policy's tokenizer: a small byte-level BPE, trained on ways to instruct a robot.

Bytes are its alphabet, so every text encodes; words of instructions take one or two tokens.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from tools.demo_policy.recipe import VLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # <|im_end|> pads, as SmolVLM2's does

# What the tasks were told when the tokenizer was made. Weights know its numbers, so it stays when
# tasks change.
_FREQUENT = (
    "open the drawer", "pull the drawer open", "slide the drawer out",
    "close the drawer", "push the drawer shut", "slide the drawer in",
    "open the window", "slide the window open", "push the window handle to the right",
    "close the window", "slide the window shut", "push the window handle to the left",
    "open the faucet", "turn the faucet on", "rotate the faucet counterclockwise",
    "close the faucet", "turn the faucet off", "rotate the faucet clockwise",
    "push the puck to the green mark", "slide the puck to the goal on the table",
    "lift the puck to the blue mark", "pick up the puck and bring it to the goal",
    "push the red button from above", "press the button down", "press the red button",
    "hammer in the nail", "hit the nail with the hammer", "drive the nail into the block",
)  # fmt: skip
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
    """Instructions of tasks, often, and everything else one might ask of an arm, once."""
    own = [phrase + "\n" for phrase in _FREQUENT]
    others = [
        f"{verb} {thing}{place}\n" for verb, thing, place in product(_VERBS, _THINGS, _PLACES)
    ]
    return own * 100 + others
