"""Simulate a training step on many devices to see what bounds it, or measure one on this machine.

A step is simulated layer by layer: a layer's gradients go over the link as soon as they are ready,
one layer after the other, while the layers below are still being computed. Nothing else is
modelled: no stragglers, no memory traffic, no time for the optimiser.
"""

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from litchar.cli import ArgumentParser, exit_codes
from litchar.errors import UserError
from litchar.terminal import Terminal

BYTES_OF_GRADIENT = 4  # per parameter; also of a gathered weight
BYTES_OF_STATE = 16  # per parameter: weight, gradient and AdamW's two moments, in float32
TERABYTE = 1e12
DAY = 86_400
HEADS = 4  # of the measured model


@dataclass(frozen=True)
class Model:
    """A transformer's size.

    Attributes:
        block_size: T, characters in a window.
    """

    n_layer: int
    n_embd: int
    block_size: int

    @property
    def parameters(self) -> int:
        """The number of weights in its matrices; those of character embeddings are negligible."""
        return 12 * self.n_layer * self.n_embd**2

    @property
    def flops_per_character(self) -> float:
        """Of the forward and backward pass (PaLM, Chowdhery et al., 2022, appendix B)."""
        return 6 * self.parameters + 12 * self.n_layer * self.n_embd * self.block_size


@dataclass(frozen=True)
class Cluster:
    """Devices and the links between them.

    Attributes:
        flops: per second that a device sustains in training: its peak times the utilisation.
        near: bytes per second that a device sends within its node.
        far: bytes per second that a device sends to other nodes.
        node: devices per node.
        latency: seconds from one device to the next, whatever the size of the message.
    """

    flops: float
    near: float
    far: float
    node: int
    latency: float


# Published peaks, not measured by us: H100 SXM, 989 TFLOP/s in bfloat16, NVLink 450 GB/s each way
# (NVIDIA's H100 data sheet); a 400 Gb/s adapter for each GPU (NVIDIA's DGX H100 data sheet). The
# share of the peak and the latencies are assumptions.
H100 = Cluster(flops=0.4 * 989e12, near=450e9, far=50e9, node=8, latency=5e-6)
# The same GPUs in a machine without NVLink, and machines on 25 Gb/s Ethernet.
H100_ETHERNET = replace(H100, near=25e9, far=25e9 / 8 / 8, latency=3e-5)

MODELS = {
    "6 x 384": Model(6, 384, 256),
    "12 x 768": Model(12, 768, 512),
    "24 x 2,048": Model(24, 2048, 1024),
    "32 x 4,096": Model(32, 4096, 2048),
}


@dataclass(frozen=True)
class Step:
    """A simulated step.

    Attributes:
        compute: seconds that a device computes.
        link: seconds that its link is busy.
        seconds: from start to end.
    """

    compute: float
    link: float
    seconds: float

    @property
    def efficiency(self) -> float:
        """The share of the step that a device spends computing."""
        return self.compute / self.seconds


def ring_bytes(size: float, devices: int) -> float:
    """Return the bytes that each device sends in a ring all-reduce of `size` bytes, the fewest
    possible (Patarasuk and Yuan, 2009)."""
    return 2 * (devices - 1) / devices * size


def all_reduce_seconds(size: float, devices: int, cluster: Cluster) -> float:
    """Return the time of an all-reduce of `size` bytes over all devices: over a ring within each
    node, and over another ring of each device's share between nodes, there with the latency of a
    tree."""
    within = min(devices, cluster.node)
    nodes = -(-devices // cluster.node)
    hops = 2 * (within - 1) + 2 * math.ceil(math.log2(nodes))
    near = ring_bytes(size, within) / cluster.near
    far = ring_bytes(size / within, nodes) / cluster.far
    return near + far + hops * cluster.latency


def simulate(
    model: Model,
    characters: int,
    devices: int,
    cluster: Cluster,
    sharded: bool = False,
) -> Step:
    """Return a simulated step of `characters` on each device.

    Args:
        sharded: weights are sharded over the devices (FSDP): each layer's are all-gathered before
            its forward and its backward pass, and its gradients are reduce-scattered. Either costs
            half an all-reduce.
    """
    layer = characters * model.flops_per_character / model.n_layer / cluster.flops
    forward, backward = layer / 3, 2 * layer / 3
    size = BYTES_OF_GRADIENT * model.parameters / model.n_layer
    reduced = all_reduce_seconds(size, devices, cluster)
    half = reduced / 2
    sent = half if sharded else reduced
    now = free = 0.0  # when the device and the link finish their work
    for seconds, adds_up in ((forward, False), (backward, True)):
        gathered = free = max(free, now) + half if sharded else 0.0
        for later in reversed(range(model.n_layer)):
            began = max(now, gathered)
            now = began + seconds
            if sharded and later:  # prefetch the next layer's weights during this one
                gathered = free = max(free, began) + half
            if adds_up:
                free = max(free, now) + sent
    busy = model.n_layer * (3 * half if sharded else reduced)
    return Step(model.n_layer * layer, busy, max(now, free))


def table(
    cluster: Cluster, characters: int, sharded: bool, counts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return a row for each model and number of devices."""
    rows = []
    for name, model in MODELS.items():
        for devices in counts:
            step = simulate(model, characters, devices, cluster, sharded)
            rate = devices * characters / step.seconds
            state = BYTES_OF_STATE * model.parameters / (devices if sharded else 1)
            rows.append(
                {
                    "model": name,
                    "parameters": f"{model.parameters / 1e6:,.0f}M",
                    "devices": f"{devices:,}",
                    "compute ms": f"{1e3 * step.compute:,.2f}",
                    "link ms": f"{1e3 * step.link:,.2f}",
                    "step ms": f"{1e3 * step.seconds:,.2f}",
                    "computing": f"{step.efficiency:.0%}",
                    "state GB": f"{state / 1e9:,.1f}",
                    "days per TB": f"{TERABYTE / rate / DAY:,.2f}",
                }
            )
    return rows


def measure(model: Model, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """Measure steps of one process and of two joined by gloo on this machine, and compare them with
    the simulation."""
    (alone,) = _timings(1, model, batch_size, steps)
    both = _timings(2, model, batch_size, steps)
    together = max(timing["step"] for timing in both)
    beside = max(timing["alone"] for timing in both)
    link = max(timing["all-reduce"] for timing in both)
    characters = batch_size * model.block_size
    flops = characters * model.flops_per_character / beside
    size = BYTES_OF_GRADIENT * both[0]["parameters"]
    measured = Cluster(flops, ring_bytes(size, 2) / link, 1, 2, 0.0)
    scaled = both[0]["parameters"] / model.parameters  # embeddings and head are sent as well
    predicted = simulate(model, characters, 2, replace(measured, near=measured.near / scaled))
    return [
        {"what": "one process alone, a step", "ms": 1e3 * alone["step"]},
        {"what": "each of two at once, not joined, a step", "ms": 1e3 * beside},
        {"what": f"adding up {size / 1e6:.1f} MB over two", "ms": 1e3 * link},
        {"what": "two joined (DDP), a step: simulated", "ms": 1e3 * predicted.seconds},
        {"what": "two joined (DDP), a step: measured", "ms": 1e3 * together},
    ]


def _timings(world_size: int, model: Model, batch_size: int, steps: int) -> list[dict[str, float]]:
    """Return what each of `world_size` simultaneous processes measures, see `_timed`."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory(prefix="litchar-") as directory:
        arguments = (world_size, model, batch_size, steps, Path(directory))
        spawn(_timed, arguments, world_size, daemon=True)  # type: ignore[no-untyped-call]
        files = (Path(directory) / f"{rank}.json" for rank in range(world_size))
        return [json.loads(file.read_text()) for file in files]


def _timed(
    rank: int, world_size: int, model: Model, batch_size: int, steps: int, directory: Path
) -> None:
    """Write median seconds of a step, of one without synchronisation, and of an all-reduce."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from litchar.losses import mean_loss
    from litchar.models import Transformer

    torch.set_num_threads(1)
    meeting = f"file://{directory}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    net = Transformer(
        vocab_size=65,
        block_size=model.block_size,
        n_layer=model.n_layer,
        n_head=HEADS,
        n_embd=model.n_embd,
        dropout=0.0,
    )
    idx = torch.zeros(batch_size, model.block_size, dtype=torch.long)

    def median(work: Any) -> float:
        times = []
        for _ in range(steps):
            dist.barrier()
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return sorted(times)[steps // 2]

    gradients = torch.zeros(sum(p.numel() for p in net.parameters()))
    timings = {
        "parameters": float(gradients.numel()),
        "alone": median(lambda: torch.autograd.backward(mean_loss(net, idx, idx))),
        "all-reduce": median(lambda: dist.all_reduce(gradients)),
    }
    joined = DistributedDataParallel(net) if world_size > 1 else net
    timings["step"] = median(lambda: torch.autograd.backward(mean_loss(joined, idx, idx)))
    joined = net  # free DDP before its group, or it may wait forever for gloo's thread
    dist.destroy_process_group()
    (directory / f"{rank}.json").write_text(json.dumps(timings))


@exit_codes()
def main(arguments: list[str] | None = None) -> None:
    """Print the simulated or the measured steps that the command line asks for."""
    parser = ArgumentParser(prog="scaling.py", description=__doc__)
    parser.add_argument(
        "--measure", action="store_true", help="measure two processes on this machine"
    )
    parser.add_argument("--ethernet", action="store_true", help="no NVLink, 25 Gb/s between nodes")
    parser.add_argument("--sharded", action="store_true", help="FSDP instead of DDP")
    parser.add_argument(
        "--characters", type=int, default=16_384, help="characters per step on each device"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 1024])
    parser.add_argument("--width", type=int, default=128, help="width of the measured model")
    parser.add_argument("--batch-size", type=int, default=8, help="windows per measured step")
    parser.add_argument("--steps", type=int, default=30, help="steps to measure, taking the median")
    options = parser.parse_args(arguments)
    least = min(options.characters, *options.devices, options.width, options.batch_size)
    if min(least, options.steps) < 1:
        raise UserError("numbers must be at least 1")
    if options.measure and options.width % (2 * HEADS):
        raise UserError(
            f"--width {options.width}: must be a multiple of {2 * HEADS}: the model has {HEADS} "
            "heads, which rotate pairs"
        )
    if options.measure:
        rows = measure(Model(4, options.width, 128), options.batch_size, options.steps)
        rows = [{**row, "ms": f"{row['ms']:.1f}"} for row in rows]
    else:
        cluster = H100_ETHERNET if options.ethernet else H100
        rows = table(cluster, options.characters, options.sharded, tuple(options.devices))
    Terminal().print_rows(rows)
