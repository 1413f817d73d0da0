"""What vendors say of their devices: one table, a row a device, every figure dense.

Vendors print the rates of matrix products with 2:4 sparsity; dense work has half of them, which is
what stands here. Rates are those that torch's products can have, which accumulate in fp32 (integers
in int32): a GeForce card's bf16, fp16 and fp8 rates are halved by that, and the higher ones that
its vendor also states, of products accumulated in fp16, are left out.

Exponentials are in no datasheet. On NVIDIA's devices an SM takes 16 special functions a clock (CUDA
programming guide, throughput of native arithmetic instructions, compute capabilities 8.0 to 12.0)
and has 128 fp32 lanes, or 64 in an A100, of 2 FLOPs a clock. So the vendor's fp32 rate, which is at
the boost clock, over 16, or over 8, is SMs x 16 x boost clock.
"""

from dataclasses import dataclass

from .ceilings import Ceiling, Ceilings


@dataclass(frozen=True)
class Datasheet:
    """A vendor's figures of one device.

    name: as torch.cuda.get_device_name gives it. name_short: for command lines.
    bandwidth: bytes/s of the device's memory.
    memory: bytes of it. Vendors write GB for GiB; a driver keeps 1 to 2% for itself.
    matmul: dense matrix products by dtype, FLOP/s, or operations/s of "int8". "tf32" are float32
        inputs rounded to it. "float8_e4m3fn" stands for whichever e4m3 the device has. A dtype
        that has no matrix instruction is missing.
    exps: exponentials/s; None where the vendor states no rate of special functions.
    source: the documents that the figures are from.
    """

    name: str
    name_short: str
    bandwidth: float
    memory: int
    matmul: dict[str, float]
    exps: float | None
    source: str

    def ceilings(self) -> Ceilings:
        """The figures as ceilings of no run; what a datasheet lacks is None."""
        bandwidth = Ceiling(self.bandwidth, self.bandwidth, runs=0)
        matmul = {dtype: Ceiling(rate, rate, runs=0) for dtype, rate in self.matmul.items()}
        exps = self.exps and Ceiling(self.exps, self.exps, runs=0)
        return Ceilings(bandwidth, bandwidth, bandwidth, matmul, exps)


def _sheet(
    name: str,
    short: str,
    memory: tuple[float, int],
    rates: tuple[float, float, float, float | None, float],
    source: str,
    fp32_over_exps: int | None = 16,
) -> Datasheet:
    """memory: TB/s and GiB. rates: of bf16 and fp16, tf32, fp32, fp8, int8, in 1e12 a second."""
    (bandwidth, gib), (half, tf32, fp32, fp8, int8) = memory, rates
    stated = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": fp32}
    stated |= {"float8_e4m3fn": fp8, "int8": int8}
    matmul = {dtype: rate * 1e12 for dtype, rate in stated.items() if rate is not None}
    exps = fp32_over_exps and fp32 * 1e12 / fp32_over_exps
    return Datasheet(name, short, bandwidth * 1e12, gib << 30, matmul, exps, source)


_A100 = (312, 156, 19.5, None, 624)
_GH100_SXM = (989.4, 494.7, 66.9, 1978.9, 1978.9)
_A100_SHEETS = "NVIDIA A100 datasheet; NVIDIA A100 Tensor Core GPU architecture whitepaper"

_SHEETS = [
    _sheet("NVIDIA A100-SXM4-40GB", "a100-40gb", (1.555, 40), _A100, _A100_SHEETS, 8),
    _sheet("NVIDIA A100-SXM4-80GB", "a100-80gb", (2.039, 80), _A100, _A100_SHEETS, 8),
    _sheet("NVIDIA A100 80GB PCIe", "a100-pcie", (1.935, 80), _A100, _A100_SHEETS, 8),
    _sheet("NVIDIA H100 80GB HBM3", "h100", (3.35, 80), _GH100_SXM, "NVIDIA H100 datasheet, SXM"),
    _sheet("NVIDIA H100 PCIe", "h100-pcie", (2.0, 80), (756, 378, 51.2, 1513, 1513),
           "NVIDIA H100 PCIe product brief; NVIDIA H100 GPU architecture whitepaper"),
    _sheet("NVIDIA H100 NVL", "h100-nvl", (3.9, 94), (835.5, 417.5, 60, 1670.5, 1670.5),
           "NVIDIA H100 datasheet, NVL"),
    _sheet("NVIDIA H200", "h200", (4.8, 141), _GH100_SXM, "NVIDIA H200 datasheet, SXM"),
    _sheet("NVIDIA B200", "b200", (8.0, 180), (2250, 1100, 80, 4500, 4500),
           "NVIDIA Blackwell architecture brief, HGX B200; NVIDIA DGX B200 datasheet (memory)"),
    _sheet("NVIDIA GB200", "gb200", (8.0, 186), (2500, 1250, 80, 5000, 5000),
           "NVIDIA GB200 NVL72 datasheet, over its 72 GPUs"),
    _sheet("AMD Instinct MI300X", "mi300x", (5.3, 192), (1307.4, 653.7, 163.4, 2614.9, 2614.9),
           "AMD Instinct MI300X data sheet", None),
    _sheet("NVIDIA GeForce RTX 4090", "rtx-4090", (1.008, 24), (165.2, 82.6, 82.6, 330.3, 660.6),
           "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, fp32 accumulation"),
    _sheet("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000", (1.792, 96),
           (503.8, 251.9, 126.0, 1007.6, 1007.6),
           "NVIDIA RTX Blackwell PRO GPU architecture whitepaper; NVIDIA RTX PRO 6000 Blackwell"
           " Workstation Edition datasheet"),
]  # fmt: skip

# By torch.cuda.get_device_name, whole: "NVIDIA H200 NVL" is another device.
DATASHEETS = {sheet.name: sheet for sheet in _SHEETS}


def datasheet_of(name: str) -> Datasheet:
    """The datasheet of a device by torch's name for it or by its short one, in any case.

    Raises:
        ValueError: there is none, with the short names of those there are.
    """
    for sheet in DATASHEETS.values():
        if name.lower() in (sheet.name.lower(), sheet.name_short):
            return sheet
    known = ", ".join(sheet.name_short for sheet in DATASHEETS.values())
    raise ValueError(f"there is no datasheet of {name!r}; there are those of {known}")
