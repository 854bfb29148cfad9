"""The page's labels for the names of figures, and the groups in which it shows DPO's."""

from __future__ import annotations

from typing import Any

# Any other figure is shown under its own name.
LABELS = {
    "hit_rate": "Hit rate",
    "repeats": "Says a sentence twice",
    "hits_per_100_words": "Ideas named per 100 words",
    "lift": "Lift over other prompts' ideas",
    "all_hit_rate": "All ideas named",
    "micro_hit_rate": "Hit rate over all ideas",
    "novel_hit_rate": "Hit rate on ideas that the prompt does not name",
    "shuffled_hit_rate": "Hit rate on other prompts' ideas",
    "distinct_1": "Distinct words",
    "distinct_2": "Distinct pairs of words",
    "distinct_3": "Distinct triples of words",
    "ead_2": "Distinct pairs of words, adjusted for length",
    "repetition_4": "Repeated runs of four words",
    "echo": "Repeats the prompt",
    "refusal": "Refusal phrases",
    "truncated": "Cut at the maximum length",
    "sft_data": "SFT examples",
    "dpo_data": "DPO pairs",
    "chosen_logp_change": "Change of log-probability, chosen",
    "rejected_logp_change": "Change of log-probability, rejected",
    "chosen_logp_change_per_token": "Change of log-probability per token, chosen",
    "rejected_logp_change_per_token": "Change of log-probability per token, rejected",
    "kl_per_token_teacher_forced": "KL from the reference per token, on the chosen answers",
    "kl_per_token_sampled": "KL from the reference per token, on its own samples",
    "kl_per_answer_sampled": "KL from the reference per answer, on its own samples",
    "kl_per_answer_sampled_low": "KL per answer, on its own samples, lower end",
    "kl_per_answer_sampled_high": "KL per answer, on its own samples, upper end",
    "samples_cut": "Share of its own samples that were cut",
    "brier": "Brier score of sigmoid(margin); 0.25 is chance",
    "perplexity": "Perplexity on held-out SFT answers",
    "bits_per_byte": "Bits per byte of held-out SFT answers",
    "base_perplexity": "Perplexity of the base model",
    "base_bits_per_byte": "Bits per byte of the base model",
    "validation_tokens": "Held-out tokens",
    "validation_bytes": "Held-out bytes of text",
    "ranking_accuracy": "Ranking accuracy, without a reference",
    "ranking_accuracy_per_token": "Ranking accuracy per token, without a reference",
    "ranking_whole answer": "Ranking accuracy, without a reference",
    "ranking_per token": "Ranking accuracy per token, without a reference",
    "chosen_fell": "Share of pairs whose chosen answer became less likely",
    "reward_accuracy_low": "Reward accuracy, lower end",
    "reward_accuracy_high": "Reward accuracy, upper end",
    "rejected": "Rejected as malformed",
    "near_duplicate": "Near duplicate",
    "tokens_median": "Tokens, median",
    "tokens_max": "Tokens, maximum",
    "supervised_share": "Share of tokens trained on",
    "contradictory": "Contradictory pairs",
    "longer_chosen": "Share of pairs whose chosen answer is longer, ties half",
    "length_gap": "Tokens by which the chosen answer is longer, median",
    "exact": "Prompts equal to a trained text",
    "ngram_13": "Prompts with 13 words in a row of a trained text",
    "ngram_8": "Prompts with 8 words in a row of a trained text",
    "longest_run": "Longest run of words in common",
    "validation_prompts": "Held-out rows whose prompt is trained on",
    "longer_is_chosen": "Share of pairs whose longer answer is chosen",
}

DPO_GROUPS = {
    "Preference": (
        *("health", "validation_pairs", "validation_loss", "brier", "longer_is_chosen"),
        *("reward_accuracy", "reward_accuracy_low", "reward_accuracy_high", "reward_margin", "chosen_reward"),
    ),
    "Log-probability": (
        *("chosen_logp_change", "rejected_logp_change", "chosen_logp_change_per_token", "rejected_logp_change_per_token"),
        *("chosen_fell", "ranking_accuracy", "ranking_accuracy_per_token", "perplexity", "bits_per_byte"),
    ),
    "Distance from the reference": (
        *("kl_per_token_teacher_forced", "kl_per_token_sampled"),
        *("kl_per_answer_sampled", "kl_per_answer_sampled_low", "kl_per_answer_sampled_high", "samples_cut"),
    ),
}


def grouped(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """DPO's figures in groups with titles; those that no group names come last."""
    groups = [(title, {name: figures[name] for name in names if name in figures}) for title, names in DPO_GROUPS.items()]
    named = {name for _, group in groups for name in group}
    others = {name: value for name, value in figures.items() if name not in named}
    return [(title, group) for title, group in [*groups, ("Other figures", others)] if group]


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())
