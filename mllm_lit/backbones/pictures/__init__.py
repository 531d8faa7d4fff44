"""How a picture's features come about once: shared within a batch, and kept from batch to batch.

Pictures go through the vision encoder and the connector in the model's ``get_image_features``. Two stand in front:

- :func:`encoded_once` (``shared.py``), for the time of a batch, ahead of ``get_image_features``: of equal pictures the
  first goes in, and its features serve all of them. The connector may be trained; gradients sum up.
- :class:`VisionCache` (``cache.py``), for a whole run, ahead of the encoder's ``forward``: what a frozen encoder made
  of the same pixels before is looked up, in memory or in a file (``file.py``) that outlives the run. ``auto.py`` says
  where that pays.
"""

from mllm_lit.backbones.pictures.auto import cache_if_it_pays, looks_at
from mllm_lit.backbones.pictures.cache import VisionCache
from mllm_lit.backbones.pictures.file import VisionCacheError
from mllm_lit.backbones.pictures.shared import encoded_once, numbered

__all__ = ["VisionCache", "VisionCacheError", "cache_if_it_pays", "encoded_once", "looks_at", "numbered"]
