"""What grpo measures on held-out prompts: rewards, hit rate, precision, length and divergence of the policy's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aligner import intervals
from aligner.model.generation import end_ids
from aligner.run.params import Grpo
from aligner.training.divergence import distance, sample
from aligner.training.held_out import SFT_ADAPTER
from aligner.training.rewards import REWARDS, Prompt, Rewards, weighted

Measures = list[dict[str, float]]


class HeldOut:
    """Held-out prompts, and the measures of one sampled answer to each at the start (`first`) and now (`last`)."""

    def __init__(self, prompts: Sequence[Prompt], rewards: Rewards, grpo: Grpo, seed: int) -> None:
        self.prompts, self.rewards, self.grpo, self.seed = list(prompts), rewards, grpo, seed
        self.first: Measures = []
        self.last: Measures = []

    @property
    def tokens_per_prompt(self) -> float:
        """The mean number of tokens of a prompt and its answer at the start."""
        lengths = [len(prompt.ids) + row["tokens"] for prompt, row in zip(self.prompts, self.first, strict=True)]
        return sum(lengths) / len(lengths)

    def measure(self, model) -> dict[str, float]:
        """The means over prompts, for the curves. It samples with the same seed each time and restores the random state.

        validation_kl: KL(policy || SFT) in nats per answer. validation_precision is 1 - the mean of foreign_ideas, so an answer
        that names no idea counts as precise.
        """
        import torch

        chat, longest = self.rewards.chat, self.grpo.max_completion_length
        with torch.random.fork_rng():
            answers = sample(model, [prompt.ids for prompt in self.prompts], chat.pad_id, end_ids(chat), longest, self.seed)
            divergence = distance(model, SFT_ADAPTER, answers, chat.pad_id)[1]  # peft initialises what it then loads
        self.last = [self._row(number, ids) for number, (_, ids) in enumerate(answers)]
        self.first = self.first or self.last
        means = {f"validation_{name}": _mean([row[name] for row in self.last]) for name in self.last[0]}
        means["validation_hit_rate"] = means.pop("validation_keyword_hits")
        return means | {"validation_kl": float(divergence or 0.0)}

    def again(self, trainer, before: dict[str, float]) -> dict[str, float]:
        """The measures of a trainer's policy now; before its first step they are known."""
        return self.measure(trainer.model) if trainer.state.global_step else dict(before)

    def _row(self, number: int, ids: list[int]) -> dict[str, float]:
        values = self.rewards.of(number, ids)
        reward = weighted(values, self.grpo.reward_weights.model_dump())
        return {"reward": reward, **values, "precision": 1 - values["foreign_ideas"], "tokens": float(len(ids))}

    def change(self, name: str) -> tuple[float, float, float]:
        """The mean change of a measure since the start, prompt by prompt, and its 95 % bootstrap interval."""
        changes = [now[name] - then[name] for now, then in zip(self.last, self.first, strict=True)]
        return (_mean(changes), *intervals.defined(intervals.exact_bootstrap_interval(changes)))

    def fallen(self) -> str:
        """Which of hit rate and precision have fallen, beyond chance; empty if none has."""
        names = {"keyword_hits": "the hit rate", "precision": "the precision"}
        return " and ".join(text for name, text in names.items() if self.change(name)[2] < 0)

    def health(self) -> str:
        """hacked: the reward rose while hit rate or precision fell. not learning: it did not rise. Otherwise: healthy."""
        if self.change("reward")[1] <= 0:
            return "not learning"
        return "hacked" if self.fallen() else "healthy"


def policy_figures(
    held_out: HeldOut, final: dict[str, float], log_history: list[dict[str, float]], more: dict[str, float | None]
) -> dict[str, Any]:
    """The figures of reports/grpo.json on held-out prompts at the end, their changes since the start, and the guard's word.

    A change has its 95 % interval, of the mean of differences prompt by prompt. entropy (nats per token) and the share of groups
    without spread are of the last line of the training log. `more`: other figures, such as the divergence.
    """
    names = {"reward": "reward", "hit_rate": "keyword_hits", "precision": "precision", "tokens": "tokens"}
    names |= {name: name for name in REWARDS if name not in ("keyword_hits", "length")}
    figures: dict[str, Any] = {}
    for name, key in names.items():
        change, low, high = held_out.change(key)
        figures[name] = final[f"validation_{name}"]
        figures |= {f"{name}_change": change, f"{name}_change_low": low, f"{name}_change_high": high}
    logged = [entry for entry in log_history if "entropy" in entry]
    figures |= {"entropy": logged[-1]["entropy"], "groups_without_spread": logged[-1]["frac_reward_zero_std"], **more}
    rounded = {name: None if value is None else round(value, 4) + 0.0 for name, value in figures.items()}  # no -0.0
    return rounded | {"prompts": len(held_out.prompts), "health": held_out.health()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
