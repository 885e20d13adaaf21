"""What a condition says, as a vector: of a class, or of a text."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, one_hot, pad, scaled_dot_product_attention

from src.config.types import Count
from src.models.prompts import LENGTH

SPACE = ord(" ")
FACTOR = 1_000_003  # of the hash of three characters; larger than any code point, and the sums stay below 2**63


class LabelConditioner(nn.Module):
    """An embedding of the class.

    Args:
        n_classes: number of classes; labels are 0 to n_classes - 1.
        dim: length of the vector.
    """

    condition_shape = ()

    def __init__(self, n_classes: int, dim: Count = 128) -> None:
        super().__init__()
        self.dim = dim
        self.nothing: Tensor
        self.register_buffer("nothing", torch.tensor(n_classes), persistent=False)
        self.embedding = nn.Embedding(n_classes, dim)
        self.of_nothing = nn.Parameter(torch.randn(1, dim))

    def forward(self, condition: Tensor) -> Tensor:
        """Labels int64 [N], `nothing` for no class -> [N, dim]."""
        return embedding(condition, torch.cat([self.embedding.weight, self.of_nothing]))


class TextConditioner(nn.Module):
    """A small text encoder that trains along and needs no vocabulary.

    A word is the sum of embeddings of its character trigrams, which are hashed (Bojanowski et al. 2017, fastText): a
    word with a typo is still close to the right one. A transformer of few layers reads the words, and a summary that
    stands before them (Devlin et al. 2019, BERT) says what the text asks for.

    Args:
        dim: length of the vector.
        width: length of the vector of a word, inside.
        n_layers: layers of the transformer.
        n_heads: heads of its attention.
        n_buckets: embeddings that trigrams share.
        n_words: words that are read; what follows is left out.
    """

    condition_shape = (LENGTH,)

    def __init__(
        self,
        dim: Count = 128,
        width: Count = 64,
        n_layers: Count = 2,
        n_heads: Count = 4,
        n_buckets: Count = 4093,
        n_words: Count = 24,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.n_words = n_words
        self.nothing: Tensor
        self.register_buffer("nothing", torch.zeros(LENGTH, dtype=torch.int64), persistent=False)
        self.trigrams = nn.Embedding(n_buckets, width)
        self.positions = nn.Parameter(torch.randn(n_words + 1, width) * 0.1)  # the first is the summary's
        self.layers = nn.ModuleList(EncoderLayer(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def forward(self, condition: Tensor) -> Tensor:
        """Code points int64 [N, LENGTH] as `to_codes` makes them, all 0 for no text -> [N, dim]."""
        # Where nobody compares bytes, padding that no text of the batch needs is left out. A GPU would have to be
        # waited for to find out which.
        is_trimmed = self.training and condition.device.type == "cpu"
        if is_trimmed:
            condition = condition[:, : int((condition > 0).sum(1).max()) + 1]
        # No shape enters the sums: in an exported file, one row may stand for all.
        codes = torch.where(condition == 0, SPACE, condition)
        previous, following = pad(codes[:, :-1], (1, 0), value=SPACE), pad(codes[:, 1:], (0, 1), value=SPACE)
        hashed = ((previous * FACTOR + codes) * FACTOR + following) % self.trigrams.num_embeddings
        is_letter = codes != SPACE
        starts = is_letter & (previous == SPACE)
        word = starts.long().cumsum(1) - 1  # which word a letter is in
        n_words = min(self.n_words, int(starts.sum(1).max())) if is_trimmed else self.n_words
        in_word = is_letter & (word < n_words)
        members = one_hot(torch.where(in_word, word, n_words), n_words + 1)[:, :, :n_words].mT  # [N, words, letters]
        members = members.to(self.trigrams.weight)
        lengths = members.sum(2, keepdim=True)
        words = members @ self.trigrams(hashed) / lengths.clamp(min=1).sqrt()
        there = lengths[:, :, 0] > 0
        features = pad(words, (0, 0, 1, 0)) + self.positions[: n_words + 1]
        mask = pad(there, (1, 0), value=True)[:, None, None, :]
        for layer in self.layers:
            features = layer(features, mask)
        return self.out(self.norm(features[:, 0]))


class EncoderLayer(nn.Module):
    """A layer of a transformer, with norms before its two parts (Vaswani et al. 2017; Xiong et al. 2020)."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [N, L, dim], and which may be looked at, bool [N, 1, 1, L] -> [N, L, dim]."""
        heads = self.query_key_value(self.norm1(features)).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        features = features + self.out(seen.transpose(1, 2).flatten(2))
        return features + self.down(gelu(self.up(self.norm2(features))))
