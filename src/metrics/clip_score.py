"""Whether images show what their texts say, as a CLIP model sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from src.models.pretrained import Pretrained, needed

BATCH = 50


class ClipScore:
    """100 times the cosine of the embeddings of an image and of its text, or 0 where it is negative; mean over images.

    Hessel et al., CLIPScore: a reference-free evaluation metric for image captioning, 2021, who scale it by 2.5.
    Numbers compare for one set of weights and the same texts alone.

    Args:
        weights: a folder that holds a CLIP model, or its name on the Hugging Face hub.
        key: what they are called in the configuration, for messages.

    Raises:
        UserError: the weights cannot be had, or are not those of a CLIP of images and texts.
    """

    def __init__(self, weights: str | None, key: str, device: torch.device) -> None:
        files = Pretrained(weights, key)
        if files.kind != "clip":
            raise files.refused(f"holds a model of type {files.kind!r}, which sees no images: choose a CLIP model")
        self.about = {"weights": files.name, "sha256": files.sha256}
        self._embed_text = files.text_encoder()
        self._images = files.load("CLIPVisionModelWithProjection").to(device)
        try:
            kind = needed("transformers", key).CLIPImageProcessor
            self._process = kind.from_pretrained(files.folder, local_files_only=True)
        except OSError as error:
            raise files.refused("has no preprocessor_config.json: choose a whole CLIP model") from error

    @torch.no_grad()
    def __call__(self, pixels: Tensor, texts: Sequence[str]) -> float:
        """The score of images uint8 [N, C, H, W] with a text each."""
        of_text = {text: self._embed_text(text) for text in dict.fromkeys(texts)}
        wanted = torch.stack([of_text[text] for text in texts])
        scores = []
        for part, its_texts in zip(pixels.split(BATCH), wanted.split(BATCH), strict=True):
            # In colour and as PIL's images would be: the processor knows the size and the range of the net.
            seen = self._process(images=list(part.expand(-1, 3, -1, -1)), return_tensors="pt")["pixel_values"]
            of_image = self._images(pixel_values=seen.to(self._images.device)).image_embeds.cpu()
            scores.append(cosine_similarity(of_image, its_texts).clamp(min=0))
        return 100 * float(torch.cat(scores).double().mean())
