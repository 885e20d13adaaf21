"""Which way is better, for the metrics that rank runs."""

HIGHER_IS_BETTER = (
    *("label_accuracy", "worst_class_accuracy", "precision", "recall", "density", "coverage", "cas", "clip_score"),
    *("prompt_accuracy_seen", "prompt_accuracy_held_out", "prompt_accuracy_typo"),
)
LOWER_IS_BETTER = ("fd", "kid")
