"""CPU back end, for any platform: decode, crop, turn, normalise and cast in NumPy, one thread a batch."""

import numpy as np
import torch

from bie_stream import codecs, normalise
from bie_stream.work import Fetch, Images, Settings, Work, ahead


def images(steps: range, fetch: Fetch, settings: Settings) -> Images:
    """Each batch of work with its images [B, C, Y, X] on the device, in order."""

    def prepare(step: int) -> tuple[Work, torch.Tensor]:
        work = fetch(step)
        return work, _images(work, settings)

    for work, batch in ahead(prepare, steps, settings.threads, settings.prefetch_batches):
        yield work, batch.to(settings.device, non_blocking=True)


def _images(work: Work, settings: Settings) -> torch.Tensor:
    slab = np.empty((len(work.ids), len(settings.channels), *settings.crop), np.float32)
    channels, (height, width), view = list(settings.channels), settings.crop, work.view
    for i, (payload, form) in enumerate(zip(work.payloads, work.forms, strict=True)):
        top, left = view.top[i], view.left[i]
        image = codecs.decode(payload, settings.codec, form)[channels, top : top + height, left : left + width]
        if view.swap[i]:
            image = image.transpose(0, 2, 1)
        image = image[:, :: -1 if view.flip_y[i] else 1, :: -1 if view.flip_x[i] else 1]
        normalise.apply(image, settings.normalisation, out=slab[i])
    return torch.from_numpy(slab).to(settings.dtype)
