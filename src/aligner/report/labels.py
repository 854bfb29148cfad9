"""The page's names of figures, in words."""

from __future__ import annotations

# Names for the report's measures; whatever else the report holds is shown under its own name.
LABELS = {
    "hit_rate": "Hit rate",
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
    "refusal": "Refusal, by its phrases",
    "truncated": "Cut at the longest length",
    "duplicate": "Copies of another answer",
    "sft_data": "SFT examples",
    "dpo_data": "DPO pairs",
    "chosen_logp_change": "Change of log-probability, chosen",
    "rejected_logp_change": "Change of log-probability, rejected",
    "chosen_logp_change_per_token": "Change of log-probability per token, chosen",
    "rejected_logp_change_per_token": "Change of log-probability per token, rejected",
    "kl_per_token_teacher_forced": "KL from the reference per token, on the chosen answers",
    "kl_per_token_sampled": "KL from the reference per token, on its own answers",
    "kl_per_answer_sampled": "KL from the reference per answer, on its own answers",
    "kl_per_answer_sampled_low": "KL per answer, on its own answers, lower end",
    "kl_per_answer_sampled_high": "KL per answer, on its own answers, upper end",
    "samples_cut": "Share of its own answers that were cut",
    "brier": "Brier score of sigmoid(margin); 0.25 knows nothing",
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
    "chosen_fell": "Share of pairs whose chosen answer fell",
    "reward_accuracy_low": "Reward accuracy, lower end",
    "reward_accuracy_high": "Reward accuracy, upper end",
    "rejected": "Rejected as malformed",
    "near_duplicate": "Near duplicate",
    "tokens_median": "Tokens, median",
    "tokens_max": "Tokens, most",
    "supervised_share": "Share of tokens trained on",
    "contradictory": "Contradictory pairs",
    "longer_chosen": "Share of pairs whose chosen answer is longer, ties half",
    "length_gap": "Tokens by which the chosen answer is longer, median",
    "exact": "Prompts equal to a trained text",
    "ngram_13": "Prompts with 13 words in a row of a trained text",
    "ngram_8": "Prompts with 8 words in a row of a trained text",
    "longest_run": "Longest run of words in common",
    "validation_prompts": "Held-out rows with a trained prompt",
    "longer_is_chosen": "Share of pairs whose longer answer is chosen",
}


# ---- Numbers as people read them ---------------------------------------------------------------------------------------


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())
