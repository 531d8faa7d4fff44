"""How a model is spread over processes, where Lightning's own strategies do not do it for adapters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn

from mllm_lit.adapters.copies import whole
from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import AdapterError, SettingError
from mllm_lit.tensors import local, shard_like

if TYPE_CHECKING:
    from mllm_lit.adapters.base import Adapter


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism (PyTorch's ``fully_shard``); every decoder block is a unit.

    Differs from Lightning's strategy in that checkpoints are those of a single process: one file with the tensors
    that are trained and their optimizer state, gathered on rank 0. They move between one process, DDP and FSDP2.

    Args:
        process_group_backend: As in :class:`~lightning.pytorch.strategies.DDPStrategy`.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        """All processes share the data and the shards."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Weights that were gathered in inference mode could not be trained."""
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            loop.inference_mode = False
        super().setup(trainer)

    def shard(self, net: nn.Module, model: nn.Module, layout: Layout, adapter: "Adapter") -> None:
        """Shard a model in place.

        Args:
            net: The module that is called.
            model: The backbone in it.
            layout: The backbone's.
            adapter: What trains.

        Raises:
            AdapterError: The adapter cannot be trained in shards, or saved from them.
        """
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if getattr(adapter, "mutates", False):
            raise AdapterError("An initialisation that changes the backbone (PiSSA, CorDA) cannot be sharded. Use DDP.")
        if any(config.is_prompt_learning for config in getattr(net, "peft_config", {}).values()):
            raise AdapterError("peft cannot save virtual tokens (prefix, prompt) from shards. Use DDP.")
        if any(parameter._backward_hooks for parameter in net.parameters()):
            raise AdapterError("What is done to each gradient (OSF's projection) would be lost in shards. Use DDP.")
        reach_always(net, model, layout)
        mesh = self.device_mesh["data_parallel"]
        for block in model.get_submodule(layout.blocks).children():
            fully_shard(block, mesh=mesh)
        # Whole only inside a forward pass: peft switches adapters off and on between two of them.
        fully_shard(net, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(net, "generate")

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """No: the loader, which the optimizer's schedule asks for its length, starts at the checkpoint's position."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning restores it, through :meth:`load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, whole, on rank 0."""
        return {name: tensor for name, p in self._trained() if (tensor := self._gather(p)) is not None}

    # torch.distributed.checkpoint.state_dict cannot stand here: it starts an optimizer without state by a step of zero
    # gradients, which rules would take for one of training, and counts it for tensors that never had a gradient. Of the
    # model it would gather and reload what is frozen and tied to something, and buffers.

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state as a single process has it, on rank 0."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        state["state"] = {
            i: {key: self._gather(value) if isinstance(value, Tensor) else value for key, value in entry.items()}
            for i, entry in state["state"].items()
        }
        return state

    def _gather(self, tensor: Tensor) -> Tensor | None:
        full = whole(tensor)
        return full if self.is_global_zero else None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of every trained tensor."""
        for name, parameter in self._trained():
            local(parameter).copy_(shard_like(checkpoint["state_dict"][name], parameter))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                i: {key: like(value, parameters[i]) for key, value in entry.items()}
                for i, entry in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        module: Any = self.lightning_module
        return [(f"net.{name}", parameter) for name, parameter in module.trainable()]


class ZeROStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, stage 1 or 2: a shard of the optimizer's state, and of the gradients, on each rank.

    Differs from Lightning's strategy in that it takes this package's batches, does not ask the loader for its size
    before the model is there, and runs on CPUs, too (gloo). Needs ``pip install deepspeed``; tried with 0.19.8.

    Args:
        stage: Of ZeRO. Stage 3 cannot load a backbone; :class:`FSDP2Strategy` shards weights.

    Raises:
        SettingError: Another stage.
    """

    def __init__(self, stage: int = 2) -> None:
        if stage not in (1, 2):
            raise SettingError(f"stage is {stage}; expected 1 or 2. To shard weights, too, take trainer/fsdp2.yaml.")
        super().__init__(stage=stage, exclude_frozen_parameters=True, logging_batch_size_per_gpu=1)

    def setup_environment(self) -> None:
        """Number CPUs, which Lightning refuses, as GPUs are; leave batches as they are."""
        self.precision_plugin = BatchPrecision(self.precision_plugin.precision)  # type: ignore[arg-type]
        if isinstance(self.accelerator, CPUAccelerator):
            assert self.parallel_devices is not None
            self.parallel_devices = [torch.device("cpu", rank) for rank in range(len(self.parallel_devices))]
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """What DeepSpeed has loaded, its weights among it as other strategies give them."""
        state = super().load_checkpoint(checkpoint_path, weights_only)
        module: Any = self.lightning_module
        return {**state, "state_dict": {f"net.{name}": parameter for name, parameter in module.trainable()}}


class BatchPrecision(DeepSpeedPrecision):
    """DeepSpeed's precision; what is given to the model, its own layers convert."""

    def convert_input(self, data: Any) -> Any:
        """Lightning cannot walk through a batch that has frozen samples in it."""
        return data


def like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor sharded as a parameter of its shape is; anything else as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    there = value.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


def reach_always(net: nn.Module, model: nn.Module, layout: Layout) -> None:
    """Have vision encoder and connector take part in every backward pass, by a gradient of zero without a picture.

    Ranks reduce the gradients of a unit together and the units in one order. So all of them need gradients of the same
    tensors, and blocks whose input has one: hence the detour over the embeddings.
    """
    idle = [
        (net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
        for name, parameter in net.named_parameters()
        if parameter.requires_grad and layout.role_of(name) != "llm"
    ]

    def touch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        # Parameters are looked up anew, since sharding swaps them.
        return output + 0 * sum(getattr(owner, name).sum() for owner, name in idle)

    if idle:
        model.get_input_embeddings().register_forward_hook(touch)  # type: ignore[operator]


def in_lockstep(strategy: Any) -> bool:
    """Whether all ranks must run the same number of forward passes, because each pass gathers weights."""
    return isinstance(strategy, FSDP2Strategy)


def hides_gradients(strategy: Any) -> bool:
    """Whether gradients cannot be read or scaled between the backward pass and the optimizer's step."""
    return isinstance(strategy, DeepSpeedStrategy)
