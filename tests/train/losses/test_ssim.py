import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from train.losses.ssim import ssim


def test_it_is_that_of_another_implementation_with_the_settings_of_the_paper() -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(3, 2, 40, 50)).cumsum(axis=-1).astype(np.float32)
    output = images + generator.normal(scale=0.7, size=images.shape).astype(np.float32)
    expected = [
        structural_similarity(
            there, ours, data_range=float(np.ptp(there)), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for image, drawn in zip(images, output, strict=True)
        for there, ours in zip(image.astype(np.float64), drawn.astype(np.float64), strict=True)
    ]
    found = float(ssim(torch.from_numpy(output), torch.from_numpy(images)))
    assert found == pytest.approx(np.mean(expected), abs=2e-5)


def test_what_is_alike_has_1_and_its_gradient_is_0_and_constant_images_have_numbers_too() -> None:
    images = torch.randn(2, 1, 16, 16)
    output = images.clone().requires_grad_()
    found = ssim(output, images)
    found.backward()
    assert found.item() == pytest.approx(1, abs=1e-5)
    assert output.grad is not None
    assert float(output.grad.abs().max()) < 1e-4
    assert ssim(torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 3.0)).isfinite()


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 11 pixels or more"):
        ssim(torch.zeros(1, 1, 8, 16), torch.zeros(1, 1, 8, 16))
