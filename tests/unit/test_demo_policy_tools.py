"""The demo policy's own tools: data and training that can go on, a normal checkpoint."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from eval_helpers import arm_policy, need_simulator

from smolvla_edge.eval.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
torch = pytest.importorskip("torch")
pytest.importorskip("pyarrow")
if not (ROOT / "tools" / "demo_policy").is_dir():
    pytest.skip("the tests run outside of the source folder", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def tools():
    """tools/ as a package; last on the path, so that an installed smolvla_edge comes first."""
    sys.path.append(str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def data(tools, tmp_path_factory):
    from smolvla_edge.dataset import DatasetWriter
    from tools.demo_policy.generate import FEATURES
    from tools.demo_policy.recipe import CAMERA, ENVIRONMENT

    folder = tmp_path_factory.mktemp("demo") / "data"
    random = np.random.default_rng(0)
    with DatasetWriter(folder, 80, FEATURES) as writer:
        for task in ("open the drawer", "close the drawer", "push the puck to the green mark"):
            writer.add(
                {
                    CAMERA: random.integers(0, 256, (20, 128, 128, 3), np.uint8),
                    "observation.state": random.standard_normal((20, 4)),
                    ENVIRONMENT: random.standard_normal((20, 39)),
                    "action": random.uniform(-1, 1, (20, 4)),
                },
                task,
            )
    return folder


def train(data, work, *words):
    from tools.demo_policy.train import main

    # One thread: the products are small, and beside other processes two would wait for each other.
    before = torch.get_num_threads()
    main([str(data), str(work), "--batch", "2", "--device", "cpu", "--threads", "1", *words])
    torch.set_num_threads(before)


def test_the_network_has_the_shapes_it_was_made_for(tools):
    from tools.demo_policy.policy_files import model_config

    model = model_config()
    assert model.image_size // model.patch_size >= 16
    assert (model.image_size // model.patch_size // model.scale_factor) ** 2 >= 16
    assert min(model.vision_layers, model.text_layers, model.expert_layers) >= 6
    assert model.heads == 3 * model.kv_heads and model.expert_width % 32 != 0
    assert model.vision_width // model.vision_heads == model.head_dim == 64
    kinds = [model.is_self_layer(i) for i in range(model.text_layers)]
    assert kinds == [True, False] * 3


def test_an_interrupted_training_is_the_uninterrupted_one(data, tmp_path):
    from safetensors.numpy import load_file

    train(data, tmp_path / "whole", "--steps", "4")
    train(data, tmp_path / "parts", "--steps", "4", "--minutes", "0")  # ends after one step
    for _ in range(3):
        train(data, tmp_path / "parts", "--steps", "4", "--minutes", "0")
    whole, parts = (load_file(tmp_path / n / "state.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert np.array_equal(value, parts[name]), name


def test_what_is_saved_is_a_normal_checkpoint(data, tmp_path):
    import json

    import smolvla_edge
    from smolvla_edge.model import load_model
    from smolvla_edge.statistics import Mode

    train(data, tmp_path, "--steps", "2")
    policy = smolvla_edge.load(tmp_path / "policy")
    assert policy.contract.state.mode is Mode.MEAN_STD
    frame = np.zeros((128, 128, 3), np.uint8)
    state = np.zeros(4, np.float32)
    chunk = policy.predict({"observation.image": frame}, state, "do what was never said", seed=1)
    assert chunk.actions.shape == (16, 4) and not chunk.flags
    from safetensors.numpy import load_file

    average = load_file(tmp_path / "state.safetensors")
    checkpoint = smolvla_edge.read_checkpoint(tmp_path / "policy")
    model = load_model(checkpoint.model, checkpoint.tensors)
    for name, value in model.named_parameters():
        want = torch.from_numpy(average[f"average.{name}"])
        if checkpoint.tensors[name].dtype == "BF16":
            want = want.bfloat16().float()
        assert torch.equal(value.detach(), want), name
    log = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == []  # a line every 100 steps


def test_the_loss_is_the_reference_models(data, tmp_path, monkeypatch):
    """4 of 32 columns are real: with a weight of 28 / 4 the others count as in SmolVLA.loss."""
    from tools.demo_policy import batches
    from tools.demo_policy import train as training
    from tools.demo_policy.policy_files import statistics

    monkeypatch.setattr(training, "PAD_WEIGHT", 28 / 4)
    options = training.parse([str(data), str(tmp_path), "--device", "cpu"])
    loaded = batches.load(data, tmp_path, lambda *_: None)
    learner = training.begin(loaded, options)
    learner.model.float()
    stats = statistics(loaded)
    assert len(loaded.phrases) == 2 * len(loaded.tasks) <= 6
    tokens = torch.tensor([[3, 4, 5], [3, 6, 2], [7, 2, 2], [8, 4, 5], [8, 6, 2], [9, 2, 2]])
    mask = tokens != 2
    given = training.Conditions(loaded, stats, tokens, mask, "cpu")
    random = torch.Generator().manual_seed(5)
    _, batch = batches.draw(loaded, 3, random)
    flow, _ = training.loss_of(learner, batch, given, 1, torch.Generator().manual_seed(9))
    again = torch.Generator().manual_seed(9)
    noise = torch.randn((3, 16, 32), generator=again)
    time = torch.rand(3, generator=again) ** (1 / 1.5) * 0.999 + 0.001
    pad = torch.nn.functional.pad
    std = torch.from_numpy(stats["action.std"]) + 1e-8
    actions = (batch["actions"] - torch.from_numpy(stats["action.mean"])) / std
    state = batch["state"] - torch.from_numpy(stats["observation.state.mean"])
    state = state / (torch.from_numpy(stats["observation.state.std"]) + 1e-8)
    model_batch = {
        "pixels": batch["pixels"][None],
        "camera_mask": torch.ones(3, 1, dtype=torch.bool),
        "tokens": tokens[batch["words"]],
        "token_mask": mask[batch["words"]],
        "state": pad(state, (0, 28)),
        "actions": actions,
        "action_is_pad": batch["is_pad"],
    }
    whole = learner.model.loss(model_batch, noise, time)  # mean over 4 real and 28 padded columns
    # Two means in place of one, of the same float32 squares.
    assert flow.item() == pytest.approx(32 / 4 * whole.item(), rel=1e-5)


def test_an_augmented_frame_is_the_frame_moved_and_recoloured(tools):
    from tools.demo_policy.batches import COLOUR, SHIFT, augment

    frame = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    frame[:, :, 10, 20] = 200
    places = set()
    for seed in range(40):
        out = augment(frame, torch.Generator().manual_seed(seed))
        assert out.shape == frame.shape and out.min() >= -1 and out.max() <= 1
        y, x = divmod(int(out[0, 0].argmax()), 32)
        places.add((y - 10, x - 20))
        value = (float(out[0, 1, y, x]) + 1) / 2
        assert (1 - COLOUR) ** 3 * 0.7 < value / (200 / 255) < (1 + COLOUR) ** 3 * 1.1
    assert max(max(map(abs, place)) for place in places) == SHIFT and len(places) > 20


def test_every_prompt_encodes(tools, tmp_path):
    from tokenizers import Tokenizer

    from smolvla_edge.eval.tasks import TASKS
    from tools.demo_policy.recipe import CONFIG, VLM
    from tools.demo_policy.tokens import write_tokenizer

    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert 256 + 3 < tokenizer.get_vocab_size() <= VLM.vocab
    limit = CONFIG["tokenizer_max_length"]
    for task in TASKS.values():
        for phrase in task.instructions:
            assert len(tokenizer.encode(phrase + "\n").ids) <= limit // 2
    for text in ("hit it\n", "Öffne die Schublade\n", "打开抽屉\n", "🙂"):
        ids = tokenizer.encode(text).ids
        assert ids and tokenizer.decode(ids, skip_special_tokens=False) == text
    first = (tmp_path / "tokenizer.json").read_text()
    write_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == first


def test_the_tables_say_what_was_played(tools):
    from smolvla_edge.eval.episode import EpisodeResult
    from smolvla_edge.eval.summary import compare, summarize
    from tools.demo_policy import tables

    def played(*failed):
        return [
            EpisodeResult(
                task, seed, (task, seed) not in failed, 40 + seed, 2, 0.2, 0.1, (3.0, 5.0)
            )
            for task in ("push", "hammer")
            for seed in range(60)
        ]

    exact, worse = played(("push", 3)), played(("push", 4), ("push", 3), ("hammer", 9))
    names = [f"n_action_steps {n}" for n in (4, 16)]
    names += [f"{bits}-bit weights, n_action_steps {n}" for bits in (8, 4, 3, 2)
              for n in (4, 8, 16)]  # fmt: skip
    line = {**summarize(worse), "against_base": compare(exact, worse)}
    side = {"n_action_steps": 8, "steps": 10}
    lines = {"exact": {**summarize(exact), "against_base": None, "side": side},
             "blank picture": line}  # fmt: skip
    text = tables.render({**lines, **dict.fromkeys(names, line)})
    assert "| push | 59 of 60 | 91% to 100% | 70 | 97% |" in text
    assert "| mean | **99.2%** (119 of 120) | 95% to 100% | 70 | 97.5% |" in text
    assert "| n_action_steps 4 | 97.5% | -1.7% (" in text and ") | 2 / 0 | 0.5 | 4.0 | 0.2" in text
    assert text.count("bits | 97.5%, -1.7% (") == 4 and "planned anew every 8 actions" in text
    assert "exact: n_action_steps 8, 10 denoise steps" in text and "n_action_steps 8 |" not in text
    small = tables.render(lines)
    assert "bits |" not in small and "n_action_steps 4 |" not in small
    nothing = played(*((task, seed) for task in ("push", "hammer") for seed in range(60)))
    lines["exact"] |= summarize([replace(r, inner_jump=None) for r in nothing])
    assert "| push | 0 of 60 | 0% to 6% | - | 97% |" in tables.render(lines)
    assert "0.200 / - |" in tables.render(lines)


def test_lines_of_plans_go_on_and_compare_what_both_played(tools, data, tmp_path, monkeypatch):
    need_simulator()
    from smolvla_edge.eval.runner import Setting
    from tools.demo_policy import plans

    policy = str(arm_policy(tmp_path / "policy", n_action_steps=4))
    short = partial(Setting, 64, 64, step_limit=12)
    monkeypatch.setattr(plans, "Setting", short)
    monkeypatch.setattr(plans, "TASKS", {name: TASKS[name] for name in ("push", "hammer")})
    monkeypatch.setattr(plans, "LINES", ("horizon=4,steps=1", "horizon=4,steps=2"))
    out = tmp_path / "out"
    start = [policy, str(out), "--workers", "1", "--episodes"]
    plans.main([*start, "2", "--only", "steps=1"])
    assert sorted(f.name for f in out.glob("*.jsonl")) == [
        "horizon=4.jsonl", "horizon=4_steps=1.jsonl"
    ]  # fmt: skip
    more = "horizon=4,cache.threshold=0.5"
    measured = ["--data", str(data), "--streams", "2"]
    plans.main([*start, "3", "--only", "nothing", "--plan", more, *measured])
    found = json.loads((out / "plans.json").read_text())
    pairs = {words: line["against_base"] for words, line in found.items()}
    assert pairs["horizon=4"] is None
    assert pairs["horizon=4,steps=1"]["pairs"] == 4 and pairs[more]["pairs"] == 6
    table = (out / "plans.md").read_text()
    # Fewer are asked for now: what was played more of keeps its pairs; half a line waits.
    part = (out / "horizon=4.jsonl").read_text().splitlines()[:2]
    (out / "horizon=4_steps=2.jsonl").write_text("\n".join(part) + "\n")
    plans.main([*start, "1", "--only", "nothing", *measured])
    kept = json.loads((out / "plans.json").read_text())
    pytest.importorskip("matplotlib")
    from tools.demo_policy import plans_picture

    pictures = [tmp_path / name for name in ("a.svg", "b.svg")]
    for picture in pictures:
        plans_picture.main([str(out / "plans.json"), str(picture)])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert "token cache" not in pictures[0].read_text()  # of the lines that are there alone
    assert {w: line["all"]["n"] for w, line in kept.items()} == {
        "horizon=4": 6, "horizon=4,steps=1": 4
    }  # fmt: skip
    errors = [line["open_loop"]["rms_of_range"] for line in found.values()]
    assert errors[0] == 0 < min(errors[1:])
    work = [line["open_loop"]["work"] for line in found.values()]
    assert max(work) < 1 and work[0] == max(work)
    assert "| `horizon=4,steps=1` | 0% | +0.0% (" in table and "| 4 | 1.0 | 100 % |" in table
    assert f"`{more}`" in table and "steps=2" not in table


def test_demonstrations_go_on_and_are_the_same(tools, tmp_path):
    need_simulator()
    from smolvla_edge.dataset import read_dataset
    from tools.demo_policy.generate import main

    words = ["--tasks", "faucet-open", "--workers", "1"]
    main([str(tmp_path / "a"), *words, "--demonstrations", "2"])
    main([str(tmp_path / "b"), *words, "--demonstrations", "1"])
    main([str(tmp_path / "b"), *words, "--demonstrations", "2"])
    a, b = read_dataset(tmp_path / "a"), read_dataset(tmp_path / "b")
    assert a.info.frames == b.info.frames and len(a.episodes) == len(b.episodes) == 2
    for episode in range(2):
        for one, other in zip(a.frames(episode), b.frames(episode), strict=True):
            assert np.array_equal(
                one.images["observation.image"], other.images["observation.image"]
            )
            assert np.array_equal(one.action, other.action) and one.task == other.task
    log = (tmp_path / "a" / "meta" / "demonstrations.jsonl").read_text()
    assert log == (tmp_path / "b" / "meta" / "demonstrations.jsonl").read_text()


def test_a_policy_begins_and_the_expert_ends(tools, tmp_path):
    """After the ordinary ones, in layouts of their own; what is recorded is the expert's."""
    need_simulator()
    import json

    from smolvla_edge.dataset import read_dataset
    from tools.demo_policy.generate import demonstrate, main

    policy = ROOT / "smolvla_edge" / "assets" / "demo_policy"
    words = ["--tasks", "button-press", "--workers", "1", "--demonstrations", "1"]
    main([str(tmp_path), *words])
    main([str(tmp_path), *words, "--policy", str(policy)])
    log = (tmp_path / "meta" / "demonstrations.jsonl").read_text()
    main([str(tmp_path), *words])  # nothing is missing
    assert (tmp_path / "meta" / "demonstrations.jsonl").read_text() == log
    alone, steered = map(json.loads, log.splitlines())
    assert steered["style"] == "steered" and alone["style"] != "steered"
    assert steered["seed"] - alone["seed"] >= 5000 - 10
    recorded = read_dataset(tmp_path)
    assert recorded.info.frames == alone["frames"] + steered["frames"]
    again = demonstrate(("button-press", steered["seed"], str(policy)))
    expert = demonstrate(("button-press", steered["seed"], None))
    states = [np.array(x.rows["observation.state"]) for x in (again, expert)]
    kept = np.array([frame.state for frame in recorded.frames(1)])
    assert np.array_equal(kept, states[0])
    assert not np.array_equal(states[0][:10], states[1][:10])
    # The policy's actions moved the hand; the expert's are what is recorded.
    from metaworld.policies import ENV_POLICY_MAP

    oracle = ENV_POLICY_MAP["button-press-topdown-v3"]()
    for seen, action in zip(again.rows["observation.environment_state"], again.rows["action"],
                            strict=True):  # fmt: skip
        want = np.clip(oracle.get_action(seen.astype(np.float64)), -1, 1)
        assert action == pytest.approx(want, abs=1e-5)


def test_only_solved_episodes_are_kept(tools, tmp_path, monkeypatch):
    import json
    from types import SimpleNamespace

    from smolvla_edge.dataset import read_dataset
    from tools.demo_policy import generate

    class Here:
        """A pool of this process."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap(self, function, jobs):
            return map(generate.demonstrate, jobs)

        def terminate(self):
            pass

    def demonstrate(job):
        task, seed, _ = job
        rows = {
            "observation.image": [np.zeros((128, 128, 3), np.uint8)] * 3,
            "observation.state": [np.zeros(4)] * 3,
            "observation.environment_state": [np.zeros(39)] * 3,
            "action": [np.zeros(4)] * 3,
        }
        return generate.Demonstration(task, seed, "clean", rows, solved=seed % 2 == 0)

    monkeypatch.setattr(generate, "demonstrate", demonstrate)
    here = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=lambda _: Here()))
    monkeypatch.setattr(generate, "multiprocessing", here)
    words = [str(tmp_path), "--tasks", "push", "--demonstrations", "3"]
    generate.main(words)
    log = (tmp_path / "meta" / "demonstrations.jsonl").read_text().splitlines()
    first = generate.first_seed("push")
    assert [json.loads(x)["seed"] for x in log] == [first, first + 2, first + 4]
    assert len(read_dataset(tmp_path).episodes) == 3
    # Episodes of another layout are not taken for these.
    monkeypatch.setitem(generate.TASKS, "push", replace(generate.TASKS["push"], marked=False))
    with pytest.raises(SystemExit, match="of other layouts"):
        generate.main([*words[:-1], "4"])


def test_a_finished_training_is_left_as_it_is(data, tmp_path):
    train(data, tmp_path, "--steps", "1")
    config = tmp_path / "policy" / "config.json"
    config.unlink()  # whoever writes the policy anew would bring it back
    train(data, tmp_path, "--steps", "1")
    assert not config.exists()


def test_the_benchmark_can_fail(tools, tmp_path):
    """The shipped policy's weights in another order solve none of what it solves."""
    need_simulator()
    from smolvla_edge.eval.runner import Setting, evaluate
    from smolvla_edge.eval.sides import Side
    from tools.demo_policy.study import changed, shuffled

    policy = ROOT / "smolvla_edge" / "assets" / "demo_policy"
    jobs = [(task, seed) for task in ("button-press", "drawer-open") for seed in range(3)]
    exact = evaluate(Side(str(policy)), jobs, Setting())
    assert sum(result.success for result in exact) >= 5
    copy = changed(policy, tmp_path / "shuffled", shuffled)
    assert not any(result.success for result in evaluate(Side(str(copy)), jobs, Setting()))


def test_weights_are_rounded_to_as_many_bits_as_said(tools):
    from tools.demo_policy.study import rounded

    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    for bits, values in ((8, 255), (4, 15), (3, 7), (2, 3)):
        row = rounded(bits)("expert.layers.0.mlp.up.weight", weight)[0]
        assert len(np.unique(row)) <= values and np.abs(row).max() == pytest.approx(
            np.abs(weight[0]).max()
        )
    norm = weight[0]
    assert rounded(2)("expert.layers.0.norm1.weight", norm) is norm
    assert rounded(2)("action_in.weight", weight) is weight


def test_what_needs_no_eyes_is_estimated(tools, monkeypatch, capsys):
    """Enough data and steps to run through; the estimate itself is docs/evaluation.md's."""
    need_simulator()
    from tools.demo_policy import blind

    monkeypatch.setattr(blind, "DEMONSTRATIONS", 2)
    monkeypatch.setattr(blind, "STEPS", 5)
    blind.main(["--tasks", "button-front", "--episodes", "2"])
    assert capsys.readouterr().out.split() == ["button-front", "0", "of", "2"]
    steps = []

    class World:
        state = np.zeros(4, np.float32)

        def reset(self, seed):
            pass

        def step(self, action):
            steps.append(action)
            return False

    assert not blind.play(World(), 0, lambda state: np.zeros((16, 4)))
    assert len(steps) == blind.STEP_LIMIT
