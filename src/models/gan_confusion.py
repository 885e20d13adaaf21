"""What a discriminator takes for real, over a whole validation or test."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


class DiscriminatorConfusion:
    """Counts how often D judges real and generated images rightly.

    Args:
        threshold: the score above which D takes an image for real; None: midway between its mean scores.
    """

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self._scores: list[Tensor] = []

    def add(self, d_real: Tensor, d_fake: Tensor) -> None:
        """Adds a batch's scores of real and of generated images, [N, 1] each."""
        self._scores.append(torch.stack([d_real.detach().flatten(), d_fake.detach().flatten()]))

    def count(self, model: LightningModule, split: str) -> dict[str, Tensor]:
        """The counts int64 [2, 2] of all processes as `d_confusion`: rows real and generated, columns judged so.

        It logs the share of right judgements as `d_accuracy`, and starts anew.
        """
        if not self._scores:
            return {}
        ours = torch.cat(self._scores, dim=1)  # [2, N]
        self._scores = []
        scores = model.all_gather(ours)
        assert isinstance(scores, Tensor)
        scores = scores.view(-1, *ours.shape)  # [processes, 2, N]
        taken_for_real = (scores > (scores.mean() if self.threshold is None else self.threshold)).sum(dim=(0, 2))
        n = scores.shape[0] * scores.shape[2]
        counts = torch.stack([taken_for_real, n - taken_for_real], dim=1).cpu()
        model.log(f"{split}/d_accuracy", float(counts.trace()) / (2 * n), batch_size=n, sync_dist=True)
        return {"d_confusion": counts}
