"""The two ends of the graph `policy`: robot units in, robot units out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.model.aloha import actions_to_aloha, state_from_aloha
from smolvla_edge.statistics import FeatureStatistics, Mode


class Statistics(nn.Module):
    """A feature's two arrays; LeRobot's order of operations, as in preprocess.py."""

    first: Tensor
    second: Tensor

    def __init__(self, statistics: FeatureStatistics) -> None:
        super().__init__()
        self.kept = statistics
        if statistics.mode is Mode.IDENTITY:
            return
        for name, values in zip(("first", "second"), statistics.arrays(), strict=True):
            self.register_buffer(name, torch.from_numpy(values.copy()), persistent=False)

    def normalize(self, x: Tensor) -> Tensor:
        mode, eps = self.kept.mode, self.kept.eps
        if mode is Mode.IDENTITY:
            return x
        if mode is Mode.MEAN_STD:
            return (x - self.first) / (self.second + eps)
        width = self.second - self.first
        if self.kept.eps_in_range:
            width = width + eps
        return 2 * (x - self.first) / width - 1

    def unnormalize(self, x: Tensor) -> Tensor:
        mode = self.kept.mode
        if mode is Mode.IDENTITY:
            return x
        if mode is Mode.MEAN_STD:
            return x * self.second + self.first
        return (x + 1) / 2 * (self.second - self.first) + self.first


class Entry(nn.Module):
    """state [state_dim] in robot units -> [max_state_dim], normalised and padded; token_mask, which
    may be one value for all, for each of the tokens [L]."""

    def __init__(self, config: ModelConfig, contract: Contract) -> None:
        super().__init__()
        self.statistics = Statistics(contract.state)
        self.aloha = config.adapt_to_pi_aloha
        self.missing = config.max_state_dim - config.state_dim

    def forward(
        self, robot_state: Tensor, tokens: Tensor, given_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = self.statistics.normalize(robot_state)
        if self.aloha:
            state = state_from_aloha(state)
        every = torch.ones_like(tokens, dtype=torch.bool)
        return nn.functional.pad(state, (0, self.missing)), every & given_mask


class Exit(nn.Module):
    """actions [h, A] as the flow made them -> robot units and model space, both [h, action_dim]."""

    def __init__(self, config: ModelConfig, contract: Contract) -> None:
        super().__init__()
        self.statistics = Statistics(contract.action)
        self.aloha = config.adapt_to_pi_aloha
        self.width = config.action_dim

    def forward(self, flowed: Tensor) -> tuple[Tensor, Tensor]:
        normalized = flowed[:, : self.width]
        if self.aloha:
            normalized = actions_to_aloha(normalized)
        return self.statistics.unnormalize(normalized), normalized.clone()
