"""SmolVLA put together: parameters, inference and training loss.

    images -> vision -> connector ┐
    language tokens -> text.embed ┼-> text layers -> keys and values ┐
    state -> state_in             ┘                                  ↓
    noise -> action_in, time_in, time_out -> expert layers -> action_out -> velocity, N times

Parameter names are the canonical ones of smolvla_edge/names.py, so that `state_dict()` is what a
bundle stores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.model.expert import Expert
from smolvla_edge.model.flow import time_embedding
from smolvla_edge.model.layers import Linear, Record, ignore
from smolvla_edge.model.prefix import Cache, TextModel, embed_prefix
from smolvla_edge.model.solver import solve
from smolvla_edge.model.vision import KeptKeys, VisionTower, block_rows, pixel_shuffle
from smolvla_edge.plan import Plan, Skip
from smolvla_edge.rtc import Guidance

_SKIP_NOTHING = Skip()


class SmolVLA(nn.Module):
    """The whole model, in the space of normalised states and actions.

    `dead` adds the parameters that never reach an action (see TextModel). `prefix_length` pads the
    prefix to a length as LeRobot does; it changes intermediates, never the actions.

    It is written to be read and to be compared with: nothing is folded, masked tokens are computed
    and masked out, cross-attention keys are projected anew in every step; nothing is skipped but
    what a plan says.
    """

    def __init__(self, config: ModelConfig, dead: bool = False, prefix_length: int = 0):
        super().__init__()
        self.config = config
        self.prefix_length = prefix_length
        tokens_in = config.vision_width * config.scale_factor**2
        width, inner = config.text_width, config.expert_width
        self.vision = VisionTower(config)
        self.connector = Linear(tokens_in, width, bias=False)
        self.text = TextModel(config, dead)
        self.expert = Expert(config)
        self.state_in = Linear(config.max_state_dim, width)
        self.action_in = Linear(config.max_action_dim, inner)
        self.time_in = Linear(2 * inner, inner)
        self.time_out = Linear(inner, inner)
        self.action_out = Linear(inner, config.max_action_dim)

    def encode_image(
        self,
        pixels: Tensor,
        record: Record = ignore,
        index: int = 0,
        skip: Collection[int] = (),
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """pixels [B, 3, H, W] in [-1,1] -> image tokens [B, t, text_width], not yet scaled."""
        patches = self.vision(pixels, record, index, skip, kept)
        tokens = self.connector(pixel_shuffle(patches, self.config.scale_factor))
        record(f"out.connector.{index}", tokens)
        return tokens

    def encode_blocks(
        self, pixels: Tensor, blocks: Tensor, kept: KeptKeys, skip: Collection[int] = ()
    ) -> Tensor:
        """Some of the image tokens, `blocks` [m] int64 -> [B, m, text_width].

        The other patches are as they were when `kept` was filled by `encode_image`, and in calls of
        this method since.
        """
        side = pixels.shape[3] // self.config.patch_size
        rows = block_rows(blocks, side, self.config.scale_factor)
        patches = self.vision(pixels, skip=skip, kept=kept, rows=rows)
        return self.connector(patches.unflatten(1, (len(blocks), -1)).flatten(2))

    def prefill(
        self,
        image_tokens: Sequence[Tensor],
        camera_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor,
        record: Record = ignore,
        skip: Collection[int] = (),
        exit: int | None = None,
    ) -> Cache:
        """Keys and values of the prefix. Shapes as in `prefix.embed_prefix`; of the first `exit`
        layers alone where it is given."""
        prefix = embed_prefix(
            self.config,
            self.text.embed,
            self.state_in,
            image_tokens,
            camera_mask,
            tokens,
            token_mask,
            state,
            self.prefix_length,
        )
        record("out.prefix_embs", prefix.embeddings)
        record("out.prefix_pad_masks", prefix.valid)
        record("out.prefix_att_masks", prefix.block.expand(prefix.valid.shape))
        return self.text(prefix, record, skip, exit)

    def velocity(
        self,
        x: Tensor,
        time: Tensor,
        cache: Cache,
        record: Record = ignore,
        step: int = 0,
        skip: Skip = _SKIP_NOTHING,
        added: dict[int, Tensor] | None = None,
        looks: list[Tensor] | None = None,
    ) -> Tensor:
        """dx/dtime at x [B, h, max_action_dim] float32 and time [B] -> float32, as x.

        added: of skip.reuse, see Expert; empty before the first step.  looks: what it held is
        replaced by what this evaluation looks at, see ExpertLayer.
        """
        if looks is not None:
            looks.clear()
        config = self.config
        action = self.action_in(x)
        moment = time_embedding(time, config.expert_width, config.min_period, config.max_period)
        moment = moment.to(action.dtype)[:, None].expand_as(action)
        tokens = self.time_out(F.silu(self.time_in(torch.cat((action, moment), 2))))
        record(f"mid.suffix_embs.step{step}", tokens)
        features = self.expert(
            tokens,
            cache,
            record if step == 0 else ignore,
            skip.expert,
            skip.reuse[step] if skip.reuse else (),
            added,
            looks,
        )
        return self.action_out(features.float()).float()

    @torch.no_grad()
    def denoise(
        self,
        noise: Tensor,
        cache: Cache,
        plan: Plan | None = None,
        guidance: Guidance | None = None,
        record: Record = ignore,
        looks: list[Tensor] | None = None,
    ) -> tuple[Tensor, int]:
        """noise [B, h, max_action_dim] float32, h <= chunk_size -> actions, all dimensions, and how
        often the velocity was evaluated. Without a plan as the checkpoint says. looks: what the
        last evaluation looked at, see `velocity`."""
        plan = plan or Plan.exact(self.config.num_steps)
        added: dict[int, Tensor] | None = {} if plan.skip.reuse else None
        return solve(
            lambda x, time, step: self.velocity(
                x, time, cache, record, step, plan.skip, added, looks
            ),
            noise,
            plan,
            self.config.chunk_size,
            self.config.action_dim,
            guidance,
            record,
        )

    @torch.no_grad()
    def sample_actions(
        self,
        pixels: Sequence[Tensor],
        camera_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor,
        noise: Tensor,
        plan: Plan | None = None,
        guidance: Guidance | None = None,
        record: Record = ignore,
    ) -> Tensor:
        """A chunk of normalised actions [B, h, max_action_dim] float32.

        pixels: per camera [B, 3, H, W] in [-1,1]; camera_mask [B, cameras] bool; tokens int64 and
        token_mask bool [B, L]; state [B, max_state_dim], normalised and zero-padded; noise
        [B, h, max_action_dim]. The first h actions do not depend on how many follow. Of a plan all
        but the cache and the horizon, which are the caller's.
        """
        skip, exit = (_SKIP_NOTHING, None) if plan is None else (plan.skip, plan.exit)
        images = []
        for i, image in enumerate(pixels):
            record(f"mid.pixels.{i}", image)
            images.append(self.encode_image(image, record, i, skip.vision))
        cache = self.prefill(images, camera_mask, tokens, token_mask, state, record, skip.vlm, exit)
        actions, _ = self.denoise(noise, cache, plan, guidance, record)
        record("out.actions_padded", actions)
        record("out.actions", actions[..., : self.config.action_dim])
        return actions

    def loss(
        self, batch: Mapping[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None
    ) -> Tensor:
        """Flow-matching loss of a batch -> scalar.

        batch: "pixels" [cameras, B, 3, H, W], "camera_mask", "tokens", "token_mask", "state" as in
        `sample_actions`; "actions" [B, chunk_size, <= max_action_dim] normalised; optionally
        "action_is_pad" [B, chunk_size] bool, true past the end of an episode (no loss there).

        Padded action dimensions count: inference integrates noise in them too and feeds it back, so
        the model must learn to bring them to 0. This is LeRobot's loss, value for value.
        """
        config = self.config
        actions = F.pad(batch["actions"], (0, config.max_action_dim - batch["actions"].shape[2]))
        if noise is None:
            noise = torch.randn_like(actions)
        if time is None:
            time = self.sample_time(actions.shape[0]).to(actions.device)
        moment = time[:, None, None]
        x = moment * noise + (1 - moment) * actions
        images = [self.encode_image(image) for image in batch["pixels"]]
        cache = self.prefill(
            images, batch["camera_mask"], batch["tokens"], batch["token_mask"], batch["state"]
        )
        error = (self.velocity(x, time, cache) - (noise - actions)) ** 2
        if "action_is_pad" in batch:
            error = error * ~batch["action_is_pad"][..., None]
        return error.mean()

    @staticmethod
    def sample_time(count: int) -> Tensor:
        """Training times -> [count] in (0.001, 1]: Beta(1.5, 1), which favours the noisy end."""
        beta = torch.distributions.Beta(torch.tensor(1.5), torch.tensor(1.0))
        return beta.sample((count,)) * 0.999 + 0.001

    def freeze_vlm(self) -> None:
        """Train the expert and the projections only, LeRobot's default for fine-tuning."""
        for part in (self.vision, self.connector, self.text):
            part.requires_grad_(False)
