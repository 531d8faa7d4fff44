"""Two and four processes give the weights of one, under FSDP2 and DDP, and gather nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mllm_lit.importance import EWC, L2SP, MagnitudeMask, MoFO, RandomMask, Reference, Rule, Spider, reference
from mllm_lit.importance.files import read_buffers, save_buffers
from mllm_lit.tensors import local

pytestmark = pytest.mark.slow

RULES: dict[str, Any] = {
    "spider": Spider,
    "spider hard": lambda: Spider(mask="hard"),
    "magnitude": MagnitudeMask,
    "random": lambda: RandomMask(seed=1),
    "mofo": lambda: MoFO(0.2),
    "l2sp": lambda: L2SP(0.5),
}
STEPS = 6


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    # Sizes that two and four ranks do not divide, so that shards are uneven and one is empty.
    model = nn.Sequential(nn.Linear(7, 13), nn.LayerNorm(13), nn.Tanh(), nn.Linear(13, 3))
    nn.init.normal_(model[1].weight, 1.0, 0.1)
    nn.init.normal_(model[1].bias, 0.0, 0.1)
    return model


def _train(model: nn.Module, rule: Rule, parameters: dict[str, nn.Parameter]) -> list[tuple[str, int]]:
    """Train with full batches on every rank (so that averaged gradients are alike) and log the rule's collectives."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05, foreach=False)
    calls: list[tuple[str, int]] = []
    originals = {
        name: getattr(dist, name) for name in ("all_reduce", "all_gather_into_tensor", "all_gather", "broadcast")
    }
    inside = False

    def spy(name: str) -> Any:
        def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if inside:
                calls.append((name, tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else -1))
            return originals[name](tensor, *args, **kwargs)

        return call

    rule.attach(optimizer, parameters.items())
    hook = rule.after_step

    def watched() -> None:
        nonlocal inside
        inside = True
        hook()
        inside = False

    rule.after_step = watched  # type: ignore[method-assign]
    for name in originals:
        setattr(dist, name, spy(name))
    try:
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            x, y = torch.randn(16, 7, generator=generator), torch.randn(16, 3, generator=generator)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return calls


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def _mapped(rank: int, kind: str, mesh: Any, folder: Path) -> dict[str, bool]:
    """Whether θ0 in a file is this rank's own, if all ranks have written before the first one reads."""
    model = _model()
    if kind == "fsdp2":
        fully_shard(model, mesh=mesh)
    parameters = dict(model.named_parameters())
    identity = Reference.capture(parameters).identity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load_file", lambda path: (dist.barrier(), load_file(path))[1])
        theta0 = Reference.capture(parameters, on=str(folder / f"{kind}.safetensors"))
    found = {name: torch.equal(theta0[name].float(), local(p)) for name, p in parameters.items()}
    return found | {"identity": theta0.identity == identity}


def _summed(folder: Path, mesh: Any = None) -> dict[str, Tensor]:
    """F of a second run on that of a first, each of one batch, through files; with a mesh all of it sharded."""
    for run in ("first", "second"):
        model, rule = _model(), EWC(rows=1, accumulate=True, decay=0.5)
        if mesh is not None:
            fully_shard(model, mesh=mesh)
        rule.attach(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
        if run == "second":
            rule.earlier = read_buffers(rule, folder / "first")
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(len(run)))
        rule.prepare(iter([model(x).square().mean().backward()]))
        (folder / run).mkdir(parents=True, exist_ok=True)
        save_buffers(rule, folder / run, is_main=mesh is None or dist.get_rank() == 0)
        if mesh is not None:
            dist.barrier()
    return load_file(folder / "second" / "importance.safetensors")


def _rank(rank: int, world: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    out: dict[str, Any] = {}
    for kind in ("fsdp2", "ddp"):
        for key, make in RULES.items():
            model, rule = _model(), make()
            if kind == "fsdp2":
                fully_shard(model, mesh=mesh)
                parameters = dict(model.named_parameters())
                calls = _train(model, rule, parameters)
            else:
                parameters = dict(model.named_parameters())
                calls = _train(DistributedDataParallel(model), rule, parameters)
            figures = rule.statistics()
            state = {kind_: {n: _whole(t) for n, t in b.items()} for kind_, b in rule.state_dict()["buffers"].items()}
            if kind == "fsdp2":  # a whole state loads into shards
                rule.load_state_dict(rule.state_dict() | {"buffers": state})
                again = {k: {n: _whole(t) for n, t in b.items()} for k, b in rule.state_dict()["buffers"].items()}
                assert all(torch.equal(again[k][n], state[k][n]) for k in state for n in state[k])
            out[f"{kind} {key}"] = {
                "weights": {name: _whole(p) for name, p in parameters.items()},
                "figures": figures,
                "state": state,
                "calls": calls,
                "identity": Reference.capture(dict(parameters.items())).identity,
            }
    out["summed"] = _summed(Path(folder), mesh)
    out["mapped"] = [_mapped(rank, kind, mesh, Path(folder)) for kind in ("fsdp2", "ddp")]
    torch.save(out, f"{folder}/out{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp(f"ranks{request.param}")
    mp.spawn(_rank, (request.param, str(folder)), nprocs=request.param)
    ranks = [torch.load(folder / f"out{rank}.pt", weights_only=False) for rank in range(request.param)]
    return ranks[0] | {"mapped": [kind for rank in ranks for kind in rank["mapped"]]}


@pytest.mark.parametrize("key", RULES)
@pytest.mark.parametrize("kind", ["fsdp2", "ddp"])
def test_ranks_equal_one_process(sharded: dict[str, Any], kind: str, key: str) -> None:
    model, rule = _model(), RULES[key]()
    _train(model, rule, dict(model.named_parameters()))
    result = sharded[f"{kind} {key}"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(result["weights"][name], p.detach(), rtol=1e-5, atol=1e-6)
    for name, figures in rule.statistics().items():
        for figure, value in figures.items():
            torch.testing.assert_close(result["figures"][name][figure], value, rtol=1e-4, atol=1e-6)
    for kind_, tensors in rule.state_dict()["buffers"].items():
        for name, value in tensors.items():
            torch.testing.assert_close(result["state"][kind_][name], value, rtol=1e-5, atol=1e-6)


def test_fisher_information_is_summed_over_runs_as_in_one_process(sharded: dict[str, Any], tmp_path: Path) -> None:
    for name, value in _summed(tmp_path).items():
        torch.testing.assert_close(sharded["summed"][name], value, rtol=1e-5, atol=1e-8)


def test_spider_reduces_two_short_rows_and_gathers_nothing(sharded: dict[str, Any]) -> None:
    parameters = len(list(_model().parameters()))
    assert sharded["fsdp2 spider"]["calls"] == [("all_reduce", parameters * 2 * 8)] * 2 * STEPS
    assert sharded["fsdp2 spider hard"]["calls"] == [("all_reduce", parameters * 2 * 8)] * STEPS
    assert sharded["ddp spider"]["calls"] == []


def test_every_rank_maps_a_theta0_of_its_own(sharded: dict[str, Any]) -> None:
    for found in sharded["mapped"]:
        assert len(found) == len(list(_model().parameters())) + 1
        assert all(found.values()), found


def test_identity_does_not_depend_on_sharding(sharded: dict[str, Any]) -> None:
    for kind in ("fsdp2", "ddp"):
        result = sharded[f"{kind} spider"]
        assert Reference.capture(result["weights"]).identity == result["identity"]
