"""The bench of models on two small images: does it compare equal work only? Not how fast anything is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from bench.__main__ import app
from bench.models import CASES, Row, chosen, contenders, prove, run
from bench.models_report import cpu_s, markdown, ratio
from bench.verify import UnequalWork

TINY = chosen(CASES, quick=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_each_model_and_its_plain_one_do_the_same(name: str) -> None:
    proof = prove(*contenders(TINY[name]), TINY[name])
    assert max(proof.loss_difference, proof.gradient_difference, proof.buffer_difference) <= 1e-4
    assert proof.loss > 0.1
    ours, plain = contenders(TINY[name])
    of_plain = sum(weight.numel() for weight in plain.parameters() if weight.requires_grad)
    assert proof.parameters == of_plain
    if name != "mae-encoder":  # of which ours has a decoder, too
        assert proof.parameters == sum(weight.numel() for weight in ours.parameters())


class Altered(nn.Module):
    """A plain model with something done to its loss; its names stay."""

    def __init__(self, plain: nn.Module, more: float) -> None:
        super().__init__()
        self.__dict__.update(plain.__dict__)
        self.plain, self.more = [plain], more

    def forward(self, images: Tensor) -> Tensor:
        loss: Tensor = self.plain[0](images)
        return loss + (loss - loss.detach()) * self.more


def test_another_gradient_of_the_same_loss_is_refused() -> None:
    ours, plain = contenders(TINY["mae"])
    prove(ours, Altered(plain, 1e-5), TINY["mae"])
    with pytest.raises(UnequalWork, match=r"gradient of mask_token differs by 3\.0e-04"):
        prove(ours, Altered(plain, 3e-4), TINY["mae"])


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("vae", "beta", 0.1), ("vqvae", "commitment", 0.3), ("vqvae", "quantiser.decay", 0.98),
        ("mae", "mask_ratio", 0.5), ("ae", "decoder.5.momentum", 0.2),
    ],
)  # fmt: skip
def test_other_work_is_refused(name: str, what: str, value: float) -> None:
    ours, plain = contenders(TINY[name])
    module, _, attribute = what.rpartition(".")
    assert getattr(plain.get_submodule(module), attribute) != value
    setattr(plain.get_submodule(module), attribute, value)
    with pytest.raises(UnequalWork, match="differs by"):
        prove(ours, plain, TINY[name])


def test_weights_that_only_one_of_both_has_are_refused() -> None:
    ours, plain = contenders(TINY["mae"])
    plain.get_submodule("decoder_blocks").append(nn.Linear(32, 32))
    with pytest.raises(UnequalWork, match=r"the plain one has decoder_blocks\.1\.weight \[32, 32\]"):
        prove(ours, plain, TINY["mae"])
    ours, plain = contenders(TINY["mae"])
    del plain.get_submodule("blocks")[-1]
    with pytest.raises(UnequalWork, match=r"ours has model\.encoder\.11\.norm1\.weight \[192\]"):
        prove(ours, plain, TINY["mae"])


def test_there_is_no_ratio_of_unequal_work() -> None:
    row = Row("ae", TINY["ae"], None, why="the loss differs")
    with pytest.raises(UnequalWork, match="the loss differs"):
        ratio(row)
    assert "- AE, ResNet-18: not equal work: the loss differs" in markdown([row])
    assert "| AE" not in markdown([row])


def test_a_slow_one_is_seen_as_slow() -> None:
    case = TINY["mae-encoder"]

    def thrice(_: object) -> nn.Module:
        plain = case.plain(case)
        plain.register_forward_pre_hook(lambda module, images: [module.vit(*images) for _ in range(4)] and None)
        return plain

    (row,) = run({"slow": replace(case, plain=thrice)}, repeats=5, seconds=0.02, say=lambda line: None)
    assert len(row.ours) == len(row.plain) == 5
    assert ratio(row, cpu_s).median > 1.3


def test_the_command_writes_table_and_numbers(tmp_path: Path) -> None:
    words = ["models", "--quick", "--model", "ae", "--repeats", "2", "--seconds", "0.01", "--cores", "1", "--out"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "new" / "models.json").read_text())
    (row,) = record["rows"]
    pairs = zip(row["ours"], row["plain"], strict=True)
    ratios = sorted(plain["wall_s"] / ours["wall_s"] for ours, plain in pairs)
    assert row["plain_to_ours"]["median"] == pytest.approx(sum(ratios) / 2)
    assert record["conditions"]["threads"] == 1
    page = (tmp_path / "new" / "README.md").read_text()
    assert f"| {sum(ratios) / 2:.2f} (" in page
    assert "| AE, ResNet-18 | 2 × 4 × 64 × 64 | 3,134,848 |" in done.stdout


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["models", "--model", "vq-vae", "--out", str(tmp_path / "new")])
    assert done.exit_code == 1
    assert "did you mean 'vqvae'?" in done.output
    assert not (tmp_path / "new").exists()
