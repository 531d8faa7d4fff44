"""Flickr30k captions in Karpathy's splits."""

from pathlib import Path

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.captions import BRIEF, CaptionTask


class Flickr30k(CaptionTask):
    """Flickr30k (Young et al., 2014). By default each image is asked for with one of eleven instructions."""

    name = "flickr30k"
    prompts = BRIEF
    published_at = (
        "https://shannon.cs.illinois.edu/DenotationGraph (images) and "
        "https://cs.stanford.edu/people/karpathy/deepimagesent (splits)"
    )
    expected_tree = """
    ROOT/dataset_flickr30k.json
    ROOT/flickr30k-images/{file name}   (or ROOT/flickr30k_images, ROOT/images)"""

    def rows(self, root: Path, split: str) -> list[Sample]:
        images = self.locate(root, "flickr30k-images", "flickr30k_images", "images")
        return self.karpathy_rows(self.locate(root, "dataset_flickr30k.json"), images, split)
